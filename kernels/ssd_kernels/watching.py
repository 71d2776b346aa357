"""Whether anything but the kernels has to see that an operator is called.

Torch's dispatcher tells whoever asked to hear of operators, and takes 16 µs of a slow host to pass a scan's arguments
on. Where nobody asked, an operator's function can be called, or what it launched before be launched, without it.
"""

import torch
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack


def is_watched() -> bool:
    """Whether operators are compiled, traced, transformed or profiled here, or a mode of torch's hears of them.

    That is torch.compile and torch.export; modes of `__torch_dispatch__` (fake tensors, make_fx, counters of FLOP) and
    of `__torch_function__` (a default device too); torch.func's transforms; torch.jit.trace; torch's profilers.
    """
    # The compiler first: it takes this for a constant, and never sees the others.
    return (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or _profiler_enabled()
    )
