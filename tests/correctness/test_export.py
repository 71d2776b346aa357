import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import pytest

import ssd_kernels
from ssd_kernels import __main__ as command
from ssd_kernels.export import export

pytestmark = pytest.mark.correctness

# What `kernels` does with a folder, without its checks: the variant's `__init__.py` under the name in its metadata.
LOAD = """
import importlib.util, json, pathlib, sys
folder = pathlib.Path(sys.argv[1], "build", "torch-universal")
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
LOAD_BY_KERNELS = """
import pathlib, sys
from kernels import get_local_kernel
kernel = get_local_kernel(pathlib.Path(sys.argv[1]))
"""
USE = """
import torch
x, dt, A, B = torch.ones(1, 5, 2, 8), torch.ones(1, 5, 2), -torch.ones(2), torch.ones(1, 5, 1, 16)
print(kernel.__name__, kernel.ssd_kernels.__file__, tuple(kernel.ssd(x, dt, A, B, B, chunk_size=4).shape))
kernel.patch_transformers("bamba").undo()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "ssd-kernels"
    assert export(folder) == folder / "build" / "torch-universal"
    return folder


def python(code, folder, cwd):
    """Run code where nothing but the exported folder has our package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    isolated = [sys.executable, "-P", "-c", code, str(folder)]
    return subprocess.run(isolated, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    "load",
    [
        LOAD,
        pytest.param(
            LOAD_BY_KERNELS,
            marks=pytest.mark.skipif(
                not any(each.name == "kernels" for each in importlib.metadata.distributions()),
                reason="Hugging Face's `kernels`, the extra `hub`, is not installed",
            ),
        ),
    ],
)
def test_the_folder_is_a_kernel_of_its_own(folder, tmp_path, load):
    done = python(load + USE, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    name, file, shape = done.stdout.split(" ", 2)
    metadata = json.loads((folder / "build" / "torch-universal" / "metadata.json").read_text())
    assert name == metadata["id"]
    assert file == str(folder / "build" / "torch-universal" / "ssd_kernels" / "__init__.py")
    assert shape.strip() == "(1, 5, 2, 8)"


def test_a_second_copy_is_refused(folder, tmp_path):
    source = os.path.dirname(os.path.dirname(ssd_kernels.__file__))
    code = f"import sys; sys.path.insert(0, {source!r})\nimport ssd_kernels"
    done = python(code + LOAD, folder, tmp_path)
    assert done.returncode == 1
    assert f"ssd_kernels is loaded from {ssd_kernels.__file__} already" in done.stderr


def test_it_holds_the_whole_package_and_nothing_else(folder):
    package = os.path.dirname(ssd_kernels.__file__)
    exported = folder / "build" / "torch-universal" / "ssd_kernels"

    def files(root):
        return {
            os.path.relpath(os.path.join(where, name), root)
            for where, _, names in os.walk(root)
            for name in names
            if "__pycache__" not in where
        }

    assert files(exported) == files(package)


def test_what_is_in_a_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(SystemExit):
            command.main(["export", str(taken)])
        assert f"folder must be empty or not exist, got {taken}" in capsys.readouterr().err
    assert command.main(["export", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "build" / "torch-universal" / "metadata.json").exists()
