"""Faults planted for the gate's self-test: what it must find, made by the process that measures.

A plant is named by an environment variable, so that a benchmark needs to know nothing of it. What only a project can
make worse in its own way, a configuration for one, it declares: ``benchmark.declare(plants={"detuned": call})``.
"""

import os
import time
from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VARIABLE = "KERNELGATE_PLANT"

SLOWER = "slower"  # slower:0.03, the work of 3 % of the call's time after it
BYTES = "bytes"  # bytes:512, a buffer of that size
LAUNCH = "launch"  # a launch that does nothing
COPY = "copy"  # a copy of the largest argument, made by the host's code: no kernel changes
ERROR = "error"  # error:1.25, a result that much further from the truth

Call = Callable[..., Any]


def planted() -> str:
    """The name of the plant of this process, empty without one."""
    return os.environ.get(VARIABLE, "")


def plant(
    call: Call,
    device: "torch.device | None",
    declared: Mapping[str, Call],
    seconds: Callable[[Call], float],
    error: Callable[[Any], Any] | None,
) -> Call:
    """A benchmark's call with this process's plant in it; the call itself where there is none.

    Args:
        call: What the benchmark measures.
        device: Where it runs.
        declared: Plants of the benchmark's own, by name.
        seconds: Measures a call.
        error: Measures the error of a result, where the benchmark declared how; see :func:`perturb`.

    Raises:
        LookupError: The plant is one that this benchmark does not have.
    """
    name, _, amount = planted().partition(":")
    if name == ERROR and error is None:
        raise LookupError(f"plant {planted()!r} needs an error to be declared")
    if not name or name == ERROR:
        return call
    if name in declared:
        return declared[name]
    on_cuda = device is not None and device.type == "cuda"
    if name == SLOWER:
        return _followed(call, _spin(float(amount) * seconds(call), device if on_cuda else None))
    if name == BYTES and device is not None:
        return _preceded(call, lambda *_, **__: _buffer(int(amount), device))
    if name == LAUNCH and on_cuda:
        return _followed(call, _spin(0.0, device))
    if name == COPY and device is not None:
        return _preceded(call, lambda *args, **kwargs: _largest(args, kwargs).clone())
    raise LookupError(f"plant {planted()!r} is none of this benchmark's")


def perturb(result: Any, error: Callable[[Any], Any]) -> Any:
    """A result whose relative error is larger by the factor of an `error` plant; the result itself without one.

    The noise is independent of the error that is there, so that their squares add up.

    Raises:
        LookupError: The result is no tensor, or its error was measured elsewhere and does not follow it.
    """
    name, _, factor = planted().partition(":")
    if name != ERROR:
        return result
    import torch

    if not isinstance(result, torch.Tensor):
        raise LookupError(f"plant {planted()!r} needs a result that is a tensor, found {type(result).__name__}")
    before = float(error(result))
    wanted = before * (float(factor) ** 2 - 1) ** 0.5
    exact = result.double()
    generator = torch.Generator(result.device).manual_seed(0)
    noise = torch.randn(exact.shape, generator=generator, dtype=exact.dtype, device=exact.device)
    worse = exact + noise * (wanted * exact.norm() / noise.norm())
    if before > 0 and float(error(worse)) == before:
        raise LookupError(f"plant {planted()!r} needs an error that follows the result of the call measured")
    return worse


def _followed(call: Call, then: Callable[[], None]) -> Call:
    def slower(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        then()
        return result

    return slower


def _preceded(call: Call, first: Call) -> Call:
    def hungrier(*args: Any, **kwargs: Any) -> Any:
        held = first(*args, **kwargs)
        result = call(*args, **kwargs)
        del held
        return result

    return hungrier


def _spin(seconds: float, device: "torch.device | None") -> Callable[[], None]:
    if device is None:

        def wait() -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        return wait
    import torch

    from kernelgate import cuda

    cycles = int(seconds * cuda.device_timer(device).cycles_per_second)
    return lambda: torch.cuda._sleep(cycles)


def _buffer(size: int, device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.empty(size, dtype=torch.uint8, device=device)


def _largest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "torch.Tensor":
    import torch

    tensors = [each for each in chain(args, kwargs.values()) if isinstance(each, torch.Tensor)]
    if not tensors:
        raise LookupError(f"plant {planted()!r} needs a tensor among the arguments, found none")
    return max(tensors, key=lambda tensor: tensor.numel())
