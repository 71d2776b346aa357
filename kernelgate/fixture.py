"""The `benchmark` fixture: pytest-benchmark's, timing the device and collecting the other metrics."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Stats

from kernelgate import cpu, measure, plants
from kernelgate.declaration import Declaration, resolve_device
from kernelgate.metrics import ERROR, Metric, Observation, metric

if TYPE_CHECKING:
    import torch

    from kernelgate.gpu_state import StateMeter


class GateFixture(BenchmarkFixture):  # type: ignore[misc]
    """pytest-benchmark's fixture with `declare`, and with CUDA time where the call runs on CUDA.

    ``observation`` holds what was measured; it stays None until the benchmark ran, and where benchmarks are disabled.
    """

    def __init__(self, node: pytest.Item, **options: Any) -> None:
        super().__init__(node, **options)
        self._disable_gc = True
        self._declaration: Declaration | None = None
        self._lead: float | None = None
        self._replay: Callable[[], object] | None = None
        self._resident_before = cpu.resident_peak_bytes()
        self._load: cpu.LoadMeter | None = None
        self._state: StateMeter | None = None
        self.observation: Observation | None = None

    def declare(
        self,
        *,
        tokens: float | None = None,
        bytes: float | None = None,  # noqa: A002 -- the declared quantity's name
        flops: float | None = None,
        device: "torch.device | str | None" = None,
        error: Callable[[Any], Any] | None = None,
        error_budget: float | None = None,
        graph: bool = False,
        asked: str | None = None,
        ran: str | None = None,
        plants: Mapping[str, Callable[..., Any]] | None = None,
        info: Mapping[str, float] | None = None,
    ) -> None:
        """Say what the call to come does. Everything is optional.

        Args:
            tokens: Tokens processed by one call; gives tokens/s.
            bytes: Bytes one call has to move; gives B/s and the fraction of a measured copy.
            flops: Operations one call has to do; gives FLOP/s and the fraction of a measured matrix product.
            device: Where the call runs: CPU or CUDA. Default: CUDA if available.
            error: Numerical error of the call's result, against a reference of higher precision. It is tracked like a
                latency; a NaN fails the test.
            error_budget: The largest error that counts as right. Above it the test fails and no time is stored.
            graph: Time replays of a CUDA graph of the call. The arguments must be static. The latency of the eager
                call is kept apart as ``eager_s``.
            asked: The implementation asked for.
            ran: The implementation that ran. Both are stored with the row.
            plants: Calls to measure in its stead when a self-test asks for the plant of that name; see
                :mod:`kernelgate.plants`. They take the same arguments.
            info: Numbers of the test's own, by name, to be stored with the row as metrics that nothing judges.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has a value that means nothing, or the benchmark already ran.
            NotImplementedError: The device is neither a CPU nor CUDA.
        """
        if self._mode:
            raise ValueError("declare: expected before the benchmark runs, found after")
        self._declaration = Declaration(
            tokens=tokens,
            bytes=bytes,
            flops=flops,
            device=resolve_device(device),
            error=error,
            error_budget=error_budget,
            graph=graph,
            asked=asked,
            ran=ran,
            plants=plants,
            info=info,
        )

    @property
    def declaration(self) -> Declaration:
        """What was declared, or the defaults."""
        if self._declaration is None:
            self._declaration = Declaration(device=resolve_device(None))
        return self._declaration

    def pool(self, samples: Sequence[Sequence[float]]) -> None:
        """Make the statistics those of several processes, and store how many samples each of them gave."""
        self._keep(list(chain.from_iterable(samples)))
        self.extra_info["rounds"] = [len(each) for each in samples]

    def _raw(self, function_to_benchmark: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        function_to_benchmark = self._with_plant(function_to_benchmark, args, kwargs)
        self._load = cpu.LoadMeter()
        result = super()._raw(function_to_benchmark, *args, **kwargs)
        self._finish(result, partial(function_to_benchmark, *args, **kwargs))
        return result

    def _raw_pedantic(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        setup: Any = None,
        teardown: Any = None,
        **options: Any,
    ) -> Any:
        if self.declaration.graph:
            raise ValueError("graph: expected with benchmark(...), whose arguments are static; found with pedantic")
        self._load = cpu.LoadMeter()
        result = super()._raw_pedantic(target, args=args, kwargs=kwargs, setup=setup, teardown=teardown, **options)
        # A call that has to be prepared or cleaned up after cannot simply be repeated.
        self._finish(result, None if setup or teardown else partial(target, *args, **(kwargs or {})))
        return result

    def _with_plant(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Callable[..., Any]:
        """The call, with the fault in it that a self-test asks of this process."""
        declaration = self.declaration

        def seconds(function: Callable[..., Any]) -> float:
            if declaration.on_cuda and declaration.device is not None:
                from kernelgate import cuda

                measured: Callable[[], Any] = partial(function, *args, **kwargs)
                if declaration.graph:
                    measured = cuda.capture(measured, declaration.device)
                return cuda.typical_seconds(measured, declaration.device, graph=declaration.graph)
            samples = []
            for _ in range(5):
                start = time.perf_counter()
                function(*args, **kwargs)
                samples.append(time.perf_counter() - start)
            return statistics.median(samples)

        try:
            return plants.plant(call, declaration.device, declaration.plants or {}, seconds, declaration.error)
        except LookupError as error:
            pytest.skip(str(error))

    def _make_runner(self, function_to_benchmark: Callable[..., Any], args: Any, kwargs: Any) -> Callable[..., Any]:
        declaration = self.declaration
        if not declaration.on_cuda:
            return super()._make_runner(function_to_benchmark, args, kwargs)  # type: ignore[no-any-return]
        from kernelgate import cuda, gpu_state

        device = declaration.device
        assert device is not None  # noqa: S101 -- on_cuda
        call: Callable[[], Any] = partial(function_to_benchmark, *args, **kwargs)
        if declaration.graph:
            call = self._replay = cuda.capture(call, device)
        timer = cuda.device_timer(device)
        if self._lead is None or self._state is None:  # pedantic makes a runner for each round
            cuda.warm_up(call, device)
            self._lead = timer.lead_for(call)
            self._state = gpu_state.StateMeter(device)
        lead, state, overhead = self._lead, self._state, timer.overhead_of(graph=declaration.graph)

        def runner(loops_range: range | None, timer_: object = None) -> Any:
            if loops_range is None:
                timed = timer.time(call, lead, overhead)
                state.sampled()
                return timed
            seconds = sum(timer.time(call, lead, overhead)[0] for _ in loops_range)
            state.sampled()
            return seconds

        return runner

    def _calibrate_timer(self, runner: Callable[..., Any]) -> tuple[float, int, range]:
        """One call a round on CUDA, and as many rounds as fit into ``--benchmark-max-time`` of the wall's clock.

        The event clock's tick needs no calibration, and a second call in a round would find the L2 warm.
        """
        if not self.declaration.on_cuda:
            return super()._calibrate_timer(runner)  # type: ignore[no-any-return]
        walls = []
        for _ in range(3):
            start = time.perf_counter()
            runner(range(1))
            walls.append(time.perf_counter() - start)
        return statistics.median(walls), 1, range(1)

    def _finish(self, result: Any, call: Callable[[], object] | None) -> None:
        # Of the timed calls alone: their check may take longer, and other programs may be gone by then.
        load = self._load.read() if self._load is not None else {}
        error = self._checked_error(result)
        self._replay = None  # frees the graph's memory pool
        if self.disabled:
            return
        # Other programs disturb the wall's clock, not the device's, and not one of the project's own.
        disturbed = self._timer is time.perf_counter and not self.declaration.on_cuda
        state = load if disturbed else self._without_slowdowns()
        resident = cpu.resident_peak_bytes() - self._resident_before
        observation = measure.observe(call, self.stats.stats.data, self.declaration)
        metrics = {**observation.metrics, **state, "resident_growth_bytes": metric(resident, "B", "info")}
        if error is not None:
            metrics[ERROR] = metric(error, "1", "error")
        self.observation = Observation(samples=observation.samples, metrics=metrics, details=observation.details)

    def _without_slowdowns(self) -> dict[str, Metric]:
        """Drop the samples that a slowdown of the GPU spoiled, unless all are, and tell its state and their share."""
        samples = self.stats.stats.data
        if self._state is None or not samples:
            return {}
        slowed = self._state.slowed(len(samples))
        if any(slowed) and not all(slowed):
            self._keep([sample for sample, spoiled in zip(samples, slowed, strict=True) if not spoiled])
        return self._state.read(statistics.fmean(slowed))

    def _keep(self, samples: list[float]) -> None:
        kept = Stats()  # a new one: the old one has cached what a test may have asked it
        kept.data = samples
        self.stats.stats = kept

    def _checked_error(self, result: Any) -> float | None:
        """The largest numerical error of the eager and the replayed result, which must be within the budget."""
        measure_error, budget = self.declaration.error, self.declaration.error_budget
        if measure_error is None:
            return None
        results = [result] if self._replay is None else [result, self._replay()]
        try:
            errors = [float(measure_error(plants.perturb(each, measure_error))) for each in results]
        except LookupError as error:
            pytest.skip(str(error))
        largest = next((each for each in errors if math.isnan(each)), max(errors))
        if math.isnan(largest) or (budget is not None and largest > budget):
            if self.stats:
                self.stats.stats.data.clear()  # a wrong result has no time worth showing
            expectation = "a number" if budget is None else f"at most {budget:g}"
            pytest.fail(
                f"numerical error: expected {expectation}, found {largest:g}; its time is not stored", pytrace=False
            )
        return largest
