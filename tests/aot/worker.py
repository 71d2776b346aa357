"""What runs in a process of its own: finding the launches of the cases, and one compilation."""

from triton.runtime.cache import triton_key

from tests.aot.capture import build, kernels, launches
from tests.aot.cases import cases
from tests.aot.launch import Launch
from tests.aot.targets import resources


def find(target: str, quick: bool) -> dict[str, list[Launch]]:
    """The launches of every case on `target`, or of the quick cases."""
    return {
        case.name: launches(case.call, target)
        for case in cases()
        if (case.quick or not quick) and case.only in (None, target)
    }


def compile_one(launch: Launch, target: str) -> dict[str, int]:
    """Compile, and read from the binary what it takes."""
    return resources(build(launch, target))


def every_kernel() -> set[str]:
    """The kernels that the cases have to launch."""
    return kernels()


# Reads all of Triton, for seconds, the first time: better here, once, than in every process forked from this one.
triton_key()
