"""What surrounds the scan in a mixer of Bamba-9B: convolution, gated norm, and the decode step.

Steps work in place and are repeated. They start in the fixed point of their recurrence, so that every repetition has
the same truth.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bamba.config import PRESETS
from ssd_kernels import get_op
from ssd_kernels.portable.pinned import imposed
from ssd_kernels.registry import target
from tests.perf.problems import DEVICE, DTYPE, MIXER_ERROR, ON_GPU, SCAN_ERROR, relative_error

pytestmark = [
    pytest.mark.perf,
    pytest.mark.benchmark(group="operators"),
    pytest.mark.skipif(not ON_GPU, reason="on a CPU these are a few calls of torch's own"),
]

CONFIG = PRESETS["bamba-9b"]
NHEADS, HEADDIM, NGROUPS, D_STATE = CONFIG.ssm_nheads, CONFIG.ssm_headdim, CONFIG.ssm_ngroups, CONFIG.ssm_d_state
D_INNER, CONV_DIM, WIDTH = NHEADS * HEADDIM, NHEADS * HEADDIM + 2 * NGROUPS * D_STATE, CONFIG.ssm_d_conv
TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixer's parameters and what in_proj makes of `rows` tokens, whose parts are views of one tensor."""

    z: Tensor  # (rows, d_inner)
    xBC: Tensor  # (rows, conv_dim)  # noqa: N815 -- the name of the field
    dt: Tensor  # (rows, nheads)
    weight: Tensor  # (conv_dim, width)
    bias: Tensor  # (conv_dim,)
    norm: Tensor  # (d_inner,)
    A: Tensor  # (nheads,)
    D: Tensor  # (nheads,)
    dt_bias: Tensor  # (nheads,)

    @classmethod
    def of(cls, rows: int) -> "Layer":
        generator = torch.Generator(DEVICE).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE, dtype=DTYPE)

        z, xBC, dt = normal(rows, D_INNER + CONV_DIM + NHEADS).split([D_INNER, CONV_DIM, NHEADS], dim=-1)
        uniform = torch.rand(2, NHEADS, generator=generator, device=DEVICE)
        step = torch.exp(uniform[0] * 4.6 - 6.9)  # between 1e-3 and 0.1, as a layer is initialised
        return cls(
            z=z,
            xBC=xBC,
            dt=dt,
            weight=normal(CONV_DIM, WIDTH) / 2,
            bias=normal(CONV_DIM) / 2,
            norm=1 + normal(D_INNER) / 10,
            A=-(1 + 15 * uniform[1]),
            D=torch.ones(NHEADS, device=DEVICE),
            dt_bias=step + torch.log(-torch.expm1(-step)),
        )


