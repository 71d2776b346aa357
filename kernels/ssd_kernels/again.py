"""An operator called again: a call like one before launches what that launched, where nobody watches.

A decode step calls dozens of operators, each for fewer microseconds of the GPU than its checks take of the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ssd_kernels.calls import Call
from ssd_kernels.launching import is_heard, noted
from ssd_kernels.repeating import Remembered
from ssd_kernels.watching import is_watched

_calls = Remembered()  # by operator and arguments


def again(
    name: str, run: Callable[[], tuple[Tensor, ...]], inputs: tuple[Tensor | None, ...], options: tuple[object, ...],
    indices: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `run` returns, contiguous tensors that it makes.

    Args:
        name: the operator's.
        run: checks `inputs` and `options` and launches kernels, which see nothing else but what `run` makes.
        inputs: every tensor of the call.
        options: everything else.
        indices: of `inputs`, whose values are checked where the host can read them: at every call.
    """
    if is_watched() or is_heard() or (indices is not None and not getattr(indices, "is_cuda", False)):
        return run()
    addresses: list[int] = []
    # Options that are equal mean the same where their types do: `groups` may be 1, and not True.
    options = (name, *options, *map(type, options))
    found, kind = _calls.find(inputs, options, addresses, differentiable=torch.is_grad_enabled())
    if found is not None:
        return found.on_its_device(addresses)
    with noted() as notes:
        outputs = run()
    call = None if kind is None else Call.of(notes, addresses, outputs)
    if kind is not None and call is not None:
        _calls.keep(kind, call)
    return outputs
