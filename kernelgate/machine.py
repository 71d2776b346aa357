"""Which machine this is: the class that baselines are kept for, and the toolchain they were made with."""

import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A class of interchangeable machines, such as ``nvidia-h200-140gib``, and what is known about this one."""

    name: str
    device: dict[str, Any]


def detect(name: str = "") -> Machine:
    """The machine's class: its GPU and memory, or its processor and core count.

    Args:
        name: Called so whatever is found, for projects that know their machines better. Torch is then not imported
            for the machine's sake.
    """
    if "torch" in sys.modules or (not name and importlib.util.find_spec("torch")):
        import torch

        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
            memory_gib = round(gpu.total_memory / 2**30)
            device = {"type": "cuda", "name": gpu.name, "memory_gib": memory_gib, "sms": gpu.multi_processor_count}
            return Machine(name=name or f"{_slug(gpu.name)}-{memory_gib}gib", device=device)
    cores = usable_cores()
    processor, model = _processor()
    detected = "-".join(part for part in ("cpu", _slug(processor), model, f"{cores}c") if part)
    return Machine(name=name or detected, device={"type": "cpu", "name": processor, "cores": cores})


def visible_devices(machine: Machine) -> list[str]:
    """The values of CUDA_VISIBLE_DEVICES that select each of the GPUs that this process sees; an empty one without."""
    if machine.device["type"] != "cuda":
        return [""]
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def toolchain() -> dict[str, str]:
    """Versions that an upgrade changes. They describe a row; they never decide which baseline it is compared with."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package):
            versions[package] = metadata.version(package)
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists() and (match := re.search(r"\d+\.\d+(\.\d+)?", driver.read_text())):
        versions["driver"] = match.group()
    return versions


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, str]:
    """The processor's name and, on Linux, family and model: virtual machines hide what distinguishes the name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    fields = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", text, re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|\d+-Core|@.*", " ", name, flags=re.IGNORECASE)
    if "cpu family" in fields and "model" in fields:
        return name, f"f{fields['cpu family']}m{fields['model']}"
    return name, ""


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
