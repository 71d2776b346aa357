"""The repository keeps its shape: who imports whom, which names exist, which commands and versions agree."""

import ast
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"

# The folder of each import package, and the import packages that nothing in it may name. Nothing at all may import
# `kernels`: that name belongs to a distribution which transformers imports from.
FORBIDDEN = {
    ROOT / "bamba": {"kernelgate", "kernels", "tests"},
    KERNELS / "ssd_kernels": {"bamba", "kernelgate", "kernels", "tests"},
    ROOT / "kernelgate": {"bamba", "kernels", "ssd_kernels", "tests"},
    ROOT / "tests": {"kernels"},
}
# `python -m ssd_kernels decays` reads a model's checkpoint; nothing imports it but that command.
ALLOWED = "ssd_kernels/decays.py:"


def imports(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that `source`, a module of `package`, imports at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def forbidden_imports(folder: Path, forbidden: set[str]) -> list[str]:
    """List `file:line imports name` for each import below `folder` whose top-level name is forbidden there."""
    return [
        f"{path.relative_to(folder.parent)}:{line} imports {name}"
        for path in sorted(folder.rglob("*.py"))
        for line, name in imports(path.read_text(), ".".join(path.relative_to(folder.parent).parts[:-1]))
        if name.partition(".")[0] in forbidden
    ]


@pytest.mark.parametrize("folder", FORBIDDEN, ids=lambda folder: folder.name)
def test_a_package_imports_only_what_lies_below_it(folder):
    assert list(folder.rglob("*.py")), f"{folder} holds no Python"
    found = forbidden_imports(folder, FORBIDDEN[folder])
    assert [each for each in found if not each.startswith(ALLOWED)] == []


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import bamba", "bamba"),
        ("import torch, bamba.model as model", "bamba.model"),
        ("from bamba import model", "bamba.model"),
        ("def late():\n    from bamba.model import Bamba", "bamba.model.Bamba"),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(tmp_path, statement, name):
    module = tmp_path / "ssd_kernels" / "portable" / "scan.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"import bambam\nfrom . import bamba\nfrom ..bamba import x\n{statement}\n")
    line = 3 + len(statement.splitlines())
    assert forbidden_imports(tmp_path / "ssd_kernels", {"bamba"}) == [
        f"ssd_kernels/portable/scan.py:{line} imports {name}"
    ]


def test_the_reference_imports_nothing_but_torch():
    allowed = {*sys.stdlib_module_names, "torch", "ssd_kernels"}
    waiting, seen = [KERNELS / "ssd_kernels" / "reference.py"], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for line, name in imports(path.read_text(), "ssd_kernels"):
            assert name.partition(".")[0] in allowed, f"{path.name}:{line} imports {name}"
            siblings = (KERNELS.joinpath(*name.split(".")[:n]).with_suffix(".py") for n in (2, 3))
            waiting += [sibling for sibling in siblings if sibling.exists() and sibling not in seen]


def test_the_reference_runs_without_triton():
    code = "import sys, ssd_kernels.reference; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=_environment(ROOT, KERNELS), check=True, timeout=300)


def test_collecting_the_tests_opens_no_gpu():
    """A process that measures must find the GPU unused, by the one that collected and started it, too."""
    code = """
import sys
import pytest, torch
def opened():
    raise AssertionError("opened the GPU")
torch.cuda.is_available, torch.cuda._lazy_init = lambda: True, opened
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "tests"]))
"""
    command = [sys.executable, "-c", code]
    # Of a run of its own, whichever worker of xdist's starts it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_folder_kernels_is_a_source_root_and_no_package():
    assert not (KERNELS / "__init__.py").exists()


@pytest.fixture
def standin(tmp_path) -> Path:
    """Make a folder with a distribution `kernels` of a version that transformers accepts, offering any name."""
    from transformers.utils import import_utils

    site = tmp_path / "site"
    package, metadata = site / "kernels", site / f"kernels-{import_utils.KERNELS_MIN_VERSION}.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    package.joinpath("__init__.py").write_text(
        "asked = []\n"
        "class Standin:\n"
        "    def __init__(self, *args, **kwargs): pass\n"
        "    def __call__(self, decorated): return decorated\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    asked.append(name)\n"
        "    return Standin\n"
    )
    metadata.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {import_utils.KERNELS_MIN_VERSION}\n"
    )
    return site


