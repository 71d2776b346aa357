"""What Triton would have compiled, where there is no GPU to compile for."""

from typing import Any

from triton.compiler import CompiledKernel


class Compiled(CompiledKernel):
    """A compiled kernel whose launch notes what it takes."""

    function, packed_metadata = 77, (4, 1, 0)

    def __init__(self, launches: list[Any]) -> None:
        self.launches = launches

    def _init_handles(self) -> None:
        pass

    @property
    def run(self) -> Any:
        return lambda *args: self.launches.append(args)
