"""The calls that are compiled ahead of time: one table for each operator.

Together they reach every kernel of the package and every pinned configuration; `python -m tests.aot` names a kernel
that no call here launches.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bamba.parallel.direct import DirectSums
from bamba.parallel.direct_step import DirectStep
from bamba.parallel.words import Words
from ssd_kernels import get_op

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NHEADS, SEQLEN, CHANNELS = 128, 1024, 8448  # Bamba's, and a length


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call of one operator. The `quick` ones are part of the correctness suite."""

    name: str
    call: Callable[[], Any]
    quick: bool = False
    only: str | None = None  # the target that there are such kernels for; all by default


# (headdim, d_state, chunk_size), the first Bamba's.
SCAN_SIZES = [(64, 128, 256), (64, 128, 128), (64, 128, 16), (32, 16, 256), (128, 256, 256), (80, 96, 200)]
SCAN_FEATURES: dict[str, dict[str, Any]] = {
    "model": {"D": "head", "dt_bias": True, "dt_softplus": True},
    "batch": {"D": "head", "dt_bias": True, "dt_softplus": True, "batch": 8},
    "segments": {"D": "head", "dt_bias": True, "dt_softplus": True, "nheads": 24, "seqlen": 8192},
    "few segments": {"D": "head", "dt_bias": True, "dt_softplus": True, "nheads": 8, "seqlen": 8192},
    "bare": {},
    "steps of both signs": {"dt_limit": (-math.inf, math.inf)},
    "continued": {"D": "channel", "dt_softplus": True, "initial_state": True},
    "packed": {"D": "head", "dt_bias": True, "dt_softplus": True, "initial_state": True, "cu_seqlens": True},
    "chunk states": {"D": "head", "dt_bias": True, "dt_softplus": True, "return_chunk_states": True},
    "independent": {"D": "head", "dt_bias": True, "dt_softplus": True, "carry": "none"},
    "independent continued": {"dt_bias": True, "carry": "none", "initial_state": True},
    "independent packed": {"carry": "none", "initial_state": True, "cu_seqlens": True},
}
# (headdim, d_state, nheads, batch, seqlen), the first Bamba's; others take other configurations of the scan.
HOPPER_SIZES = [
    (64, 128, 128, 1, 1024), (64, 128, 128, 8, 1024), (64, 128, 128, 1, 131072), (64, 128, 24, 1, 8192),
    (64, 64, 112, 1, 1024), (64, 64, 112, 8, 1024), (128, 128, 64, 1, 1024), (128, 128, 64, 8, 1024),
    (64, 256, 48, 1, 8192),
]  # fmt: skip
_NOT_OF_HOPPER = ("batch", "segments", "few segments", "steps of both signs", "chunk states")
HOPPER_FEATURES = {name: features for name, features in SCAN_FEATURES.items() if name not in _NOT_OF_HOPPER}
# Other code around the loop, and other registers in it, than with a state.
HOPPER_FEATURES["packed, no state"] = {"D": "head", "dt_bias": True, "dt_softplus": True, "cu_seqlens": True}
CONV_FEATURES: dict[str, dict[str, Any]] = {
    "model": {"bias": True, "activation": "silu", "return_final_window": True},
    "bare": {},
    "continued": {"bias": True, "activation": "silu", "initial_window": True, "return_final_window": True},
    "packed": {"bias": True, "initial_window": True, "cu_seqlens": True, "return_final_window": True},
}
# (width, groups); the last does not fit one block.
NORM_SIZES = [(8192, 1), (8192, 8), (5000, 1), (32768, 1)]
# (headdim, d_state), the first Bamba's.
STEP_SIZES = [(64, 128), (32, 16), (128, 256), (80, 96)]
STEP_FEATURES: dict[str, dict[str, Any]] = {
    "model": {"D": True, "dt_bias": True, "dt_softplus": True},
    "bare": {},
    "gated slots": {"D": True, "z": True, "dt_bias": True, "dt_softplus": True, "slots": True},
}


# (tokens, outputs), the first Bamba's MLP at batch 1.
LINEAR_SIZES = [(1, 14336), (16, 14336)]
LINEAR_FEATURES: dict[str, dict[str, Any]] = {
    "norm": {"norm_weight": True},
    "paired": {"norm_weight": True, "up_weight": True},
    "gated residual": {"norm_weight": True, "gate": True, "residual": True},
    "bare": {},
}