PROBE = """
import json
import kernels
import transformers
from transformers import BambaForCausalLM
from transformers.utils.import_utils import is_kernels_available
import bamba, ssd_kernels
print(json.dumps({
    "kernels": kernels.__file__,
    "asked": getattr(kernels, "asked", []),
    "available": is_kernels_available(),
    "ours": [bamba.__file__, ssd_kernels.__file__],
}))
"""


@pytest.mark.parametrize("inside", [True, False], ids=["in the repository", "elsewhere"])
def test_the_distribution_kernels_and_this_project_import_together(standin, tmp_path, inside):
    order = (ROOT, KERNELS, standin) if inside else (standin, ROOT, KERNELS)
    seen = _probe(cwd=ROOT if inside else tmp_path, path=order)
    assert seen["kernels"] == str(standin / "kernels" / "__init__.py")
    assert seen["available"]
    assert "get_kernel" in seen["asked"]
    assert seen["ours"] == [str(ROOT / "bamba" / "__init__.py"), str(KERNELS / "ssd_kernels" / "__init__.py")]


@pytest.mark.parametrize("order", [*itertools.permutations(["root", "kernels", "site"])], ids=">".join)
def test_the_distribution_kernels_wins_in_every_order_of_the_path(standin, order):
    folders = {"root": ROOT, "kernels": KERNELS, "site": standin}
    spec = PathFinder.find_spec("kernels", [str(folders[name]) for name in order])
    assert spec.origin == str(standin / "kernels" / "__init__.py")


def test_transformers_does_not_take_the_folder_for_the_distribution():
    try:
        importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        seen = _probe(cwd=ROOT, path=(ROOT, KERNELS))
        assert seen["kernels"] is None, "a namespace portion has no file"
        assert not seen["available"]
    else:
        pytest.skip("the distribution `kernels` is installed here, so the folder cannot be mistaken for it")


def _environment(*path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "HF_HUB_OFFLINE": "1"}


def _probe(cwd: Path, path: tuple[Path, ...]) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=cwd, env=_environment(*path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name",
    [
        *("bamba", "kernels/ssd_kernels", "kernelgate", "tests/correctness", "tests/perf", "tests/gate"),
        *("conftest.py", "perf_baselines/README.md", "pyproject.toml", "tox.ini", ".ci/run", ".github/workflows"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    ],
)
def test_what_the_architecture_names_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("workflow", [".ci/run", ".github/workflows/ci.yml"])
def test_the_command_that_the_readme_tells_is_the_one_that_ci_runs(workflow):
    command = re.search(r"^readme_command='(.+)'$", (ROOT / ".ci/run").read_text(), re.MULTILINE)[1]
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert command in [line.strip() for block in blocks for line in block.splitlines()]
    assert command in (ROOT / workflow).read_text()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_dependency_is_pinned_within_its_range(target):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = _pins(target)
    for declared in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["dev"]]):
        name = canonicalize_name(declared.name)
        assert pins.get(name), f"{name} has no pin in requirements/{target}.txt"
        for pin in pins[name]:
            assert declared.specifier.contains(pin), f"{name} {pin} is outside {declared.specifier}"


@pytest.mark.parametrize("tool", ["ruff", "check-jsonschema", "zizmor"])
def test_pre_commit_runs_the_versions_that_tox_runs(tool):
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    (revision,) = re.findall(rf"/{tool}(?:-pre-commit)?\n    rev: v?(.+)\n", hooks)
    assert [revision] == _pins("cpu")[tool] == _pins("gpu")[tool]


def _pins(target: str) -> dict[str, list[str]]:
    """Read every pinned version by name; a name may stand several times, under different markers."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "requirements" / f"{target}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (only,) = requirement.specifier
            assert only.operator == "==", line
            pins.setdefault(canonicalize_name(requirement.name), []).append(only.version)
    return pins


def test_a_todo_names_the_condition_under_which_it_is_done():
    undated = re.compile(r"\b(TODO(?! (when|once|if|until) )|FIXME|XXX)")
    sources = [path for folder in FORBIDDEN for path in sorted(folder.rglob("*.py"))]
    assert [comment for path in sources for comment in _comments(path) if undated.search(comment)] == []


def _comments(path: Path) -> Iterator[str]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield f"{path.relative_to(ROOT)}:{token.start[0]} {token.string}"
