"""The named problems of the perf suite: sizes by machine, inputs by seed, work by formula."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bamba import Bamba
from bamba.config import PRESETS, BambaConfig
from ssd_kernels import get_ssd
from ssd_kernels.registry import default_name
from tests.precision import upcast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32

# Relative error (Frobenius) against fp64 that still counts as right. A bf16 result cannot be better than its own
# rounding, 1.7e-3; a mixer rounds about ten times in a row, a model of four layers forty times.
SCAN_ERROR = 4e-3 if ON_GPU else 1e-5
MIXER_ERROR = 1e-2 if ON_GPU else 1e-5
MODEL_ERROR = 3e-2 if ON_GPU else 1e-5

# Bamba-9B's shapes, four layers of them: what a kernel changes shows, and it fits any GPU worth measuring on. On a CPU
# a model of the same build, small enough for seconds.
MODEL = "bamba-9b-perf" if ON_GPU else "bamba-small"
MODELS = {
    "bamba-9b-perf": PRESETS["bamba-9b-perf"],
    "bamba-small": PRESETS["bamba-9b-perf"].replace(
        vocab_size=8192, d_model=512, d_mlp=1024, attn_nheads=8, attn_nheads_kv=2, attn_headdim=64, attn_rotary_dim=32,
        ssm_nheads=16, ssm_d_state=64,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScanProblem:
    """One SSD call of a mixer, by default of Bamba-9B's."""

    ssm: str
    batch: int
    seqlen: int
    chunk_size: int = 256
    carry: str = "all"
    nheads: int = 128
    headdim: int = 64
    ngroups: int = 1
    d_state: int = 128
    nseqs: int = 0  # equal sequences packed in a row; none are where 0

    @property
    def name(self) -> str:
        """What the problem is called in tables and baselines."""
        parts = [self.ssm, self.carry, f"q{self.chunk_size}", f"{self.batch}x{self.seqlen}"]
        if (self.nheads, self.headdim, self.ngroups, self.d_state) != (128, 64, 1, 128):
            parts.append(f"h{self.nheads}p{self.headdim}g{self.ngroups}n{self.d_state}")
        if self.nseqs:
            parts.append(f"packed{self.nseqs}")
        return "-".join(parts)

    @property
    def tokens(self) -> int:
        """Tokens of one call."""
        return self.batch * self.seqlen

    @property
    def bytes(self) -> int:
        """Bytes that any implementation moves: x, y, B, C and dt once, the final state once."""
        elements = 2 * self.nheads * self.headdim + 2 * self.ngroups * self.d_state + self.nheads
        state = max(self.batch, self.nseqs) * self.nheads * self.headdim * self.d_state * 4
        return self.tokens * elements * DTYPE.itemsize + state

    @property
    def flops(self) -> int:
        """Operations of the chunked form, the causal half of each chunk only; without a carry no state is read."""
        pairs = (self.chunk_size + 1) / 2
        products = 2 * pairs * (self.ngroups * self.d_state + self.nheads * self.headdim)
        states = (4 if self.carry == "all" else 0) * self.nheads * self.headdim * self.d_state
        return int(self.tokens * (products + states))

    def inputs(self) -> dict[str, Any]:
        """Seeded inputs with the decays of a freshly initialised Mamba-2 layer; x, B, C are views of one tensor."""
        generator = torch.Generator(DEVICE).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE, dtype=DTYPE)

        d_inner, bc = self.nheads * self.headdim, self.ngroups * self.d_state
        x, B, C = normal(self.batch, self.seqlen, d_inner + 2 * bc).split([d_inner, bc, bc], dim=-1)
        uniform = torch.rand(2, self.nheads, generator=generator, device=DEVICE)
        dt = torch.exp(uniform[0] * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
        return {
            "x": x.unflatten(-1, (self.nheads, self.headdim)),
            "dt": normal(self.batch, self.seqlen, self.nheads),
            "A": -(1 + 15 * uniform[1]),
            "B": B.unflatten(-1, (self.ngroups, self.d_state)),
            "C": C.unflatten(-1, (self.ngroups, self.d_state)),
            "chunk_size": self.chunk_size,
            "D": torch.ones(self.nheads, device=DEVICE),
            "dt_bias": dt + torch.log(-torch.expm1(-dt)),
            "dt_softplus": True,
            "carry": self.carry,
            **self._packing(),
        }

    def _packing(self) -> dict[str, Tensor]:
        if not self.nseqs:
            return {}
        length = self.seqlen // self.nseqs
        return {"cu_seqlens": torch.arange(0, self.seqlen + 1, length, device=DEVICE, dtype=torch.int32)}


if ON_GPU:
    SCANS = [
        ScanProblem(ssm="triton", batch=1, seqlen=1024),
        ScanProblem(ssm="triton", batch=1, seqlen=2048),
        ScanProblem(ssm="triton", batch=1, seqlen=8192),
        ScanProblem(ssm="triton", batch=1, seqlen=32768),
        ScanProblem(ssm="triton", batch=1, seqlen=131072),
        ScanProblem(ssm="triton", batch=8, seqlen=2048),
        ScanProblem(ssm="triton", batch=32, seqlen=1024),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, carry="none"),
        ScanProblem(ssm="triton", batch=8, seqlen=2048, carry="none"),
        # Sixteen prompts without padding, as a batch, and as many tokens of one.
        ScanProblem(ssm="triton", batch=1, seqlen=16384, nseqs=16),
        ScanProblem(ssm="triton", batch=16, seqlen=1024),
        ScanProblem(ssm="triton", batch=1, seqlen=16384),
        # The shapes of other hybrid models: Falcon-H1-1.5B, Mamba-2-2.7B, Zamba2-7B, Nemotron-H-8B, Falcon-H1-34B.
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=48, d_state=256),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=80),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=112, ngroups=2, d_state=64),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, ngroups=8),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=32, headdim=128, ngroups=2, d_state=256),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=24, headdim=128, d_state=256),
        ScanProblem(ssm="triton", batch=1, seqlen=8192, nheads=24),
        # What other GPUs take, and calls that the Hopper kernels do not.
        ScanProblem(ssm="portable", batch=1, seqlen=1024),
        ScanProblem(ssm="portable", batch=1, seqlen=2048),
        ScanProblem(ssm="portable", batch=1, seqlen=8192),
        ScanProblem(ssm="portable", batch=1, seqlen=32768),
        ScanProblem(ssm="portable", batch=1, seqlen=131072),
        ScanProblem(ssm="portable", batch=8, seqlen=2048),
        ScanProblem(ssm="portable", batch=32, seqlen=1024),
        ScanProblem(ssm="portable", batch=1, seqlen=8192, nheads=24),
        ScanProblem(ssm="chunked", batch=1, seqlen=2048),
    ]
    MIXER_TOKENS, PREFILL_TOKENS, DECODE_BATCHES = 8192, [2048, 8192], [1, 16, 64, 256]
