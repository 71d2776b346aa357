"""Memory of a call on the CPU. Time is pytest-benchmark's own business there."""

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kernelgate.metrics import Metric, metric


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
