"""What the operators check of a tensor: each error names the argument, what was expected, and what was found."""

import itertools
import reprlib
from collections.abc import Iterable

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)


def wants_gradient(tensors: Iterable[object]) -> bool:
    """Whether autograd is to record what is made of these."""
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in tensors)


def expect_tensor(name: str, tensor: object, *, optional: bool = False) -> None:
    """Expect a tensor, or None where it is optional.

    The checks of shapes do, too: every tensor of a call passes one of them before anything is asked of it.
    """
    if not isinstance(tensor, Tensor) and not (optional and tensor is None):
        expected = "a tensor or None" if optional else "a tensor"
        raise TypeError(f"{name} must be {expected}, got {reprlib.repr(tensor)}")


def expect_ndim(name: str, tensor: Tensor, meaning: str) -> None:
    """Expect a tensor with the dimensions that `meaning`, such as "(batch, channels)", lists."""
    expect_tensor(name, tensor)
    expected = meaning.count(",") + 1
    if tensor.ndim != expected:
        raise ValueError(f"{name} must have {expected} dimensions {meaning}, got shape {tuple(tensor.shape)}")


def expect_shape(
    name: str, tensor: Tensor | None, meaning: str, shape: tuple[int, ...], *, optional: bool = False
) -> None:
    """Expect a tensor of a shape, or None where it is optional."""
    expect_tensor(name, tensor, optional=optional)
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(tensor.shape)}")


def expect_dtype(name: str, tensor: Tensor | None, allowed: tuple[torch.dtype, ...] = FLOATING) -> None:
    """Expect one of some dtypes, of a tensor that is given."""
    if tensor is not None and tensor.dtype not in allowed:
        raise TypeError(f"{name}: dtype must be one of {allowed}, got {tensor.dtype}")


def expect_same_dtype(name: str, tensor: Tensor | None, of: str, main: Tensor) -> None:
    """Expect the dtype of another argument, of a tensor that is given."""
    if tensor is not None and tensor.dtype != main.dtype:
        raise TypeError(f"{name}: dtype must be that of {of}, {main.dtype}, got {tensor.dtype}")


def expect_device(of: str, main: Tensor, **others: Tensor | None) -> None:
    """Expect every other tensor that is given on the device of the main one."""
    device = main.device
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on the device of {of}, {device}, got {tensor.device}")


def expect_skip(D: Tensor | None, nheads: int, headdim: int) -> None:
    """Expect a skip connection per head or per channel, if there is one."""
    if isinstance(D, Tensor) and D.ndim == 2:
        expect_shape("D", D, "(nheads, headdim)", (nheads, headdim))
    else:
        expect_shape("D", D, "(nheads,)", (nheads,), optional=True)


def expect_dt_limit(dt_limit: tuple[float, float]) -> None:
    """Expect the bounds of the step in order."""
    if len(dt_limit) != 2 or not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit must be (low, high) with low at most high, got {dt_limit}")


def expect_slots(slots: Tensor | None, batch: int, nslots: int, of: str) -> None:
    """Expect an index for each of `batch` rows into the `nslots` slots of the argument `of`; row i by default."""
    if slots is None:
        if batch > nslots:
            raise ValueError(f"{of} must have at least as many slots as there are rows, {batch}, got {nslots}")
        return
    expect_shape("slots", slots, "(batch,)", (batch,), optional=True)
    expect_dtype("slots", slots, INDICES)


def expect_different_slots(slots: Tensor | None, nslots: int) -> None:
    """Expect every index in [0, nslots), none twice; read on a CPU only, and never while torch.compile traces."""
    if slots is None or slots.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values: list[int] = slots.tolist()
    if len(set(values)) < len(values) or any(not 0 <= value < nslots for value in values):
        raise ValueError(f"slots must be different indices in [0, nslots {nslots}), got {reprlib.repr(values)}")


def expect_cu_seqlens(cu_seqlens: Tensor, x: Tensor) -> int:
    """Expect bounds of sequences packed in x (1, seqlen, …), and return nseqs; values are read as those of slots are.

    Raises:
        ValueError, TypeError: a shape, device, dtype or value that does not fit, or no tensor.
    """
    expect_tensor("cu_seqlens", cu_seqlens, optional=True)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens must have shape (nseqs + 1,), nseqs >= 0, got {tuple(cu_seqlens.shape)}")
    expect_dtype("cu_seqlens", cu_seqlens, INDICES)
    if x.shape[0] != 1:
        raise ValueError(f"x: with cu_seqlens the batch must be 1, got {x.shape[0]}")
    if cu_seqlens.shape[0] == 1 and x.shape[1] > 0:
        raise ValueError(f"cu_seqlens must bound the seqlen {x.shape[1]} tokens of x, got no sequence, shape (1,)")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        sequence_bounds(cu_seqlens, x.shape[1])
    return cu_seqlens.shape[0] - 1


def sequence_bounds(cu_seqlens: Tensor, seqlen: int) -> list[int]:
    """The values of cu_seqlens, read by the host.

    Raises:
        ValueError: they do not run from 0 to `seqlen` without decreasing.
    """
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != seqlen or any(a > b for a, b in itertools.pairwise(bounds)):
        raise ValueError(
            f"cu_seqlens must start at 0, end at seqlen {seqlen} and never decrease, got {reprlib.repr(bounds)}"
        )
    return bounds