def cases() -> Iterator[Case]:
    """Every case, each operator's most used first."""
    yield from _table("ssd", _scan, SCAN_SIZES, SCAN_FEATURES, "p{} n{} q{}")
    yield from _hopper_table()
    yield from _table("causal_conv1d", _conv, [(4,), (2,)], CONV_FEATURES, "w{}")
    yield from _table("causal_conv1d_step", _conv_step, [(4,)], {"model": {}, "slots": {"slots": True}}, "w{}")
    yield from _table("gated_rms_norm", _norm, NORM_SIZES, {"model": {}}, "{} in {}")
    yield from _table("ssd_step", _step, STEP_SIZES, STEP_FEATURES, "p{} n{}")
    yield from _table("linear_step", _linear_step, LINEAR_SIZES, LINEAR_FEATURES, "b{} o{}")
    yield from _table("attention_step", _attention_step, [(1, 1280), (16, 1280), (64, 1280)], {"model": {}}, "b{} t{}")
    yield from _table("rms_norm", _rms_norm, [(4096,), (5000,)], {"model": {}}, "{}")
    yield from _table("swiglu", _swiglu, [(14336,)], {"model": {}}, "{}")
    yield from _table("direct_sums", _direct_sums, [(2, 1), (4, 16)], {"model": {"gated": True}, "bare": {}}, "r{} b{}")
    yield from _table(
        "direct_step", _direct_step, [(2, 4096), (4, 3584)], {"model": {"gated": True}, "bare": {}}, "r{} {}"
    )
    for dtype in ("bf16", "fp16"):
        call = partial(_step, DTYPES[dtype], *STEP_SIZES[0], state_dtype=DTYPES[dtype], **STEP_FEATURES["model"])
        yield Case(name=f"ssd_step {dtype} p64 n128 state {dtype}", call=call)


def _hopper_table() -> Iterator[Case]:
    """Each set of features at the first size, and each other size as a model calls the scan."""
    first, *others = HOPPER_SIZES
    at_first = ((first, feature) for feature in HOPPER_FEATURES)
    for size, feature in itertools.chain(at_first, ((size, "model") for size in others)):
        headdim, d_state, nheads, batch, seqlen = size
        yield Case(
            name=f"ssd hopper p{headdim} n{d_state} h{nheads} b{batch} t{seqlen} {feature}",
            call=partial(
                _scan, torch.bfloat16, headdim, d_state, 256, name="hopper", nheads=nheads, batch=batch,
                seqlen=seqlen, **HOPPER_FEATURES[feature],
            ),
            quick=(size, feature) == (first, "model"), only="sm_90",
        )  # fmt: skip


def _table(
    operator: str, run: Callable[..., None], sizes: Sequence[tuple[int, ...]], features: dict[str, dict[str, Any]],
    words: str,
) -> Iterator[Case]:  # fmt: skip
    """Each dtype at each size as a model calls the operator, and every other set of features at the first size.

    The latter in bf16 and fp32: fp16 takes the configurations of bf16.
    """
    first, *others = features
    as_a_model = itertools.product(sizes, [first], DTYPES)
    with_features = itertools.product(sizes[:1], others, ["bf16", "fp32"])
    for size, feature, dtype in itertools.chain(as_a_model, with_features):
        yield Case(
            name=f"{operator} {dtype} {words.format(*size)} {feature}",
            call=partial(run, DTYPES[dtype], *size, **features[feature]),
            quick=(size, feature, dtype) == (sizes[0], first, "bf16"),
        )


def _scan(
    dtype: torch.dtype, headdim: int, d_state: int, chunk_size: int, *, name: str = "portable", nheads: int = NHEADS,
    batch: int = 1, seqlen: int = SEQLEN, D: str = "", dt_bias: bool = False, initial_state: bool = False,
    cu_seqlens: bool = False, **options: Any,
) -> None:  # fmt: skip
    """As a model calls the scan: x, B and C are views into the output of the convolution, dt into the projection's."""
    d_inner, nseqs = nheads * headdim, 3 if cu_seqlens else batch
    x, B, C = _new(batch, seqlen, d_inner + 2 * d_state, dtype=dtype).split([d_inner, d_state, d_state], dim=-1)
    get_op("ssd", name)(
        x.unflatten(-1, (nheads, headdim)),
        _new(batch, seqlen, 2 * d_inner + 2 * d_state + nheads, dtype=dtype)[..., -nheads:],
        _new(nheads),
        B.unflatten(-1, (1, d_state)),
        C.unflatten(-1, (1, d_state)),
        chunk_size=chunk_size,
        D={"": None, "head": _new(nheads), "channel": _new(nheads, headdim)}[D],
        dt_bias=_new(nheads) if dt_bias else None,
        initial_state=_new(nseqs, nheads, headdim, d_state) if initial_state else None,
        cu_seqlens=_bounds(nseqs) if cu_seqlens else None,
        return_final_state=True,
        **options,
    )


def _conv(
    dtype: torch.dtype, width: int, *, bias: bool = False, initial_window: bool = False, cu_seqlens: bool = False,
    **options: Any,
) -> None:  # fmt: skip
    """On a view into the projection's output."""
    nseqs = 3 if cu_seqlens else 1
    get_op("causal_conv1d", "triton")(
        _new(1, SEQLEN, 2 * CHANNELS, dtype=dtype)[..., CHANNELS:],
        _new(CHANNELS, width, dtype=dtype),
        _new(CHANNELS, dtype=dtype) if bias else None,
        initial_window=_new(nseqs, CHANNELS, width - 1, dtype=dtype) if initial_window else None,
        cu_seqlens=_bounds(nseqs) if cu_seqlens else None,
        **options,
    )


