"""What torch's dispatcher is asked for while something runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    """A mode that notes the operators it sees, and with which arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    @property
    def operators(self) -> list[Any]:
        """One after the other."""
        return [operator for operator, _ in self.calls]

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls.append((operator, args))
        return operator(*args, **(kwargs or {}))
