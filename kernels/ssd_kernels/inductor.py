"""Operators that torch's compiler knows before it meets them in a graph.

An operator that inductor does not know it lowers to a call, all by itself. But torch 2.11 and 2.12 first spell out for
a log, read or not, what its arguments are made of, and a residual stream anew wherever it is used: a text that grows by
a factor with each layer, and keeps the compiler for minutes and more where an operator is first met some layers down
(torch/_inductor/graph.py, `GraphLowering.call_function`; since 2.13 only where the log is read).
"""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_SPELLS_OUT = torch.__version__ < "2.13"

_Arguments = ParamSpec("_Arguments")
_Outputs = TypeVar("_Outputs")


def foreseen(name: str, fake: Callable[_Arguments, _Outputs]) -> Callable[_Arguments, _Outputs]:
    """What makes outputs of `ssd_kernels::name` without values, and tells inductor of the operator.

    A graph is made of such outputs before it is lowered, and the last time when inductor has been imported.
    """
    if not _SPELLS_OUT:
        return fake

    @functools.wraps(fake)
    def telling(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Outputs:
        if "torch._inductor.lowering" in sys.modules:
            _tell(getattr(torch.ops.ssd_kernels, name).default)
        return fake(*args, **kwargs)

    return telling


def _tell(operator: torch._ops.OpOverload) -> None:
    """Have inductor call the operator, with arguments of the strides that it would give it by itself."""
    from torch._inductor import lowering
    from torch._library.utils import get_layout_constraint_tag

    if operator not in lowering.lowerings:
        constraint = lowering.tag_to_layout_constraint(get_layout_constraint_tag(operator, with_default=True))
        lowering.make_fallback(operator, layout_constraint=constraint)
