"""Memory of a call on the CPU. Time is pytest-benchmark's own business there."""

import resource
import sys
from collections.abc import Callable

from kernelgate.metrics import Metric, metric


def memory(call: Callable[[], object]) -> dict[str, Metric]:
    """Bytes that torch's allocator held above the start of one call, exact and repeatable.

    ``peak_bytes`` includes the result; ``workspace_bytes`` is the peak less what the result keeps.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = call()
    # The profiler's own summaries drop the order of events, and with it the peak.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return {
        "peak_bytes": metric(peak, "B", "exact"),
        "workspace_bytes": metric(peak - held, "B", "exact"),
    }


def resident_peak_bytes() -> int:
    """The most memory this process ever had resident: noisy, and never falling."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