else:
    SCANS = [
        ScanProblem(ssm="chunked", batch=1, seqlen=512),
        ScanProblem(ssm="chunked", batch=1, seqlen=2048),
        ScanProblem(ssm="chunked", batch=4, seqlen=128),
        ScanProblem(ssm="chunked", batch=1, seqlen=512, chunk_size=32),
        ScanProblem(ssm="chunked", batch=1, seqlen=512, carry="none"),
        ScanProblem(ssm="tests.perf.transformers_scan:ssd", batch=1, seqlen=512, chunk_size=64),
    ]
    MIXER_TOKENS, PREFILL_TOKENS, DECODE_BATCHES = 64, [512], [1, 16]


def scans(asked: str | None) -> list[ScanProblem]:
    """The scans to measure: all of them, or those of the device's default with the one asked for in its place."""
    default = default_name(DEVICE.type)
    return [replace(scan, ssm=asked) for scan in SCANS if scan.ssm == default] if asked else SCANS


def exact_scan(inputs: dict[str, Any]) -> Tensor:
    """The result in fp64, by the torch form that the correctness suite holds to the recurrence."""
    y = get_ssd("chunked")(**upcast(inputs))
    assert isinstance(y, Tensor)
    return y


def with_exact_twin(config: BambaConfig) -> tuple[Bamba, Bamba]:
    """A model in the machine's dtype and one of the same weights in fp64."""
    model = Bamba(config, device=DEVICE, dtype=DTYPE)
    exact = Bamba(config, ssm="chunked", device=DEVICE, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    return model, exact


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """‖actual − exact‖ / ‖exact‖, in fp64."""
    return float((actual.double() - exact).norm() / exact.norm())


def model_flops(config: BambaConfig, weights: int, tokens: int) -> int:
    """Operations of a prefill of one sequence: two per weight and token, the scans, and causal attention."""
    scan = ScanProblem(
        ssm="", batch=1, seqlen=tokens, chunk_size=config.ssm_chunk_size, nheads=config.ssm_nheads,
        headdim=config.ssm_headdim, ngroups=config.ssm_ngroups, d_state=config.ssm_d_state,
    )  # fmt: skip
    attention = 2 * tokens**2 * config.attn_nheads * config.attn_headdim
    layers = len(config.attn_layers)
    return 2 * weights * tokens + (config.num_layers - layers) * scan.flops + layers * attention
