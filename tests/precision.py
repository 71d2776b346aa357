"""What a kernel was given, in fp64."""

from typing import Any

from torch import Tensor


def upcast(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs in fp64: the values that a kernel was given, not those they were rounded from."""
    floating = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {name: value.double() if name in floating else value for name, value in inputs.items()}
