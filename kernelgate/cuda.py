"""Device time, memory and graph replay of calls on a CUDA device."""

import functools
import gc
import hashlib
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from kernelgate.metrics import Metric, metric

T = TypeVar("T")

WARM_UP_SECONDS = 0.2
EAGER_ROUNDS = 30
ENOUGH_SECONDS = 0.5  # after so long a call is not repeated again for its host time, or for its eager one
OVERHEAD_ROUNDS = 200
# Between the events lies more than the work: what it takes to start the first kernel and to see the last one end. An
# empty kernel shows how much, but for this little of it. Fitted on an H200 to the durations that CUPTI gives of kernels
# between 4 and 530 µs, eager and in graphs: what remains lies between -0.12 and +0.26 µs.
EMPTY_KERNEL_SECONDS = 0.35e-6
TICK_SECONDS = 32e-9


class DeviceTimer:
    """Times single calls between two events: cold L2, and a device kept busy until the host has enqueued the call.

    Were the device idle when the first event is recorded, the host's launch latency would lie between the events.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        with torch.inference_mode(False):  # made inside the mode it could not be written outside of it
            self._scratch = torch.empty(max(2 * l2_bytes, 64 * 2**20), dtype=torch.uint8, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cycles_per_second = self._measure_clock()
        self._overheads: dict[bool, float] = {}

    def time(self, call: Callable[[], T], lead: float, overhead: float = 0.0) -> tuple[float, T]:
        """Device seconds of one call, and its result.

        Args:
            call: Enqueues work on the current stream.
            lead: Seconds the device spins first; see `lead_for`.
            overhead: Seconds between the events that are not the call's; see `overhead_of`.
        """
        with torch.cuda.device(self.device):
            self._scratch.zero_()
            torch.cuda._sleep(int(lead * self.cycles_per_second))
            self._start.record()
            result = call()
            self._end.record()
            self._end.synchronize()
        elapsed: float = self._start.elapsed_time(self._end) * 1e-3
        return max(elapsed - overhead, TICK_SECONDS), result

    def overhead_of(self, *, graph: bool) -> float:
        """Seconds that the events show above what the work takes, launched by itself or in a graph."""
        if graph not in self._overheads:

            def empty() -> None:
                torch.cuda._sleep(0)

            call = capture(empty, self.device) if graph else empty
            shown = sorted(self.time(call, lead=50e-6)[0] for _ in range(OVERHEAD_ROUNDS))
            middle = shown[OVERHEAD_ROUNDS // 4 : -OVERHEAD_ROUNDS // 4]
            # A mean, as the clock ticks too coarsely for a median: a tick is 1 % of a kernel of 3 µs.
            self._overheads[graph] = max(statistics.fmean(middle) - EMPTY_KERNEL_SECONDS, 0.0)
        return self._overheads[graph]

    def lead_for(self, call: Callable[[], object]) -> float:
        """Twice the longest of up to five host times of a warm call, in seconds, and room for recording the event."""
        torch.cuda.synchronize(self.device)
        longest, end = 0.0, time.perf_counter() + ENOUGH_SECONDS
        for _ in range(5):
            start = time.perf_counter()
            call()
            longest = max(longest, time.perf_counter() - start)
            torch.cuda.synchronize(self.device)
            if time.perf_counter() > end:
                break
        return 2 * longest + 20e-6

    def eager_seconds(self, call: Callable[[], object]) -> float:
        """Median host seconds from an idle device to an idle device, launches included, cold L2."""
        samples: list[float] = []
        end = time.perf_counter() + ENOUGH_SECONDS
        while not samples or (len(samples) < EAGER_ROUNDS and time.perf_counter() < end):
            self._scratch.zero_()
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            call()
            torch.cuda.synchronize(self.device)
            samples.append(time.perf_counter() - start)
        return statistics.median(samples)

    def _measure_clock(self) -> float:
        cycles = 20_000_000
        with torch.cuda.device(self.device):
            for _ in range(3):  # the first spins find the clock still low
                self._start.record()
                torch.cuda._sleep(cycles)
                self._end.record()
                self._end.synchronize()
        seconds: float = self._start.elapsed_time(self._end) * 1e-3
        return cycles / seconds


@functools.cache
def device_timer(device: torch.device) -> DeviceTimer:
    """The process's timer of a device; its scratch buffer and clock are measured once."""
    return DeviceTimer(device)


def identity(device: torch.device) -> str:
    """What tells one GPU from another of its kind, without naming it to the world: a hash of its UUID."""
    return hashlib.sha256(str(torch.cuda.get_device_properties(device).uuid).encode()).hexdigest()[:12]


def warm_up(call: Callable[[], object], device: torch.device) -> None:
    """Repeat the call until the device has worked without a pause long enough for its clock to settle."""
    for _ in range(2):  # the first may compile; of a long call, the second is enough
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
    while time.perf_counter() - start < WARM_UP_SECONDS:
        for _ in range(5):
            call()
        torch.cuda.synchronize(device)


def typical_seconds(call: Callable[[], object], device: torch.device, *, graph: bool) -> float:
    """Median device seconds of twenty warm calls."""
    timer = device_timer(device)
    warm_up(call, device)
    lead, overhead = timer.lead_for(call), timer.overhead_of(graph=graph)
    return statistics.median(timer.time(call, lead, overhead)[0] for _ in range(20))


def capture(call: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """Capture the call in a CUDA graph; the returned function replays it and returns the captured, static result.

    It keeps the call, and so what the call reads, in memory for as long as it lives itself.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compile, tune and create library handles outside the capture
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # a collection inside the capture may unload a module, which ends the capture with an error
        try:
            with torch.cuda.graph(graph):
                result = call()
        finally:
            if collecting:
                gc.enable()

    return functools.partial(_replay, graph, result, call)


def _replay(graph: torch.cuda.CUDAGraph, result: T, _call: Callable[[], T]) -> T:
    graph.replay()
    return result


def memory(call: Callable[[], object], device: torch.device) -> dict[str, Metric]:
    """Bytes requested of the caching allocator above the start of one call, exact and repeatable.

    ``peak_bytes`` includes the result; ``workspace_bytes`` is the peak less what the result keeps. The size of the
    blocks handed out, which `torch.cuda.max_memory_allocated` counts, depends on what was freed before the call, and so
    does ``reserved_bytes``, what the allocator took from the driver: it is for information.
    """
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    del result
    peak = after["requested_bytes.all.peak"] - before["requested_bytes.all.current"]
    kept = after["requested_bytes.all.current"] - before["requested_bytes.all.current"]
    reserved = after["reserved_bytes.all.peak"] - before["reserved_bytes.all.current"]
    return {
        "peak_bytes": metric(peak, "B", "exact"),
        "workspace_bytes": metric(peak - kept, "B", "exact"),
        "reserved_bytes": metric(reserved, "B", "info"),
    }


def device_launches(call: Callable[[], object], device: torch.device) -> int:
    """Kernels, copies and fills of any origin that one call puts on the device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type.name == "CUDA" for event in profiler.events())
