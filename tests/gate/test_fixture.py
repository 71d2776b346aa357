import json

import pytest
import torch

from kernelgate.declaration import Declaration, resolve_device

pytestmark = pytest.mark.correctness

TORCH_BENCHMARKS = """
    import pytest
    import torch

    DOUBLES = 1000


    def add(x):
        temporary = torch.empty(2 * DOUBLES, dtype=torch.float64)
        del temporary
        return x + 1


    @pytest.fixture
    def x():
        return torch.zeros(DOUBLES, dtype=torch.float64)


    def test_declared(benchmark, x):
        benchmark.declare(
            tokens=10, bytes=16 * DOUBLES, flops=DOUBLES, error=lambda out: (out - 1).abs().max() + 1e-9,
            error_budget=1e-6, asked="fast", ran="project.add", info={"regret": 0.25},
        )
        assert torch.equal(benchmark(add, x), torch.ones_like(x))


    def test_undeclared(benchmark, x):
        benchmark(add, x)


    def test_pedantic(benchmark, x):
        benchmark.pedantic(add, args=(x,), rounds=7)


    def test_pedantic_with_setup(benchmark, x):
        benchmark.pedantic(add, setup=lambda: ((x.clone(),), {}), rounds=7)


    def test_over_budget(benchmark, x):
        benchmark.declare(error=lambda out: 1e-3, error_budget=1e-6)
        benchmark(add, x)


    def test_nan(benchmark, x):
        benchmark.declare(error=lambda out: torch.tensor(float("nan")))
        benchmark(add, x)


    def test_declared_too_late(benchmark, x):
        benchmark(add, x)
        with pytest.raises(ValueError, match="declare: expected before the benchmark runs, found after"):
            benchmark.declare(tokens=1)
"""


@pytest.fixture
def measured(project, monkeypatch):
    """The outcome of the benchmarks above, and what was stored, by test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the figures below are those of a CPU
    project.pytester.makepyfile(test_it=TORCH_BENCHMARKS)
    result = project.run("--benchmark-json=out.json", "--benchmark-timer=time.perf_counter")
    document = json.loads((project.path / "out.json").read_text())
    return result, {benchmark["name"]: benchmark for benchmark in document["benchmarks"]}


def test_a_run_stores_what_was_declared_and_measured(measured):
    """One run, for it starts torch: everything about it is asserted here."""
    result, stored = measured
    result.assert_outcomes(passed=5, failed=2)
    metrics = {name: benchmark["extra_info"]["metrics"] for name, benchmark in stored.items()}

    # x and the result are 8000 bytes each; the temporary of 16000 was freed before the result was made.
    assert metrics["test_declared"]["peak_bytes"]["values"] == [16000]
    assert metrics["test_declared"]["workspace_bytes"]["values"] == [8000]
    assert metrics["test_undeclared"]["peak_bytes"] == metrics["test_declared"]["peak_bytes"]

    latency = metrics["test_declared"]["latency_s"]["values"][0]
    assert latency == stored["test_declared"]["stats"]["median"]
    assert metrics["test_declared"]["throughput"]["values"] == [pytest.approx(10 / latency)]
    assert metrics["test_declared"]["bandwidth"]["values"] == [pytest.approx(16000 / latency)]
    ceiling = metrics["test_declared"]["ceiling_copy"]["values"][0]
    assert metrics["test_declared"]["fraction_of_copy"]["values"] == [pytest.approx(16000 / latency / ceiling)]
    assert metrics["test_declared"]["numerical_error"]["values"] == [pytest.approx(1e-9)]
    assert stored["test_declared"]["extra_info"]["implementation"] == {"asked": "fast", "ran": "project.add"}
    assert stored["test_declared"]["extra_info"]["threads"] == 1
    assert metrics["test_declared"]["regret"] == {"values": [0.25], "unit": "1", "kind": "info", "better": "lower"}
    assert "throughput" not in metrics["test_undeclared"]

    assert stored["test_pedantic"]["stats"]["rounds"] == 7
    assert "peak_bytes" in metrics["test_pedantic"]
    assert "peak_bytes" not in metrics["test_pedantic_with_setup"]

    assert "test_over_budget" not in stored
    assert "test_nan" not in stored
    result.stdout.fnmatch_lines(
        [
            "numerical error: expected at most 1e-06, found 0.001; its time is not stored",
            "numerical error: expected a number, found nan; its time is not stored",
        ]
    )
    assert "test_over_budget  " not in result.stdout.str()


def test_a_disabled_benchmark_still_checks_its_error(project):
    project.pytester.makepyfile(
        test_it="""
        def test_wrong(benchmark):
            benchmark.declare(error=lambda out: out, error_budget=1e-6)
            benchmark(lambda: 1e-3)
        """
    )
    result = project.run("--benchmark-disable")
    result.assert_outcomes(failed=1)


def test_the_load_is_that_of_the_timed_calls_and_not_of_their_check(project):
    project.pytester.makepyfile(
        test_it="""
        from kernelgate import cpu, metrics

        checked = []
        cpu.LoadMeter.read = lambda self: {metrics.LOAD: metrics.metric(0.0 if checked else 0.9, "1", "info")}


        def error(result):
            checked.append(result)
            return 1e-9


        def test_busy_until_it_is_checked(benchmark):
            benchmark.declare(device="cpu", error=error)
            benchmark(lambda: 1)
        """
    )
    result = project.run("--benchmark-json=out.json", "--benchmark-timer=time.perf_counter")
    result.assert_outcomes(passed=1)
    (stored,) = json.loads((project.path / "out.json").read_text())["benchmarks"]
    assert stored["extra_info"]["metrics"]["foreign_load"]["values"] == [0.9]


class TestDeclaration:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"tokens": 0}, ValueError, "tokens: expected a positive finite number, found 0"),
            ({"info": {"regret": float("nan")}}, ValueError, "info: expected finite numbers, found nan for 'regret'"),
            ({"bytes": float("inf")}, ValueError, "bytes: expected a positive finite number, found inf"),
            ({"flops": "1e9"}, TypeError, "flops: expected a number, found str"),
            ({"tokens": True}, TypeError, "tokens: expected a number, found bool"),
            ({"error": 0.1}, TypeError, "error: expected a function of the result, found float"),
            ({"error_budget": 0.1}, ValueError, "error_budget: expected together with error=, found alone"),
            ({"graph": 1}, TypeError, "graph: expected True or False, found 1"),
            ({"graph": True, "device": torch.device("cpu")}, ValueError, "graph: expected a CUDA device, found cpu"),
            ({"asked": 3}, TypeError, "asked: expected a string, found int"),
        ],
    )
    def test_a_mistake_names_argument_expectation_and_finding(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Declaration(**arguments)

    def test_only_cpu_and_cuda_are_supported(self):
        with pytest.raises(NotImplementedError, match="device: expected cpu or cuda, found meta"):
            resolve_device("meta")

    def test_the_default_device_is_cuda_where_there_is_one(self):
        assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_pedantic_calls_code_without_torch_as_often_as_asked(project):
    project.pytester.makepyfile(
        test_it="""
        def test_calls(benchmark):
            calls = []
            benchmark.pedantic(lambda: calls.append(1), rounds=7)
            assert len(calls) == 7
        """
    )
    assert project.run().ret == 0
