from types import SimpleNamespace

import pytest

from kernelgate.artifacts import triton_artifacts

compiler = pytest.importorskip("triton.compiler.compiler")
pytestmark = pytest.mark.correctness


def compiled(name, binary=b"cubin", n_regs=32, n_spills=0, **metadata):
    """What Triton's compiled kernel looks like from outside."""
    options = {"shared": 1024, "num_warps": 4, "num_stages": 2} | metadata
    return SimpleNamespace(
        name=name, kernel=binary, n_regs=n_regs, n_spills=n_spills, metadata=SimpleNamespace(**options)
    )


@pytest.fixture
def launch(monkeypatch):
    """Launches a kernel as Triton's run method does, without a device."""
    monkeypatch.setattr(compiler.CompiledKernel, "launch_metadata", lambda kernel, grid, stream, *args: None)
    return lambda kernel: compiler.CompiledKernel.launch_metadata(kernel, (1, 1, 1), 0)


def test_launches_are_counted_and_described(launch):
    scan, state = compiled("_scan", n_spills=2), compiled("_state", b"other")

    def call():
        for kernel in (scan, state, scan):
            launch(kernel)

    metrics, kernels = triton_artifacts(call)
    assert metrics["triton_launches"].values == (3,)
    assert metrics["n_spills:_scan"].values == (2,)
    assert metrics["shared:_state"].values == (1024,)
    assert [(kernel["name"], kernel["launches"]) for kernel in kernels] == [("_scan", 2), ("_state", 1)]
    assert len({kernel["binary"] for kernel in kernels}) == 2


def test_the_largest_specialisation_stands_for_a_kernel(launch):
    def call():
        launch(compiled("_scan", b"small", n_regs=32))
        launch(compiled("_scan", b"large", n_regs=96))

    metrics, kernels = triton_artifacts(call)
    assert metrics["n_regs:_scan"].values == (96,)
    assert len(kernels) == 2


def test_code_without_triton_kernels_has_no_artifacts():
    assert triton_artifacts(lambda: None) == ({}, [])


def test_triton_is_left_as_it_was(launch):
    before = compiler.CompiledKernel.launch_metadata
    with pytest.raises(RuntimeError, match="from the kernel"):
        triton_artifacts(failing)
    assert compiler.CompiledKernel.launch_metadata is before


def failing():
    raise RuntimeError("from the kernel")
