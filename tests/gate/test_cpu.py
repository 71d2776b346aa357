import pytest
import torch

from kernelgate import cpu

pytestmark = pytest.mark.correctness


def peak_and_workspace(call):
    metrics = cpu.memory(call)
    return metrics["peak_bytes"].worst, metrics["workspace_bytes"].worst


def test_a_result_is_peak_and_not_workspace():
    assert peak_and_workspace(lambda: torch.empty(4096, dtype=torch.uint8)) == (4096, 0)


def test_buffers_count_while_they_live_together():
    def call():
        first, second = torch.empty(1000, dtype=torch.uint8), torch.empty(500, dtype=torch.uint8)
        del first, second
        return torch.empty(200, dtype=torch.uint8)

    assert peak_and_workspace(call) == (1500, 1300)


def test_buffers_that_follow_each_other_do_not_add_up():
    def call():
        for _ in range(3):
            torch.empty(1000, dtype=torch.uint8)

    assert peak_and_workspace(call) == (1000, 1000)


def test_repeated_measurements_agree_to_the_byte():
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    assert len({peak_and_workspace(lambda: torch.softmax(left @ right, -1)) for _ in range(5)}) == 1


def test_an_input_freed_during_the_call_does_not_hide_what_it_allocates():
    inputs = [torch.empty(10_000, dtype=torch.uint8)]

    def call():
        inputs.clear()
        return torch.empty(100, dtype=torch.uint8)

    assert peak_and_workspace(call) == (100, 0)


def test_a_block_at_an_address_that_another_profile_has_seen_is_the_callers():
    tensors = []
    for _ in range(20):
        peak_and_workspace(lambda: tensors.append(torch.empty(10_000, dtype=torch.uint8)))
        tensors.clear()
        tensors.append(torch.empty(10_000, dtype=torch.uint8))  # mostly at the same address
        assert peak_and_workspace(tensors.clear) == (0, 0)


class TestForeignLoad:
    """/proc/stat begins with hundredths of a second: user, nice, system, idle, iowait, irq, softirq, steal."""

    @pytest.fixture
    def machine(self, tmp_path, monkeypatch):
        """A machine of four cores, whose clocks and counters stand still until they are set."""

        class Machine:
            stat = tmp_path / "stat"

            def set(self, *, wall, own=0.0, counters=(0,) * 8):
                monkeypatch.setattr(cpu.time, "perf_counter", lambda: wall)
                monkeypatch.setattr(cpu.time, "process_time", lambda: own)
                ticks = " ".join(str(round(seconds * 100)) for seconds in counters)
                self.stat.write_text(f"cpu  {ticks} 0 0\ncpu0 {ticks} 0 0\n")

        monkeypatch.setattr(cpu, "STAT", Machine.stat)
        monkeypatch.setattr(cpu.os, "cpu_count", lambda: 4)
        monkeypatch.setattr(cpu.os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
        machine = Machine()
        machine.set(wall=50.0, own=3.0, counters=(100, 0, 20, 999, 9, 0, 0, 1))
        return machine

    def load_after(self, machine, **moment):
        meter = cpu.LoadMeter()
        machine.set(**moment)
        return meter.read()

    def test_is_what_others_used_of_all_cores(self, machine):
        # Two seconds of four cores: 3 s busy, of which 1.5 s were this process.
        metrics = self.load_after(machine, wall=52.0, own=4.5, counters=(102, 0, 21, 1004, 9, 0, 0, 1))
        assert metrics["foreign_load"].typical == pytest.approx(1.5 / 8)
        assert metrics["foreign_load"].kind == "info"

    @pytest.mark.parametrize("counter", [0, 1, 2, 5, 6, 7])
    def test_counts_everything_that_takes_a_core_away(self, machine, counter):
        counters = [100, 0, 20, 999, 9, 0, 0, 1]
        counters[counter] += 4
        metrics = self.load_after(machine, wall=52.0, own=3.0, counters=counters)
        assert metrics["foreign_load"].typical == pytest.approx(0.5)

    @pytest.mark.parametrize("counter", [3, 4])
    def test_waiting_takes_none_away(self, machine, counter):
        counters = [100, 0, 20, 999, 9, 0, 0, 1]
        counters[counter] += 4
        metrics = self.load_after(machine, wall=52.0, own=3.0, counters=counters)
        assert metrics["foreign_load"].typical == 0

    def test_is_never_negative(self, machine):
        """The system's counters are coarser than the process's clock."""
        metrics = self.load_after(machine, wall=52.0, own=3.005, counters=(100, 0, 20, 1007, 9, 0, 0, 1))
        assert metrics["foreign_load"].typical == 0

    def test_is_unknown_after_less_than_a_tenth_of_a_second(self, machine):
        assert self.load_after(machine, wall=50.09, counters=(101, 0, 20, 999, 9, 0, 0, 1)) == {}

    @pytest.mark.parametrize("missing", ["before", "after"])
    def test_is_unknown_where_the_system_does_not_count(self, machine, missing):
        if missing == "before":
            machine.stat.unlink()
        meter = cpu.LoadMeter()
        machine.set(wall=52.0)
        if missing == "after":
            machine.stat.unlink()
        assert meter.read() == {}

    def test_reads_what_this_system_has(self):
        meter = cpu.LoadMeter()
        until = cpu.time.perf_counter() + 0.15
        while cpu.time.perf_counter() < until:
            pass
        metrics = meter.read()
        assert bool(metrics) == cpu.STAT.exists()
        assert all(0 <= metric.typical <= 1.1 for metric in metrics.values())
