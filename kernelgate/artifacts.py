"""What Triton compiled and launched for a call: exact quantities that explain a change of time, or forbid it."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kernelgate.metrics import Kind, Metric, metric

# Per kernel. Counters of the compiled code mean the same only under the same compiler; a spill is a spill under any.
_RESOURCES: dict[str, tuple[str, Kind, Any]] = {
    "n_regs": ("registers", "binary", "lower"),
    "n_spills": ("registers", "exact", "lower"),
    "shared": ("B", "binary", "lower"),
    "num_warps": ("warps", "binary", "equal"),
    "num_stages": ("stages", "binary", "equal"),
}


def triton_artifacts(call: Callable[[], object]) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """Launches of one call as metrics, and one description for each kernel launched.

    A resource of a kernel launched in several specialisations is that of the largest. Nothing is found where no Triton
    is loaded or where its interpreter runs the kernels.
    """
    if "triton" not in sys.modules:
        return {}, []
    with _recorded_launches() as launches:
        call()
    kernels = _describe(launches)
    metrics = {"triton_launches": metric(len(launches), "launches", "exact")} if launches else {}
    for kernel in kernels:
        for resource, (unit, kind, better) in _RESOURCES.items():
            if resource in kernel:
                key = f"{resource}:{kernel['name']}"
                largest = max(kernel[resource], metrics[key].worst) if key in metrics else kernel[resource]
                metrics[key] = metric(largest, unit, kind, better)
    return metrics, kernels


@contextmanager
def _recorded_launches() -> Iterator[list[Any]]:
    """The compiled kernels launched meanwhile, in order.

    Triton's launch hooks name the function launched but not the kernel object that knows its resources, so the method
    that prepares the hooks' argument, called once for each launch, is watched instead.
    """
    from triton.compiler.compiler import CompiledKernel

    launches: list[Any] = []
    prepare = CompiledKernel.launch_metadata

    def watch(kernel: Any, *args: Any) -> Any:
        launches.append(kernel)
        return prepare(kernel, *args)

    CompiledKernel.launch_metadata = watch
    try:
        yield launches
    finally:
        CompiledKernel.launch_metadata = prepare


def _describe(launches: Sequence[Any]) -> list[dict[str, Any]]:
    kernels: dict[tuple[str, str], dict[str, Any]] = {}
    for launched in launches:
        binary = hashlib.sha256(launched.kernel).hexdigest()[:16]
        kernel = kernels.setdefault((launched.name, binary), {"name": launched.name, "binary": binary, "launches": 0})
        kernel["launches"] += 1
        for resource in _RESOURCES:  # registers and spills are the kernel's, the rest its compile options'
            owner = launched if hasattr(launched, resource) else launched.metadata
            if hasattr(owner, resource):  # not every backend has stages
                kernel[resource] = getattr(owner, resource)
    return [kernels[key] for key in sorted(kernels)]
