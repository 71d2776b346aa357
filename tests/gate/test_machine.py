import re
from types import SimpleNamespace

import pytest
import torch

from kernelgate import machine

pytestmark = pytest.mark.correctness


def test_a_gpu_is_its_name_and_memory(monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=150_110_011_392, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert machine.detect().name == "nvidia-h200-140gib"


def test_a_processor_is_its_name_model_and_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_processor", lambda: ("AMD EPYC", "f25m17"))
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.detect().name == "cpu-amd-epyc-f25m17-2c"


def test_this_machine_has_a_class_fit_for_a_folder():
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", machine.detect().name)


def test_a_named_machine_keeps_its_name():
    assert machine.detect("lab-3").name == "lab-3"


def test_the_toolchain_names_its_versions():
    versions = machine.toolchain()
    assert torch.__version__.startswith(versions["torch"])  # which may leave the build, "+cu130", out
    assert versions["python"].startswith("3.")
