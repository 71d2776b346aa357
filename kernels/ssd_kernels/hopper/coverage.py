"""Which calls the Hopper kernels take: one rule, for the operator, for the dispatch and for what is said of them."""

import torch
from torch import Tensor

from ssd_kernels.hopper.configs import CHUNK, D_STATES, PART
from ssd_kernels.hopper.device import is_hopper
from ssd_kernels.hopper.slots import count_slots
from ssd_kernels.interface import Sizes

_INT32 = 2**31


def covers(
    x: Tensor, B: Tensor, C: Tensor, *, chunk_size: int, cu_seqlens: Tensor | None, return_chunk_states: bool
) -> str | None:
    """None if the Hopper kernels take a call with these arguments, which fit together; or why they do not.

    Any length, batch, number of heads, A, D, dt and state will do. Reads no element.
    """
    if not is_hopper(x.device):
        return f"x must be on a GPU of compute capability 9.0, got device {_name(x.device)}"
    return fits(x, B, C, chunk_size=chunk_size, cu_seqlens=cu_seqlens, return_chunk_states=return_chunk_states)


def fits(
    x: Tensor, B: Tensor, C: Tensor, *, chunk_size: int, cu_seqlens: Tensor | None, return_chunk_states: bool
) -> str | None:
    """As :func:`covers`, whatever the device."""
    sizes = Sizes.of(x, B, cu_seqlens)
    nslots = count_slots(sizes.seqlen, sizes.nseqs, CHUNK)
    if x.dtype != torch.bfloat16:
        return f"x: dtype must be torch.bfloat16, got {x.dtype}"
    if sizes.headdim % PART:
        return f"headdim must be a multiple of {PART}, got {sizes.headdim}"
    if sizes.d_state not in D_STATES:
        return f"d_state must be one of {D_STATES}, got {sizes.d_state}"
    if chunk_size % CHUNK:
        # What is not finite, or restarts, keeps to a chunk of the caller's.
        return f"chunk_size must be a multiple of {CHUNK}, got {chunk_size}"
    if return_chunk_states:
        return "return_chunk_states must be False, got True"
    # A row of the workspace has 4 · CHUNK elements; TMA counts them in 32 bits.
    elements = sizes.batch * nslots * CHUNK * max(4 * sizes.nheads, sizes.ngroups)
    if elements >= _INT32:
        return f"x must have fewer tokens and heads: their decays take {elements} elements, at most {_INT32 - 1} fit"
    return next((why for why in (_why_not_tiled(*named) for named in (("x", x), ("B", B), ("C", C))) if why), None)


def _why_not_tiled(name: str, tensor: Tensor) -> str | None:
    """Why TMA cannot load tiles of a tensor, or None: it wants rows of whole channels at multiples of 16 bytes."""
    if tensor.stride(-1) != 1:
        return f"{name} must have channels side by side, got strides {tensor.stride()}"
    unit = 16 // tensor.itemsize
    if any(
        size > 1 and (stride <= 0 or stride % unit or stride * tensor.itemsize >= 2**40)
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    ):
        return f"{name} must have positive strides of multiples of {unit} elements, got {tensor.stride()}"
    if tensor.data_ptr() % 16:
        return f"{name} must start at a multiple of 16 bytes, got offset {tensor.data_ptr() % 16}"
    return None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
