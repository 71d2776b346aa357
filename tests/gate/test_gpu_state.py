"""The state of a GPU while it is measured, with NVML's answers put in its mouth."""

import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

from kernelgate import gpu_state
from kernelgate.gpu_state import StateMeter

pytestmark = pytest.mark.correctness

DEVICE = torch.device("cuda", 0)
HEAT = pynvml.nvmlClocksEventReasonSwThermalSlowdown


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose state is set by hand, and a clock that moves only when it is read."""
    gpu = SimpleNamespace(reasons=0, mhz=1980, programs=1, silent=(), now=0.0, step=1.0)

    def answer(name, value):
        def ask(handle, *_):
            assert handle == "GPU-abc"
            if name in gpu.silent:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value()

        monkeypatch.setattr(pynvml, name, ask)

    def clock():
        gpu.now += gpu.step
        return gpu.now

    answer("nvmlDeviceGetCurrentClocksEventReasons", lambda: gpu.reasons)
    answer("nvmlDeviceGetClockInfo", lambda: gpu.mhz)
    answer("nvmlDeviceGetComputeRunningProcesses", lambda: [object()] * gpu.programs)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(time, "perf_counter", clock)
    gpu_state._handle.cache_clear()
    yield gpu
    gpu_state._handle.cache_clear()


def samples(meter, gpu, *reasons):
    for each in reasons:
        gpu.reasons = each
        meter.sampled()


def test_an_undisturbed_gpu_spoils_nothing(gpu):
    meter = StateMeter(DEVICE)
    samples(meter, gpu, 0, 0, 0)
    assert meter.slowed(3) == [False, False, False]
    found = {name: metric.typical for name, metric in meter.read(0.0).items()}
    assert found == {"slowed_samples": 0, "foreign_programs": 0, "power_capped": 0, "sm_clock_hz": 1980e6}
    assert {metric.kind for metric in meter.read(0.0).values()} == {"info"}


@pytest.mark.parametrize("reason", ["HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown"])
def test_a_slowdown_spoils_the_samples_on_either_side_of_its_reading(gpu, reason):
    meter = StateMeter(DEVICE)
    samples(meter, gpu, 0, getattr(pynvml, f"nvmlClocksEventReason{reason}"), 0, 0)
    assert meter.slowed(4) == [False, True, True, False]


def test_samples_between_two_readings_share_what_these_showed(gpu):
    gpu.step = 1e-3  # a reading for each five samples
    meter = StateMeter(DEVICE)
    samples(meter, gpu, *[0] * 6, *[HEAT] * 6, *[0] * 20)
    slowed = meter.slowed(32)
    assert slowed[6:12] == [True] * 6
    assert not any(slowed[18:])


def test_samples_after_the_last_reading_are_asked_for_at_the_end(gpu):
    gpu.step = 0.0
    meter = StateMeter(DEVICE)
    samples(meter, gpu, 0, HEAT)
    assert meter.slowed(2) == [True, True]


def test_rounds_before_the_samples_are_left_out(gpu):
    meter = StateMeter(DEVICE)
    samples(meter, gpu, HEAT, HEAT, 0, 0, 0)
    assert meter.slowed(2) == [False, False]
    assert meter.slowed(0) == []


def test_the_power_cap_is_recorded_and_spoils_nothing(gpu):
    meter = StateMeter(DEVICE)
    samples(meter, gpu, 0, pynvml.nvmlClocksEventReasonSwPowerCap)
    assert meter.slowed(2) == [False, False]
    assert 0 < meter.read(0.0)["power_capped"].typical < 1


def test_other_programs_are_counted_when_they_were_there_at_the_beginning(gpu):
    gpu.programs = 3
    meter = StateMeter(DEVICE)
    gpu.programs = 1
    assert meter.read(0.0)["foreign_programs"].typical == 2


def test_the_clock_is_the_mean_of_before_and_after(gpu):
    meter = StateMeter(DEVICE)
    gpu.mhz = 1080
    assert meter.read(0.0)["sm_clock_hz"].typical == 1530e6


@pytest.mark.parametrize(
    "question",
    ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetClockInfo", "nvmlDeviceGetComputeRunningProcesses"],
)
def test_a_driver_that_does_not_tell_makes_no_claim(gpu, question):
    gpu.silent = (question,)
    meter = StateMeter(DEVICE)
    samples(meter, gpu, HEAT)
    assert meter.read(0.0) == {}


def test_without_nvml_nothing_is_known(gpu, monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    meter = StateMeter(DEVICE)
    samples(meter, gpu, HEAT)
    assert meter.slowed(1) == [False]
    assert meter.read(0.0) == {}
