"""Triton is hashed once, beside whatever the caller does, and only where there is a GPU."""

import threading
from types import SimpleNamespace

import pytest
import torch

from ssd_kernels import ahead, get_ssd, launching, registry

pytestmark = pytest.mark.correctness


@pytest.fixture
def hashed(monkeypatch):
    """The threads that hashed Triton, in a process that has looked nothing up yet."""
    threads = []
    monkeypatch.setattr(ahead, "_thread", None)
    monkeypatch.setattr(ahead, "triton_key", lambda: threads.append(threading.current_thread()))
    monkeypatch.setattr(registry, "_found", {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return threads


def test_the_first_lookup_of_a_triton_implementation_begins_and_the_first_launch_waits(hashed, monkeypatch):
    # Gluon cannot be imported where Triton's own functions were made for the interpreter.
    monkeypatch.setattr(ahead, "_may_be_hopper", lambda: False)
    get_ssd("chunked")
    assert ahead._thread is None
    for name in ("triton", "portable", "triton"):
        get_ssd(name)
    ahead.finish()
    (thread,) = hashed
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_a_launch_that_compiles_waits_for_it(monkeypatch):
    order = []
    monkeypatch.setattr(ahead, "finish", lambda: order.append("finish"))

    def compiles(*args, **constants):
        order.append("compile")

    kernel = launching.JITFunction(_kernel)
    active = SimpleNamespace(get_current_device=lambda: 0)
    monkeypatch.setattr(launching, "driver", SimpleNamespace(active=active))
    kernel.run = lambda *args, grid, warmup, **constants: compiles()
    launching.launch(kernel, (1,), object())
    assert order == ["finish", "compile"]


def _kernel(x_ptr):
    """Never compiled."""


@pytest.mark.parametrize(("gpus", "interpreted"), [(0, "0"), (1, "1")], ids=["no GPU", "interpreter"])
def test_where_no_kernel_can_be_launched_nothing_is_hashed(hashed, monkeypatch, gpus, interpreted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    get_ssd("triton")
    ahead.finish()
    assert hashed == []


@pytest.mark.parametrize(
    ("gpus", "capability", "hip", "expected"),
    [(1, None, None, True), (1, (9, 0), None, True), (1, (8, 0), None, False), (0, None, None, False),
     (1, None, "6.2", False)],
    ids=["no context yet", "Hopper", "Ampere", "no GPU", "AMD"],
)  # fmt: skip
def test_what_the_first_call_imports_is_imported_by_the_lookup(hashed, monkeypatch, gpus, capability, hip, expected):
    imported = []
    monkeypatch.setattr(ahead, "import_module", imported.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    for name in ("portable", "triton", "hopper"):
        get_ssd(name)
    registry.get_op("ssd_step", "triton")
    ahead.finish()
    assert imported == ["ssd_kernels.hopper.launcher"] * (2 * expected)
