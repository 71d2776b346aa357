"""A call that takes a second is repeated as few times as will do; a short one as often as ever."""

from types import SimpleNamespace

import pytest
import torch

from kernelgate import cuda

pytestmark = pytest.mark.correctness

DEVICE = torch.device("cuda", 0)  # which nothing here touches


class Calls:
    """Calls that take so many seconds of a clock of their own, half of them on the host."""

    def __init__(self, monkeypatch, seconds):
        self.count, self.now, self.busy_until, self.seconds = 0, 0.0, 0.0, seconds
        monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def __call__(self):
        self.count += 1
        self.busy_until = max(self.now, self.busy_until) + self.seconds
        self.now += self.seconds / 2

    def synchronize(self, _device):
        self.now = max(self.now, self.busy_until)


@pytest.mark.parametrize(("seconds", "warm_up", "lead", "eager"), [(1.0, 2, 1, 1), (0.2, 2, 3, 3), (1e-3, 202, 5, 30)])
def test_a_long_call_is_repeated_less(monkeypatch, seconds, warm_up, lead, eager):
    timer = object.__new__(cuda.DeviceTimer)
    timer.device, timer._scratch = DEVICE, torch.empty(1)
    counts, host = [], []
    for measure in (lambda call: cuda.warm_up(call, DEVICE), timer.lead_for, timer.eager_seconds):
        call = Calls(monkeypatch, seconds)
        host.append(measure(call))
        counts.append(call.count)
    assert counts == [warm_up, lead, eager]
    assert host[1:] == [pytest.approx(seconds + 20e-6), pytest.approx(seconds)]