def _conv_step(dtype: torch.dtype, width: int, *, slots: bool = False) -> None:
    get_op("causal_conv1d_step", "triton")(
        _new(8, 2 * CHANNELS, dtype=dtype)[..., CHANNELS:],
        _new(8, CHANNELS, width - 1, dtype=dtype),
        _new(CHANNELS, width, dtype=dtype),
        _new(CHANNELS, dtype=dtype),
        activation="silu",
        slots=_new(8, dtype=torch.int32) if slots else None,
    )


def _norm(dtype: torch.dtype, width: int, groups: int) -> None:
    """The gate is a view into the projection's output."""
    y, z = _new(1, SEQLEN, width, dtype=dtype), _new(1, SEQLEN, 2 * width, dtype=dtype)[..., :width]
    get_op("gated_rms_norm", "triton")(y, z, _new(width, dtype=dtype), eps=1e-5, groups=groups)


def _step(
    dtype: torch.dtype, headdim: int, d_state: int, *, D: bool = False, z: bool = False, dt_bias: bool = False,
    slots: bool = False, state_dtype: torch.dtype = torch.float32, **options: Any,
) -> None:  # fmt: skip
    x, B, C = _new(8, NHEADS * headdim + 2 * d_state, dtype=dtype).split([NHEADS * headdim, d_state, d_state], dim=-1)
    get_op("ssd_step", "triton")(
        _new(8, NHEADS, headdim, d_state, dtype=state_dtype),
        x.unflatten(-1, (NHEADS, headdim)),
        _new(8, 2 * NHEADS, dtype=dtype)[..., NHEADS:],
        _new(NHEADS),
        B.unflatten(-1, (1, d_state)),
        C.unflatten(-1, (1, d_state)),
        D=_new(NHEADS) if D else None,
        z=_new(8, NHEADS, headdim, dtype=dtype) if z else None,
        dt_bias=_new(NHEADS) if dt_bias else None,
        slots=_new(8, dtype=torch.int32) if slots else None,
        **options,
    )


def _linear_step(dtype: torch.dtype, batch: int, outputs: int, **features: bool) -> None:
    if dtype == torch.float16 and batch > 1:
        features = {name: given for name, given in features.items() if name != "norm_weight"}
    shapes = {"norm_weight": (4096,), "up_weight": (outputs, 4096), "gate": (batch, 4096), "residual": (batch, outputs)}
    given = {name: _new(*shapes[name], dtype=dtype) for name in features}
    get_op("linear_step", "triton")(_new(batch, 4096, dtype=dtype), _new(outputs, 4096, dtype=dtype), eps=1e-5, **given)


def _direct_sums(dtype: torch.dtype, ranks: int, rows: int, gated: bool = False) -> None:
    """Of the first of several ranks, whose memory nobody has to see."""
    sums = object.__new__(DirectSums)
    sums.rank, sums.size, sums.rows, sums.columns = 0, ranks, rows, 4096
    sums._words = _words(ranks, rows * 4)
    partial, residual = (_new(rows, 4096, dtype=dtype) for _ in range(2))
    y, z = (_new(rows, 8192 // ranks, dtype=dtype) for _ in range(2))
    sums.add(partial, residual, gated=(y, z) if gated else None, eps=1e-5, span=ranks if gated else 1)


def _direct_step(dtype: torch.dtype, ranks: int, features: int, gated: bool = False) -> None:
    """As :func:`_direct_sums`."""
    step = object.__new__(DirectStep)
    step.rank, step.size, step._words = 0, ranks, _words(ranks, 1024)
    x, gate = (_new(1, features, dtype=dtype) for _ in range(2))
    norm = {"gate": gate, "norm_weight": _new(features, dtype=dtype), "eps": 1e-5, "span": ranks} if gated else {}
    step.project(x, _new(4096, features, dtype=dtype), _new(1, 4096, dtype=dtype), **norm)


def _words(ranks: int, channels: int) -> Words:
    words = object.__new__(Words)
    words.channels, words.addresses = channels, tuple(1 << 40 + rank for rank in range(ranks))
    words.calls = _new(channels, dtype=torch.int32)
    return words


def _attention_step(dtype: torch.dtype, batch: int, max_len: int) -> None:
    """32 heads of 128, in groups of four, of which the first half is rotated."""
    q, k, v = (_new(batch, heads, 128, dtype=dtype) for heads in (32, 8, 8))
    cache = [_new(batch, 8, max_len, 128, dtype=dtype) for _ in range(2)]
    get_op("attention_step", "triton")(
        q, k, v, _new(batch, 32), _new(batch, 32), *cache, _new(batch, dtype=torch.int64)
    )


def _rms_norm(dtype: torch.dtype, width: int) -> None:
    get_op("rms_norm", "triton")(_new(1, SEQLEN, width, dtype=dtype), _new(width, dtype=dtype), eps=1e-5)


def _swiglu(dtype: torch.dtype, width: int) -> None:
    get_op("swiglu", "triton")(_new(1, SEQLEN, width, dtype=dtype), _new(1, SEQLEN, width, dtype=dtype))


def _bounds(nseqs: int) -> Tensor:
    return _new(nseqs + 1, dtype=torch.int32)


def _new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")
