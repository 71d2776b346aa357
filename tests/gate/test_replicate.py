"""The order of processes, with launchers that start none."""

import tempfile
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from kernelgate.metrics import Observation, metric
from kernelgate.processes import Child, Tree, Unobserved
from kernelgate.replicate import Replication, exclusive

pytestmark = pytest.mark.correctness

OBSERVED = Observation(samples=(1e-3,), metrics={"latency_s": metric(1e-3, "s", "noisy")}, details={})


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


class Run:
    """A replication whose processes are calls, and the notes that they took."""

    def __init__(self, tmp_path, trees=("current",), devices=("",), looks=(4,), behave=None):
        self.calls, self.lines, self.closed, self.asked = [], [], [], []
        self.behave = behave or (lambda number, tree, benchmarks: {})
        self.replication = Replication(
            trees=[Tree(name=name, folder=tmp_path / name, arguments=()) for name in trees],
            devices=devices,
            looks=looks,
            folder=tmp_path / "runs",
            launch=lambda tree, device: FakeLauncher(self, tree.name, device),
            write_line=self.lines.append,
        )

    def run(self, *benchmarks, decided=lambda nodeid: False):
        def ask(nodeid):
            self.asked.append(nodeid)
            return decided(nodeid)

        self.replication.run(benchmarks, ask)
        return self

    def trees(self):
        return [tree for tree, _, _, _ in self.calls]


class FakeLauncher:
    def __init__(self, run, tree, device):
        self.owner, self.tree, self.device = run, tree, device

    def run(self, results, benchmarks, plant=""):
        results.write_text("[]\n")
        number = int(results.stem[-3:])
        self.owner.calls.append((self.tree, number, self.device, tuple(benchmarks)))
        facts = {
            "exit_status": "exit status 0",
            "output": "",
            "seconds": 2.0,
            "observations": dict.fromkeys(benchmarks, OBSERVED),
            "unobserved": {},
            "collected": list(benchmarks),
        }
        return Child(**(facts | self.owner.behave(number, self.tree, benchmarks)))

    def close(self):
        self.owner.closed.append((self.tree, self.device))


class TestOrder:
    def test_two_trees_take_turns_in_going_first(self, tmp_path):
        run = Run(tmp_path, trees=("base", "current")).run("a")
        assert run.trees() == ["base", "current", "current", "base"] * 2
        assert [number for _, number, _, _ in run.calls] == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_every_launcher_is_used_again_and_closed(self, tmp_path):
        run = Run(tmp_path, trees=("base", "current"), looks=(4, 8)).run("a")
        assert sorted(run.closed) == [("base", ""), ("current", "")]

    def test_devices_measure_at_once_and_a_pair_stays_on_one(self, tmp_path):
        together = threading.Barrier(2, timeout=10)

        def meet(number, tree, benchmarks):
            together.wait()
            return {}

        run = Run(tmp_path, trees=("base", "current"), devices=("0", "1"), behave=meet).run("a")
        used = {}
        for _, number, device, _ in run.calls:
            used.setdefault(number, set()).add(device)
        assert sorted(used) == [0, 1, 2, 3]
        assert all(len(devices) == 1 for devices in used.values())
        assert set.union(*used.values()) == {"0", "1"}
        pool = run.replication.pools["current"]
        assert len(pool.of("a")) == 4


class TestLooks:
    def test_what_is_decided_is_left_out_of_later_looks(self, tmp_path):
        run = Run(tmp_path, looks=(2, 3, 5)).run("a", "b", decided=lambda nodeid: nodeid == "a")
        assert [benchmarks for *_, benchmarks in run.calls] == [("a", "b")] * 2 + [("b",)] * 3
        assert run.asked == ["a", "b", "b", "b"]

    def test_nothing_is_measured_once_all_is_decided(self, tmp_path):
        run = Run(tmp_path, looks=(2, 4)).run("a", "b", decided=lambda nodeid: True)
        assert len(run.calls) == 2

    def test_progress_says_how_long_it_takes_to_the_next_look(self, tmp_path):
        run = Run(tmp_path, looks=(2, 4)).run("a")
        assert [line.partition("· ")[2] for line in run.lines] == [
            "█████░░░░░ 2 s left",
            "██████████ 0 s left",
            "████████░░ 2 s left",
            "██████████ 0 s left",
        ]


