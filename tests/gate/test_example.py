"""The example is a stranger's project: what it takes to gate a kernel, and that its faults are found."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "softmax"

# Interpreted, a kernel takes as long as the machine is busy; this clock moves by what the kernel does.
CLOCK = """
import functools
import sys
from pathlib import Path

import kernelgate.cpu

kernelgate.cpu.STAT = Path("nowhere")  # what else the machine does is not on this clock
elapsed = 0.0


def now():
    global elapsed
    elapsed += 1e-9
    if "softmax" in sys.modules:
        watch()
    return elapsed


@functools.cache
def watch():
    # Not earlier: whoever imports Triton first decides whether it interprets, and that is the example's conftest.
    from triton.runtime.interpreter import InterpreterBuilder

    for name, operation in vars(InterpreterBuilder).copy().items():
        if name.startswith("create_"):
            setattr(InterpreterBuilder, name, counted(operation))


def counted(operation):
    def count(*args, **kwargs):
        global elapsed
        elapsed += 1e-4
        return operation(*args, **kwargs)

    return count
"""
ON_CPU = ("--benchmark-timer=clock.now", "--benchmark-max-time=0.05", "--benchmark-min-rounds=3")


def run(folder: Path, *arguments: str, cpu: bool = True) -> subprocess.CompletedProcess[str]:
    """Run pytest in a copy of the example as a user would, with the plugin on the path instead of installed."""
    left_out = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "KERNELGATE_COMMIT", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        arguments = (*ON_CPU, "-o", "gate_env_tolerance=9", *arguments)
    plugins = ("-p", "pytest_benchmark.plugin", "-p", "kernelgate.plugin")
    command = [sys.executable, "-m", "pytest", *plugins, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def commit(folder: Path) -> None:
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
    for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "the example")):
        subprocess.run(["git", *command], cwd=folder, check=True)


def copy_example(folder: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache")))


def change(folder: Path, before: str, after: str) -> None:
    module = folder / "softmax.py"
    assert before in module.read_text()
    module.write_text(module.read_text().replace(before, after))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A copy with a baseline."""
    folder = copy_example(tmp_path_factory.mktemp("example") / "softmax")
    (folder / "clock.py").write_text(CLOCK)
    commit(folder)
    result = run(folder, "--gate-record=first", "--gate-processes=2")
    assert result.returncode == 0, result.stdout
    commit(folder)
    return folder


@pytest.fixture
def project(recorded, tmp_path):
    return Path(shutil.copytree(recorded, tmp_path / "softmax"))


def compare(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(folder, "--benchmark-compare", "--gate-processes=1")


def test_the_example_as_it_is_passes(project):
    result = compare(project)
    assert result.returncode == 0, result.stdout
    assert "1 SAME" in result.stdout


def test_a_slower_kernel_is_red(project):
    change(project, "    numerator = tl.exp(", "    for _ in range(20):\n        numerator = tl.exp(")
    result = compare(project)
    assert result.returncode == 1, result.stdout
    assert "REGRESSED: latency_s: " in result.stdout


def test_what_the_readme_plants_is_red(project):
    (planted,) = re.findall(r"^ +(sed .+)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    subprocess.run(["bash", "-c", planted], cwd=project, check=True)
    result = compare(project)
    assert result.returncode == 1, result.stdout
    assert "REGRESSED: peak_bytes: 3200 B, was 1600 B" in result.stdout


def test_a_wrong_kernel_is_red_and_has_no_time(project):
    change(project, 'other=float("-inf")', "other=0.0")
    result = compare(project)
    assert result.returncode == 1, result.stdout
    assert "its time is not stored" in result.stdout
    assert "no benchmark was measured" in result.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA device")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="other workers have the GPU open")
def test_on_cuda_a_copy_of_the_input_is_red(tmp_path):
    folder = copy_example(tmp_path / "softmax")
    commit(folder)
    quick = ("-o", "gate_margin=0.3", "-o", "gate_mde=0.3", "-o", "gate_env_tolerance=0.3", "--gate-processes=2")
    for arguments, status in ((["--gate-record=first"], 0), (["--benchmark-compare"], 0)):
        result = run(folder, *quick, *arguments, cpu=False)
        assert result.returncode == status, result.stdout
    change(folder, "](x, out", "](x.clone(), out")
    result = run(folder, *quick, "--benchmark-compare", cpu=False)
    assert result.returncode == 1, result.stdout
    for metric in ("latency_s", "peak_bytes", "device_launches"):
        assert metric in result.stdout


def test_a_user_writes_fewer_than_30_lines():
    assert len((EXAMPLE / "test_softmax.py").read_text().splitlines()) < 30


def test_the_example_needs_nothing_of_this_project_but_the_plugin():
    imported = set()
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    assert imported == {"os", "softmax", "torch", "triton", "triton.language"}
