"""What a call on the CPU takes besides time, which is pytest-benchmark's business there: memory, undisturbed cores."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kernelgate.metrics import LOAD, Metric, metric

STAT = Path("/proc/stat")
_SHORTEST_MEASURABLE = 0.1  # seconds: the kernel counts in hundredths


class LoadMeter:
    """How much of the processors other programs used, from its making on."""

    def __init__(self) -> None:
        self._wall, self._own, self._busy = time.perf_counter(), time.process_time(), _busy_seconds()

    def read(self) -> dict[str, Metric]:
        """The fraction of all cores, as a metric; nothing where the system does not say or it was too short."""
        wall = time.perf_counter() - self._wall
        busy = _busy_seconds()
        if busy is None or self._busy is None or wall < _SHORTEST_MEASURABLE:
            return {}
        foreign = (busy - self._busy) - (time.process_time() - self._own)
        return {LOAD: metric(max(foreign, 0.0) / (wall * (os.cpu_count() or 1)), "1", "info")}


def _busy_seconds() -> float | None:
    """Seconds that all cores together were busy or were taken away by a hypervisor."""
    if not STAT.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = STAT.read_text().split(maxsplit=9)[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def memory(call: Callable[[], object]) -> dict[str, Metric]:
    """Bytes that torch's allocator held above the start of one call, exact and repeatable.

    ``peak_bytes`` includes the result; ``workspace_bytes`` is the peak less what the result keeps.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = call()
    held = peak = 0
    live: set[int] = set()
    for size, address in _allocations(profiler.profiler.kineto_results.experimental_event_tree()):
        # What was allocated before is the caller's. Torch reports such a block's release only where it once stood in
        # another profile, perhaps as a block of another size.
        if size < 0 and address not in live:
            continue
        (live.add if size > 0 else live.discard)(address)
        held += size
        peak = max(peak, held)
    del result
    return {
        "peak_bytes": metric(peak, "B", "exact"),
        "workspace_bytes": metric(peak - held, "B", "exact"),
    }


def _allocations(roots: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Size, negative for a release, and address of every allocation in a profile, in the order of time.

    The profiler's own summaries drop the order of events, and with it the peak.
    """
    from torch._C._profiler import _EventType

    found, events = [], list(roots)
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr))
    yield from ((size, address) for _, size, address in sorted(found, key=lambda each: each[0]))


def resident_peak_bytes() -> int:
    """The most memory this process ever had resident: noisy, and never falling."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
