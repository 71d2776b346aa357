"""What a benchmark says about itself: where it runs, the work it does, how right its result has to be."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The checked arguments of `GateFixture.declare`, which documents them."""

    tokens: float | None = None
    bytes: float | None = None
    flops: float | None = None
    device: "torch.device | None" = None
    error: Callable[[Any], Any] | None = None
    error_budget: float | None = None
    graph: bool = False
    asked: str | None = None
    ran: str | None = None
    plants: Mapping[str, Callable[..., Any]] | None = None
    info: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Reject what could only be a mistake.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the right type and a value that means nothing.
        """
        for name in ("tokens", "bytes", "flops", "error_budget"):
            _require_positive(name, getattr(self, name))
        if self.error is not None and not callable(self.error):
            raise TypeError(f"error: expected a function of the result, found {type(self.error).__name__}")
        if self.error_budget is not None and self.error is None:
            raise ValueError("error_budget: expected together with error=, found alone")
        if not isinstance(self.graph, bool):
            raise TypeError(f"graph: expected True or False, found {self.graph!r}")
        if self.graph and not self.on_cuda:
            raise ValueError(f"graph: expected a CUDA device, found {self.device or 'no device'}")
        for name, plant in (self.plants or {}).items():
            if not callable(plant):
                raise TypeError(f"plants: expected calls, found {type(plant).__name__} for {name!r}")
        for name, value in (self.info or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"info: expected finite numbers, found {value!r} for {name!r}")
        for name in ("asked", "ran"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: expected a string, found {type(value).__name__}")

    @property
    def on_cuda(self) -> bool:
        """Whether time is the device's rather than the host's."""
        return self.device is not None and self.device.type == "cuda"


def resolve_device(device: "torch.device | str | None") -> "torch.device | None":
    """The device with its index; by default CUDA where there is one, otherwise the CPU.

    None stands for code without torch: nobody has imported it, so there are no tensors to measure, and importing it
    for their sake would cost such a project seconds.

    Raises:
        NotImplementedError: The device is neither a CPU nor CUDA.
    """
    if "torch" not in sys.modules:
        if device is None or str(device) == "cpu":
            return None
        raise NotImplementedError(f"device: expected cpu where torch is not imported, found {device}")
    import torch

    resolved = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if resolved.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"device: expected cpu or cuda, found {resolved}")
    if resolved == torch.device("cuda"):  # without an index, which names no device
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def _require_positive(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, found {value}")
