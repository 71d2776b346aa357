"""The kernels that a call of each operator launches, in order, with their configurations and what decided them.

For :func:`ssd_kernels.explain.explain`; a test compares them with what is launched. Arguments are those of the
operators, checked; what the kernels do not support raises here as it does there.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ssd_kernels.interface import Sizes
from ssd_kernels.library import expect_runnable
from ssd_kernels.portable import configs
from ssd_kernels.portable.causal_conv1d import expect_width
from ssd_kernels.portable.configs import Config
from ssd_kernels.portable.gated_rms_norm import expect_three_rows
from ssd_kernels.portable.plan import Plan

Launch = tuple[str, Config, str]


def _ssd(
    x: Tensor, B: Tensor, chunk_size: int, carry: str, cu_seqlens: Tensor | None, return_chunk_states: bool, **_: Any
) -> Iterator[Launch]:
    expect_runnable("x", x, instead="chunked")
    sizes = Sizes.of(x, B, cu_seqlens)
    if sizes.batch == 0 or sizes.seqlen == 0:
        return
    longest = configs.max_chunk(x.dtype, sizes.d_state)
    plan = Plan(
        sizes=sizes, asked_chunk_size=chunk_size, carry=carry, every_state=return_chunk_states, max_chunk=longest
    )
    chunk = plan.chunk_size
    cut = f"chunks of {chunk}" if chunk == chunk_size else f"chunk_size {chunk_size} in chunks of {longest}"
    if cu_seqlens is not None:
        yield "_chunk_table_kernel", configs.CHUNK_TABLE, "cu_seqlens given: where chunks lie is found on the device"
    prepare = configs.prepare_config(x.dtype, sizes.d_state)
    yield "_prepare_kernel", prepare, f"steps, decays and products C·B, {cut}"
    heads = sizes.batch * plan.nsegments * sizes.nheads
    of_scan = (x.dtype, chunk, sizes.headdim, sizes.d_state, heads, x.device)
    scan = configs.chunk_scan_config(*of_scan, every_state=return_chunk_states)
    shape = {"headdim": sizes.headdim, "d_state": sizes.d_state, "heads of all segments": heads}
    if plan.passes_states:
        of = f"of {plan.segment} tokens" if cu_seqlens is None else "by each sequence's length"
        segments = f"segments {of}, for {sizes.nheads} heads and {sizes.seqlen} tokens"
        yield "_chunk_scan_kernel", configs.chunk_scan_config(*of_scan), f"states of {segments}"
        yield "_state_passing_kernel", configs.STATE_PASSING, segments
    yield "_chunk_scan_kernel", scan, f"carry {carry!r}, {_by(x, **shape)}"


def _causal_conv1d(
    x: Tensor, weight: Tensor, initial_window: Tensor | None, cu_seqlens: Tensor | None, return_final_window: bool,
    **_: Any,
) -> Iterator[Launch]:  # fmt: skip
    expect_runnable("x", x)
    expect_width(weight)
    nseqs = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if x.numel() or (return_final_window and nseqs * x.shape[2]):
        with_window = ", final windows in the same launch" if return_final_window else ""
        config = configs.causal_conv1d_config(packed=cu_seqlens is not None)
        yield "_causal_conv1d_kernel", config, f"one for every call{with_window}"


def _causal_conv1d_step(x: Tensor, weight: Tensor, **_: Any) -> Iterator[Launch]:
    expect_runnable("x", x)
    expect_width(weight)
    if x.numel():
        yield "_causal_conv1d_step_kernel", configs.causal_conv1d_step_config(), "one for every call"


def _gated_rms_norm(y: Tensor, z: Tensor, groups: int, **_: Any) -> Iterator[Launch]:
    expect_runnable("y", y)
    expect_runnable("z", z)
    expect_three_rows(y, z)
    width = y.shape[-1] // groups
    config = configs.gated_rms_norm_config(width)
    times = "once" if width <= config.block["BLOCK"] else "twice, as it does not fit a program"
    if y.numel():
        yield "_gated_rms_norm_kernel", config, f"a norm of {width} is read {times}"


def _ssd_step(state: Tensor, x: Tensor, **_: Any) -> Iterator[Launch]:
    expect_runnable("x", x)
    headdim, d_state = state.shape[2:]
    if x.shape[0]:
        why = f"headdim={headdim}, d_state={d_state}; state in {str(state.dtype).removeprefix('torch.')}"
        yield "_ssd_step_kernel", configs.ssd_step_config(headdim, d_state), why


def _mixer_step(xBC: Tensor, state: Tensor, weight: Tensor, **_: Any) -> Iterator[Launch]:
    yield from _causal_conv1d_step(xBC, weight)
    yield from _ssd_step(state, xBC)


def _linear_step(x: Tensor, weight: Tensor, up_weight: Tensor | None, **_: Any) -> Iterator[Launch]:
    expect_runnable("x", x)
    if x.shape[0] and weight.shape[0]:
        config = configs.linear_step_config(x.dtype, x.shape[0], up_weight is not None)
        yield "_linear_step_kernel", config, _by(x, tokens=x.shape[0], weights=1 if up_weight is None else 2)


def _attention_step(q: Tensor, keys: Tensor, **_: Any) -> Iterator[Launch]:
    expect_runnable("q", q)
    if q.numel():
        heads, max_len = keys.shape[0] * keys.shape[1], keys.shape[2]
        config = configs.attention_step_config(q.dtype, max_len, heads)
        yield "_attend_kernel", config, _by(q, heads=heads, max_len=max_len)
        yield "_weigh_kernel", configs.WEIGH, "the parts of each head"


def _rms_norm(x: Tensor, **_: Any) -> Iterator[Launch]:
    expect_runnable("x", x)
    if x.numel():
        yield "_rms_norm_kernel", configs.rms_norm_config(x.shape[-1]), f"a row of {x.shape[-1]} is read once"


def _swiglu(gate: Tensor, **_: Any) -> Iterator[Launch]:
    expect_runnable("gate", gate)
    if gate.numel():
        yield "_swiglu_kernel", configs.SWIGLU, "one for every call"


def _by(x: Tensor, **sizes: int) -> str:
    return ", ".join([str(x.dtype).removeprefix("torch."), *(f"{name}={size}" for name, size in sizes.items())])


LAUNCHES = {
    "ssd": _ssd,
    "causal_conv1d": _causal_conv1d,
    "causal_conv1d_step": _causal_conv1d_step,
    "gated_rms_norm": _gated_rms_norm,
    "ssd_step": _ssd_step,
    "mixer_step": _mixer_step,
    "linear_step": _linear_step,
    "attention_step": _attention_step,
    "rms_norm": _rms_norm,
    "swiglu": _swiglu,
}
