"""The state of a GPU while it is measured, as NVML tells it: slowdowns, clocks, other programs. Read, never set.

A slowdown by the hardware or for heat makes a time that belongs to the cooling or the power supply, not to the kernel.
The limit that software keeps the power to is the steady state of large kernels, and recorded only.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pynvml
import torch

from kernelgate.metrics import FOREIGN, SLOWED, Metric, metric

READ_EVERY_SECONDS = 5e-3
SLOWDOWNS = (
    pynvml.nvmlClocksEventReasonHwSlowdown
    | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    | pynvml.nvmlClocksEventReasonSwThermalSlowdown
)
POWER_CAP = pynvml.nvmlClocksEventReasonSwPowerCap


class StateMeter:
    """Watches a device while samples are taken. Where NVML does not answer, it knows nothing and says so by silence."""

    def __init__(self, device: torch.device) -> None:
        self._handle = _handle(device)
        self._reasons: list[int] = []
        self._clocks_mhz: list[int] = []
        self._programs: list[int] = []
        self._slowed: list[bool] = []
        self._known, self._read_at = 0, 0.0
        self._read_all()

    def sampled(self) -> None:
        """A sample was taken. Every few milliseconds of samples the device is asked about them."""
        self._slowed.append(False)
        if time.perf_counter() - self._read_at > READ_EVERY_SECONDS:
            self._ask(self._read_reasons)

    def slowed(self, count: int) -> list[bool]:
        """Of the last `count` samples, which lie between two readings of which one showed a slowdown."""
        self._ask(self._read_reasons)
        return self._slowed[len(self._slowed) - count :]

    def read(self, slowed: float) -> dict[str, Metric]:
        """What was seen, as metrics; nothing where NVML does not answer.

        Args:
            slowed: The fraction of the samples that a slowdown spoiled.
        """
        self._read_all()
        if self._handle is None:
            return {}
        capped = statistics.fmean(bool(reasons & POWER_CAP) for reasons in self._reasons)
        return {
            SLOWED: metric(slowed, "1", "info"),
            FOREIGN: metric(max(*self._programs, 1) - 1, "programs", "info"),  # one of them is this one
            "power_capped": metric(capped, "1", "info"),
            "sm_clock_hz": metric(statistics.fmean(self._clocks_mhz) * 1e6, "Hz", "info", better="higher"),
        }

    def _read_all(self) -> None:
        self._ask(self._read_reasons)
        self._ask(lambda: self._clocks_mhz.append(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)))
        self._ask(lambda: self._programs.append(len(pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle))))

    def _read_reasons(self) -> None:
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        if any(each & SLOWDOWNS for each in (*self._reasons[-1:], reasons)):
            self._slowed[self._known :] = [True] * (len(self._slowed) - self._known)
        self._reasons.append(reasons)
        self._known, self._read_at = len(self._slowed), time.perf_counter()

    def _ask(self, question: Callable[[], None]) -> None:
        if self._handle is None:
            return
        try:
            question()
        except pynvml.NVMLError:
            self._handle = None  # a driver that does not tell, or a GPU that is gone


@functools.cache
def _handle(device: torch.device) -> Any:
    """NVML's handle of a device, None where there is no NVML."""
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None