def double(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the same values in fp64."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def fixed_state(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor) -> Tensor:
    """The state, fp64 (batch, nheads, headdim, d_state), that a step with these inputs does not change."""
    step = F.softplus(dt.double() + dt_bias.double())
    gain = step / -torch.expm1(step * A.double())
    heads = B.double().repeat_interleave(NHEADS // NGROUPS, dim=1)
    return (gain[..., None] * x.double())[..., None] * heads[:, :, None, :]


# Of each kernel a configuration that works and is slow.
DETUNED = {
    "causal_conv1d": {"block": {"BLOCK_T": 8, "ROWS": 1, "BLOCK_C": 64}, "num_warps": 1, "num_stages": 2},
    "causal_conv1d_step": {"block": {"BLOCK_C": 8192}, "num_warps": 1, "num_stages": 2},
    "gated_rms_norm": {"block": {"BLOCK": 256, "ROWS": 1, "STAGES": 1}, "num_warps": 1, "num_stages": 2},
    "ssd_step": {"block": {"BLOCK_P": 1, "BLOCK_N": D_STATE}, "num_warps": 1, "num_stages": 2},
}


def detuned(operator: str, call: Any) -> Any:
    """The operator in that configuration."""

    def other(**arguments: Any) -> Any:
        with imposed(operator, DETUNED[operator]):
            return call(**arguments)

    return other


def measure(benchmark, operator: str, *, tokens: int, exact: Tensor, budget: float, nbytes: int, **arguments: Any):
    """Benchmark the Triton implementation of an operator on these arguments."""
    call = get_op(operator, "triton")
    benchmark.declare(
        tokens=tokens,
        bytes=nbytes,
        device=DEVICE,
        error=lambda out: relative_error(out, exact),
        error_budget=budget,
        graph=True,
        asked="triton",
        ran=target(operator, "triton"),
        plants={"detuned": detuned(operator, call)} if operator in DETUNED else None,
    )
    with torch.inference_mode():
        benchmark(call, **arguments)


@pytest.mark.parametrize("tokens", [pytest.param(TOKENS, id=f"bamba-9b-1x{TOKENS}")])
def test_causal_conv1d(benchmark, tokens):
    layer = Layer.of(tokens)
    arguments = {"x": layer.xBC[None], "weight": layer.weight, "bias": layer.bias, "activation": "silu"}
    exact = get_op("causal_conv1d", "torch")(**double(arguments))
    measure(
        benchmark, "causal_conv1d", tokens=tokens, exact=exact, budget=SCAN_ERROR, nbytes=2 * layer.xBC.nbytes,
        **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("groups", [pytest.param(n, id=f"bamba-9b-1x{TOKENS}-g{n}") for n in (1, 8)])
def test_gated_rms_norm(benchmark, groups):
    layer = Layer.of(TOKENS)
    y = torch.randn(TOKENS, D_INNER, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE, dtype=DTYPE)
    arguments = {"y": y, "z": layer.z, "weight": layer.norm, "eps": 1e-5, "groups": groups}
    exact = get_op("gated_rms_norm", "torch")(**double(arguments))
    measure(
        benchmark, "gated_rms_norm", tokens=TOKENS, exact=exact, budget=SCAN_ERROR, nbytes=3 * y.nbytes, **arguments
    )


@pytest.mark.parametrize("batch", [pytest.param(64, id="bamba-9b-b64")])
def test_causal_conv1d_step(benchmark, batch):
    layer = Layer.of(batch)
    window = layer.xBC[..., None].expand(-1, -1, WIDTH - 1).contiguous()
    arguments = {"x": layer.xBC, "weight": layer.weight, "bias": layer.bias, "activation": "silu"}
    exact = get_op("causal_conv1d_step", "torch")(**double(arguments), window=window.double())
    nbytes = 2 * (layer.xBC.nbytes + window.nbytes)
    measure(
        benchmark, "causal_conv1d_step", tokens=batch, exact=exact, budget=SCAN_ERROR, nbytes=nbytes, window=window,
        **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "dtype"),
    [
        pytest.param(batch, getattr(torch, dtype), id=f"bamba-9b-b{batch}-{dtype}")
        for dtype, batches in {"float32": (1, 64, 256), "bfloat16": (64, 256, 1024), "float16": (64,)}.items()
        for batch in batches
    ],
)
def test_ssd_step(benchmark, batch, dtype):
    layer = Layer.of(batch)
    x, B, C = layer.xBC.split([D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE], dim=-1)
    arguments = {
        "x": x.unflatten(-1, (NHEADS, HEADDIM)),
        "dt": layer.dt,
        "A": layer.A,
        "B": B.unflatten(-1, (NGROUPS, D_STATE)),
        "C": C.unflatten(-1, (NGROUPS, D_STATE)),
        "D": layer.D,
        "dt_bias": layer.dt_bias,
        "dt_softplus": True,
    }
    fixed = fixed_state(*(arguments[name] for name in ("x", "dt", "A", "B", "dt_bias")))
    state = fixed.to(dtype)
    exact = get_op("ssd_step", "torch")(fixed, **double(arguments))
    nbytes = 2 * state.nbytes + 2 * x.numel() * DTYPE.itemsize
    measure(
        benchmark, "ssd_step", tokens=batch, exact=exact, budget=MIXER_ERROR, nbytes=nbytes, state=state, **arguments
    )


@pytest.mark.parametrize("batch", [pytest.param(64, id="bamba-9b-b64")])
def test_mixer_step(benchmark, batch):
    layer = Layer.of(batch)
    window = layer.xBC[..., None].expand(-1, -1, WIDTH - 1).contiguous()
    convolution = {"weight": layer.weight, "bias": layer.bias, "activation": "silu"}
    convolved = get_op("causal_conv1d_step", "torch")(layer.xBC.double(), window.double(), **double(convolution))
    x, B, _ = convolved.split([D_INNER, NGROUPS * D_STATE, NGROUPS * D_STATE], dim=-1)
    fixed = fixed_state(
        x.unflatten(-1, (NHEADS, HEADDIM)), layer.dt, layer.A, B.unflatten(-1, (NGROUPS, D_STATE)), layer.dt_bias
    )
    state = fixed.to(DTYPE)
    arguments = {
        "xBC": layer.xBC, "dt": layer.dt, "z": layer.z, "A": layer.A, "D": layer.D, "dt_bias": layer.dt_bias,
        "dt_softplus": True, **convolution,
    }  # fmt: skip
    exact = get_op("mixer_step", "torch")(**double(arguments), window=window.double(), state=fixed)
    nbytes = 2 * (state.nbytes + window.nbytes) + layer.xBC.nbytes + layer.z.nbytes + exact.numel() * DTYPE.itemsize
    measure(
        benchmark, "mixer_step", tokens=batch, exact=exact, budget=MIXER_ERROR, nbytes=nbytes, window=window,
        state=state, **arguments,
    )  # fmt: skip
