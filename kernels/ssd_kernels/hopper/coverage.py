"""Which calls the Hopper kernels take: one rule, for the operator, for the dispatch and for what is said of them."""

import functools
import itertools

import torch
from torch import Tensor

from ssd_kernels.device import is_hopper
from ssd_kernels.hopper.configs import CHUNK, D_STATES, PART
from ssd_kernels.hopper.slots import count_slots

Shape = tuple[int, ...]  # or strides


def covers(
    x: Tensor, B: Tensor, C: Tensor, *, chunk_size: int, dt_softplus: bool, dt_low: float, cu_seqlens: Tensor | None,
    return_chunk_states: bool,
) -> str | None:  # fmt: skip
    """None if the Hopper kernels take a call with these arguments, which fit together; or why they do not.

    Any length, batch, number of heads, A, D, dt that is not negative, and state will do. `dt_low`: the first of
    `dt_limit`. Reads no element.
    """
    if not is_hopper(x.device):
        return f"x must be on a GPU of compute capability 9.0, got device {_name(x.device)}"
    return fits(
        x, B, C, chunk_size=chunk_size, dt_softplus=dt_softplus, dt_low=dt_low, cu_seqlens=cu_seqlens,
        return_chunk_states=return_chunk_states,
    )  # fmt: skip


def fits(
    x: Tensor, B: Tensor, C: Tensor, *, chunk_size: int, dt_softplus: bool, dt_low: float, cu_seqlens: Tensor | None,
    return_chunk_states: bool,
) -> str | None:  # fmt: skip
    """As :func:`covers`, whatever the device."""
    if dt_low < 0 and not dt_softplus:
        # A state that decays for a while and grows for another is not forgotten where it is smallest.
        return f"dt_limit must begin at 0 or above where dt_softplus is False, got {dt_low}"
    nseqs = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    why_not = _unfit_geometry(
        x.dtype, x.shape, x.stride(), B.shape, B.stride(), C.stride(), nseqs, chunk_size, return_chunk_states
    )
    if why_not is None:
        for name, tensor in (("x", x), ("B", B), ("C", C)):
            if tensor.data_ptr() % 16:
                return f"{name} must start at a multiple of 16 bytes, got offset {tensor.data_ptr() % 16}"
    return why_not


@functools.lru_cache(maxsize=1024)
def _unfit_geometry(
    dtype: torch.dtype, x_shape: Shape, x_strides: Shape, B_shape: Shape, B_strides: Shape, C_strides: Shape,
    nseqs: int | None, chunk_size: int, return_chunk_states: bool,
) -> str | None:  # fmt: skip
    """What the kernels do not take of anything but addresses, found once for calls that are alike."""
    batch, seqlen, nheads, headdim = x_shape
    ngroups, d_state = B_shape[2:]
    if dtype != torch.bfloat16:
        return f"x: dtype must be torch.bfloat16, got {dtype}"
    if headdim % PART:
        return f"headdim must be a multiple of {PART}, got {headdim}"
    if d_state not in D_STATES:
        return f"d_state must be one of {D_STATES}, got {d_state}"
    if chunk_size % CHUNK:
        # What is not finite, or restarts, keeps to a chunk of the caller's.
        return f"chunk_size must be a multiple of {CHUNK}, got {chunk_size}"
    if return_chunk_states:
        return "return_chunk_states must be False, got True"
    # A row of the workspace has 4 · CHUNK elements; TMA counts them in 32 bits.
    elements = batch * count_slots(seqlen, nseqs, CHUNK) * CHUNK * max(4 * nheads, ngroups)
    if elements >= 2**31:
        return f"x must have fewer tokens and heads: their decays take {elements} elements, at most {2**31 - 1} fit"
    named = (("x", x_shape, x_strides), ("B", B_shape, B_strides), ("C", B_shape, C_strides))
    return next((why for why in itertools.starmap(_unfit_strides, named) if why), None)


def _unfit_strides(name: str, shape: Shape, strides: Shape) -> str | None:
    """Why TMA cannot load tiles of a bf16 tensor: it wants rows of whole channels at multiples of 16 bytes."""
    if strides[-1] != 1:
        return f"{name} must have channels side by side, got strides {strides}"
    if any(
        size > 1 and (stride <= 0 or stride % 8 or stride >= 2**39)
        for size, stride in zip(shape[:-1], strides[:-1], strict=True)
    ):
        return f"{name} must have positive strides of multiples of 8 elements, got {strides}"
    return None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
