"""The self-test: faults planted on purpose, the record of their processes, and the operating curve drawn from it."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from kernelgate import plants
from kernelgate.baseline import Baseline
from kernelgate.commands import main
from kernelgate.machine import Machine
from kernelgate.metrics import LATENCY, Metric, Observation, metric, write_metrics
from kernelgate.operating import operating_curve
from kernelgate.replicate import Pool
from kernelgate.selftest import UNCHANGED, Record, make_records, read_record, record_of, records, write_record

pytestmark = pytest.mark.correctness

H200 = Path(__file__).resolve().parents[2] / "perf_baselines" / "nvidia-h200-140gib" / "selftests"
NAME = "test_it.py::test_work"
# 5 and 7 µs: a hundredth is two ticks of the device's clock.
SHORT = {
    "tests/perf/test_operators.py::test_ssd_step[bamba-9b-b1-float32]",
    "tests/perf/test_operators.py::test_causal_conv1d_step[bamba-9b-b64]",
}


def record(values, **planted):
    def metrics(times):
        return {NAME: {LATENCY: Metric(values=tuple(times), unit="s", kind="noisy")}}

    plants_ = {plant.replace("_", ":").replace("p", "."): metrics(times) for plant, times in planted.items()}
    return Record(facts={"device_id": "one"}, plants={UNCHANGED: metrics(values), **plants_})


def times(spread, count=30, seed=1):
    generator = random.Random(seed)
    return [1e-3 * math.exp(generator.gauss(0, spread)) for _ in range(count)]


class TestPlants:
    @pytest.fixture
    def planted(self, monkeypatch):
        return lambda name: monkeypatch.setenv(plants.VARIABLE, name)

    def plant(self, call, declared=None, seconds=1e-3):
        return plants.plant(call, torch.device("cpu"), declared or {}, lambda _: seconds, None)

    def test_without_one_the_call_is_itself(self, planted):
        planted("")
        assert self.plant(len) is len

    def test_slower_works_for_a_share_of_the_calls_time_after_it(self, planted):
        planted("slower:0.5")
        clock = iter(range(10**6))
        call = self.plant(lambda: next(clock), seconds=4e-3)
        import time

        start = time.perf_counter()
        assert call() == 0
        assert 2e-3 <= time.perf_counter() - start < 1.0

    def test_bytes_are_held_during_the_call(self, planted):
        from kernelgate.cpu import memory

        x = torch.ones(1000)
        before = memory(lambda: torch.add(x, 1))["peak_bytes"].worst
        planted("bytes:512")
        assert memory(lambda: self.plant(torch.add)(x, 1))["peak_bytes"].worst == before + 512

    def test_a_copy_is_of_the_largest_argument(self, planted):
        from kernelgate.cpu import memory

        planted("copy")
        small, large = torch.ones(10), torch.ones(1000)
        call = self.plant(lambda a, *, b: None)
        assert memory(lambda: call(small, b=large))["peak_bytes"].worst == large.nbytes

    def test_an_error_grows_by_its_factor(self, planted):
        exact = torch.randn(64, 64, dtype=torch.float64)
        found = exact.float() + 1e-3 * torch.randn(64, 64)

        def error(y):
            return float((y.double() - exact).norm() / exact.norm())

        planted("error:1.25")
        assert error(plants.perturb(found, error)) == pytest.approx(1.25 * error(found), rel=0.02)

    def test_an_error_that_was_measured_elsewhere_cannot_grow(self, planted):
        planted("error:1.25")
        with pytest.raises(LookupError, match="needs an error that follows the result"):
            plants.perturb(torch.ones(3), lambda _: 1e-3)

    def test_an_error_that_nobody_declared_cannot_grow(self, planted):
        planted("error:1.25")
        with pytest.raises(LookupError, match="needs an error to be declared"):
            self.plant(len)

    def test_a_benchmarks_own_plant_stands_in_for_the_call(self, planted):
        planted("detuned")
        assert self.plant(len, {"detuned": max}) is max

    @pytest.mark.parametrize("name", ["detuned", "launch", "no such plant"])
    def test_a_plant_that_a_benchmark_does_not_have_is_named(self, planted, name):
        planted(name)
        with pytest.raises(LookupError, match=name):
            self.plant(len)


class TestRecords:
    def test_a_record_reads_as_it_was_written(self, tmp_path):
        written = record([1e-3, 1.001e-3], slower_0p03=[1.03e-3, 1.03e-3])
        write_record(written, tmp_path / "record.json")
        assert read_record(tmp_path / "record.json").plants == written.plants

    def test_each_device_has_a_record_of_its_own(self):
        """Or pairs of neighbours would compare two devices."""

        def pool(*processes):
            observed = {
                number: Observation(
                    samples=(seconds,),
                    metrics={LATENCY: metric(seconds, "s", "noisy")},
                    details={"device_id": device},
                )
                for number, (device, seconds) in enumerate(processes)
            }
            return Pool(observations={NAME: observed})

        pools = {
            UNCHANGED: pool(("b", 2.0), ("a", 1.0), ("b", 2.1), ("a", 1.1)),
            "slower:0.03": pool(("a", 1.2), ("b", 2.2)),
            "copy": pool(("b", 3.0)),
        }
        machine = Machine(name="box", device={"type": "cuda"})
        first, second = make_records(machine, pools, commit="c", date="d")
        assert (first.facts["device_id"], second.facts["device_id"]) == ("a", "b")
        assert first.plants[UNCHANGED][NAME][LATENCY].values == (1.0, 1.1)
        assert second.plants[UNCHANGED][NAME][LATENCY].values == (2.0, 2.1)
        assert first.plants["slower:0.03"][NAME][LATENCY].values == (1.2,)
        assert first.plants["copy"] == {}
        assert second.plants["copy"][NAME][LATENCY].values == (3.0,)

    @pytest.mark.parametrize(("devices", "counts"), [(["a", "a"], True), (["a", "b"], False), ([None, None], False)])
    def test_a_baseline_counts_where_one_known_device_made_it(self, tmp_path, devices, counts):
        benchmarks = [
            {
                "fullname": f"test_it.py::test_{index}",
                "extra_info": {
                    "metrics": write_metrics({LATENCY: Metric(values=(1.0, 1.1), unit="s", kind="noisy")}),
                    **({} if device is None else {"device_id": device}),
                },
            }
            for index, device in enumerate(devices)
        ]
        document = {"kernelgate": {"machine_class": "box"}, "benchmarks": benchmarks}
        found = record_of(Baseline(tmp_path / "0001_c.json", document))
        assert (found is not None) == counts
        if found is not None:
            assert (found.processes, found.facts["device_id"]) == (2, "a")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "plants": {}}', '{"schema": 1, "plants": 3}'])
    def test_what_is_no_record_is_refused_by_name(self, tmp_path, text):
        path = tmp_path / "record.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"record.json: expected a record of a self-test"):
            read_record(path)


class TestCurve:
    def test_an_exact_fault_has_to_be_found_in_every_record(self):
        def with_launch(factor):
            values = times(0.001)
            return record(values, launch=[each * factor for each in values])

        def exact(*factors):
            return (
                operating_curve([with_launch(each) for each in factors], margin=0.01, mde=0.02).benchmarks[NAME].exact
            )

        assert exact(2, 2) == {"launch": True}
        assert exact(1, 2) == {"launch": False}
        assert exact(2, 1) == {"launch": False}

    def test_a_quiet_benchmark_raises_no_alarm_and_finds_what_it_says(self):
        found = operating_curve([record(times(0.001), slower_0p03=times(0.001, 5, seed=2))], margin=0.01, mde=0.02)
        assert found.alarmed == 0
        assert found.benchmarks[NAME].outcomes["SAME"] == found.gates

    def test_a_planted_slowdown_is_found_as_often_as_its_size_allows(self):
        unchanged = times(0.003)
        slow = {f"slower_0p0{n}": [each * (1 + n / 100) for each in unchanged] for n in (1, 2, 3, 5)}
        found = operating_curve([record(unchanged, **slow)], margin=0.01, mde=0.02).benchmarks[NAME].found
        sizes, shares = zip(*(found[f"slower:0.0{n}"] for n in (1, 2, 3, 5)), strict=True)
        assert sizes == pytest.approx([0.01, 0.02, 0.03, 0.05])
        assert shares[0] <= 0.02
        assert list(shares) == sorted(shares)
        assert shares[-1] >= 0.99

    def test_drifting_processes_raise_no_alarm_as_pairs_of_neighbours(self):
        drifting = [each * (1 + 0.02 * index / 30) for index, each in enumerate(times(0.001))]
        assert operating_curve([record(drifting)], margin=0.01, mde=0.02).alarmed == 0

    def test_two_modes_raise_hardly_an_alarm(self):
        generator = random.Random(3)
        modes = [each * (1.02 if generator.random() < 0.2 else 1.0) for each in times(0.001, 60)]
        found = operating_curve([record(modes)], margin=0.01, mde=0.02)
        assert found.alarmed <= 0.01 * found.gates

    def test_a_careless_rule_does_raise_alarms(self, monkeypatch):
        """Or no alarm would say nothing."""
        monkeypatch.setattr("kernelgate.operating.ALPHA", 10)
        found = operating_curve([record(times(0.01))], margin=0.001, mde=0.02)
        assert found.alarmed > 0.02 * found.gates

    def test_on_the_recorded_h200_processes(self):
        """What README says of the gate, from the records that it says it of."""
        found = operating_curve(records(H200), margin=0.01, mde=0.02)
        assert found.alarmed <= 0.01 * found.gates
        outcomes = sum(
            (each.outcomes for each in found.benchmarks.values()),
            start=type(next(iter(found.benchmarks.values())).outcomes)(),
        )
        assert outcomes["SAME"] >= 0.95 * outcomes.total()
        for name, each in found.benchmarks.items():
            assert each.spread <= (0.013 if name in SHORT else 0.003), name
            assert each.found["slower:0.03"][1] >= 0.99, name
            assert all(each.exact.values()), name
        assert sum(len(each.exact) for each in found.benchmarks.values()) >= 70


def test_the_command_prints_the_curve(capsys, monkeypatch):
    monkeypatch.chdir(H200.parents[2])
    assert main(["curve", "--machine", "nvidia-h200-140gib", "--gates", "20"]) == 0
    out = capsys.readouterr().out
    assert "test_mixer[bamba-9b-1x8192]" in out
    assert "REGRESSED anywhere in 0 of 20 gates drawn from" in out


def test_a_project_tests_its_own_gate(project):
    project.pytester.makepyfile(
        test_it="""
        import clock

        def test_work(benchmark):
            benchmark.declare(plants={"detuned": lambda: clock.work(2e-3)})
            benchmark(clock.work)
        """
    )
    project.environment(JITTER=0.001)
    result = project.run("--gate-selftest", "--gate-processes=4")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "kernelgate: detuned process 1 of 1: 1 of 1 benchmarks*",
            "*spread*SAME*alarms*finds*+1.0 %*+2.0 %*+3.0 %*+5.0 %*",
            "test_work*",
            "REGRESSED anywhere in * of 1000 gates drawn from 4 unchanged processes of 1 device",
            "exact faults: 1 of 1 found",
            "recorded in *",
        ]
    )
    (path,) = (project.path / ".kernelgate" / "selftests" / "test-box").glob("*.json")
    plants_ = json.loads(path.read_text())["plants"]
    assert plants_["detuned"]["test_it.py::test_work"]["latency_s"]["values"] == pytest.approx([2e-3], rel=0.01)
    assert plants_["bytes:512"] == {}


def test_a_self_test_compares_with_nothing_else(project):
    result = project.run("--gate-selftest", "--benchmark-compare")
    assert result.ret == 4
    result.stderr.fnmatch_lines("*--gate-selftest compares with itself: leave out comparing and recording*")
