"""The devices that kernels are compiled for, and what a compiled binary says it takes of them."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# What a program may have of it, bytes.
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# What must be zero, and where: on the device that the configurations are chosen on.
WITHOUT_SPILLS = {"sm_90": ("spilled_bytes",)}
# But for these, by case and kernel: bytes at most, outside the loop over plain chunks. Measured, a walk that spilled as
# much at the model's shape was as fast as one that spilled nothing.
MAY_SPILL = {
    ("ssd bf16 p64 n128 q256 model", "_chunk_scan_kernel"): 8,
    ("ssd bf16 p64 n128 q128 model", "_chunk_scan_kernel"): 8,
    ("ssd bf16 p64 n128 q256 few segments", "_chunk_scan_kernel #2"): 8,
}


class Driver:
    """Stands in for a device's driver: enough of one for Triton to compile for a device that is not there."""

    def __init__(self, target: GPUTarget):
        self._target = target

    def get_current_target(self) -> GPUTarget:
        """The device to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """The index of the only device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """Nothing is launched, so any stream does."""
        return 0


def spills(target: str, case: str, kernel: str, used: dict[str, int]) -> list[str]:
    """One line for each metric of a kernel's resources that is more than what it may spill."""
    allowed = MAY_SPILL.get((case, kernel), 0)
    return [
        f"{target} · {case} · {kernel}: {metric} must be {f'at most {allowed}' if allowed else 0}, got {used[metric]}"
        for metric in WITHOUT_SPILLS.get(target, ())
        if used[metric] > allowed
    ]


def resources(kernel: Any) -> dict[str, int]:
    """What one thread (registers, spilled bytes) and one program (shared memory, bytes) of a compiled kernel takes.

    Raises:
        ValueError: the binary does not say.
    """
    used = _of_cubin(kernel.asm["cubin"]) if "cubin" in kernel.asm else _of_amdgcn(kernel.asm["amdgcn"])
    return {**used, "shared_bytes": kernel.metadata.shared}


def _of_cubin(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    if len(found) != 3:
        raise ValueError(f"cuobjdump -res-usage must tell REG, STACK and LOCAL, got {text!r}")
    # ptxas keeps what it spills on a thread's stack; a few bytes there may be something else.
    return {"registers": found["REG"], "spilled_bytes": found["STACK"] + found["LOCAL"]}


_AMD = {
    "registers": "vgpr_count",
    "accumulator_registers": "agpr_count",
    "scalar_registers": "sgpr_count",
    "spilled_registers": "vgpr_spill_count",
    "spilled_scalar_registers": "sgpr_spill_count",
    "spilled_bytes": "private_segment_fixed_size",
}


def _of_amdgcn(assembly: str) -> dict[str, int]:
    found = {name: int(value) for name, value in re.findall(r"^\W*\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    if missing := set(_AMD.values()) - set(found):
        raise ValueError(f"the metadata of an AMD binary must tell {sorted(missing)}, got {found}")
    return {name: found[source] for name, source in _AMD.items()}