LOST = {"unobserved": {"a": Unobserved(skipped=False, reason="wrong")}, "exit_status": "exit status 1"}


class TestLosses:
    def test_a_lost_benchmark_is_not_asked_for_again(self, tmp_path):
        behave = lambda number, tree, benchmarks: LOST if number == 1 else {}  # noqa: E731
        run = Run(tmp_path, looks=(3, 4), behave=behave).run("a", "b")
        assert [benchmarks for *_, benchmarks in run.calls] == [("a", "b"), ("a", "b"), ("b",), ("b",)]
        assert run.replication.refusal == ""
        assert "a" not in run.asked

    def test_one_lost_in_the_base_is_measured_in_the_current_tree_up_to_the_look(self, tmp_path):
        behave = lambda number, tree, benchmarks: LOST if tree == "base" else {}  # noqa: E731
        run = Run(tmp_path, trees=("base", "current"), looks=(2, 4), behave=behave).run("a", "b")
        asked = [(tree, benchmarks) for tree, _, _, benchmarks in run.calls]
        assert asked[:4] == [
            ("base", ("a", "b")), ("current", ("a", "b")), ("current", ("a", "b")), ("base", ("b",)),
        ]  # fmt: skip
        assert {benchmarks for _, benchmarks in asked[4:]} == {("b",)}

    @pytest.mark.parametrize(
        "ending",
        [
            {"collected": None, "exit_status": "exit status 4"},
            {"exit_status": "exit status 1"},
            {"exit_status": "killed by SIGKILL"},
        ],
    )
    def test_an_unexplained_end_is_the_end_of_the_run(self, tmp_path, ending):
        behave = lambda number, tree, benchmarks: {**ending, "output": "why"} if number == 1 else {}  # noqa: E731
        run = Run(tmp_path, looks=(3, 4), behave=behave).run("a")
        assert run.replication.refusal == f"not measured: process 2 of 4 ended with {ending['exit_status']}"
        assert len(run.calls) == 2
        assert run.lines[-1] == "kernelgate: output of process 2 of 4:\nwhy"
        assert run.closed == [("current", "")]

    def test_a_process_that_cannot_be_started_is_the_end_of_the_run(self, tmp_path):
        def fail(number, tree, benchmarks):
            raise OSError("no room")

        run = Run(tmp_path, trees=("base", "current"), behave=fail).run("a")
        assert run.replication.refusal == "not measured: base process 1 of 4: no room"
        assert len(run.calls) == 1

    def test_an_interruption_on_several_devices_closes_all_of_them(self, tmp_path):
        def interrupt(number, tree, benchmarks):
            raise KeyboardInterrupt

        run = Run(tmp_path, devices=("0", "1"), behave=interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.run("a")
        assert {device for _, device in run.closed} >= {device for _, _, device, _ in run.calls}
        assert run.replication.refusal == "interrupted"


class TestExclusive:
    def test_another_gate_is_waited_for(self, tmp_path):
        lines, entered = [], threading.Event()

        def second():
            with exclusive("3", lines.append):
                entered.set()

        thread = threading.Thread(target=second)
        with exclusive("3", lines.append):
            thread.start()
            assert not entered.wait(0.3)
            with exclusive("4", lines.append):
                pass  # another device is free
        thread.join(10)
        assert entered.is_set()
        assert lines == ["kernelgate: waiting for another gate to finish on 3"]

    def test_it_is_given_back_after_a_failure(self, tmp_path):
        with pytest.raises(RuntimeError), exclusive("", print):
            raise RuntimeError
        with FileLock(Path(tempfile.gettempdir(), "kernelgate-cpu.lock"), timeout=0):
            pass
