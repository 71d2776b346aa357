"""The kernels that a call of the scan launches on a Hopper GPU, with their configurations and what decided them.

For :func:`ssd_kernels.explain.explain`; a test compares them with what is launched.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ssd_kernels.device import is_hopper, multiprocessors
from ssd_kernels.hopper.configs import CHUNK, SEGMENT_STATES, Config, ScanConfig, prepare_config, scan_config
from ssd_kernels.hopper.coverage import covers
from ssd_kernels.interface import Sizes
from ssd_kernels.portable import launches as portable

Launch = tuple[str, Config | ScanConfig, str]


def ssd_launches(
    name: str, *, x: Tensor, B: Tensor, C: Tensor, chunk_size: int, cu_seqlens: Tensor | None,
    return_chunk_states: bool, **others: Any,
) -> tuple[str, list[Any]]:  # fmt: skip
    """Which kernels `"triton"` or `"hopper"` takes for checked arguments of the scan, and why; and their launches.

    Raises:
        NotImplementedError, RuntimeError: `"hopper"` does not take this call, or not on this device.
    """
    if name == "hopper" and not is_hopper(x.device):
        raise RuntimeError(f"x must be on a GPU of compute capability 9.0 for 'hopper', got device {x.device}")
    why_not = covers(
        x, B, C, chunk_size=chunk_size, dt_softplus=others["dt_softplus"], dt_low=others["dt_limit"][0],
        cu_seqlens=cu_seqlens, return_chunk_states=return_chunk_states,
    )  # fmt: skip
    if why_not is None:
        return "the Hopper kernels cover it", list(_hopper(x, B, chunk_size, cu_seqlens, others["carry"]))
    if name == "hopper":
        raise NotImplementedError(f"'hopper' does not take this call: {why_not}; 'triton' does, by other kernels")
    arguments = {"x": x, "B": B, "C": C, "chunk_size": chunk_size, "cu_seqlens": cu_seqlens, **others}
    launches: Callable[..., Iterator[Any]] = portable.LAUNCHES["ssd"]  # type: ignore[assignment]
    why = f"the portable kernels, as for the Hopper kernels {why_not}"
    return why, list(launches(**arguments, return_chunk_states=return_chunk_states))


def _hopper(x: Tensor, B: Tensor, chunk_size: int, cu_seqlens: Tensor | None, carry: str) -> Iterator[Launch]:
    sizes = Sizes.of(x, B, cu_seqlens)
    if sizes.batch == 0 or sizes.seqlen == 0:
        return
    period = chunk_size // CHUNK if carry == "none" else None
    config = scan_config(sizes, period, multiprocessors(x.device))
    yield "_prepare_kernel", prepare_config(), f"products and decays of chunks of {CHUNK}"
    if config.cut.segments > 1 and period is None:
        yield "_segment_states_kernel", SEGMENT_STATES, f"pieces of {config.cut.segments} segments of a sequence"
    programs = f"{config.cut.segments} programs share a sequence" if config.cut.segments > 1 else "a sequence each"
    why = f"nheads={sizes.nheads}, headdim={sizes.headdim}, d_state={sizes.d_state}: {programs}"
    yield "_scan_kernel", config, why
