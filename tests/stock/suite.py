"""The tests of a source distribution of pytest-benchmark, and what comes of running them."""

import hashlib
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VERSION = "5.3.1"
SHA256 = "c1ee70a58f9bfb1ac955cc634247a340b0df7bcb949071cfca396f16c6fc3516"

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What came of one test: passed, failed or skipped, and pytest's words about it."""

    kind: str
    text: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed, in whatever phase."""
        return self.kind == "failed"


def download(folder: Path) -> Path:
    """Download the source distribution into a folder."""
    # pip asks a source distribution for its metadata even where it only downloads; setuptools is installed here.
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "download", *options, f"pytest-benchmark=={VERSION}"], check=True)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution, once it is the one that was looked at, and return its root.

    Raises:
        ValueError: It is another file.
    """
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{sdist}: expected sha256 {SHA256}, found {found}")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"pytest_benchmark-{VERSION}"


def run(root: Path, arguments: Sequence[str], *, with_plugin: bool) -> dict[str, Outcome]:
    """Run the tests as their authors do, and return their outcomes by name.

    Args:
        root: The unpacked distribution. Its `src` stays unused: the installed package is tested.
        arguments: For pytest.
        with_plugin: Whether the plugin is loaded, in the tests' own runs of pytest as well.

    Raises:
        RuntimeError: pytest did not get as far as testing.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TOX_"))}
    environment |= {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join((str(root / "tests"), str(ROOT)))}
    # They run the command that is installed beside this interpreter, wherever the shell would find another.
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if with_plugin:
        environment["PYTEST_PLUGINS"] = "kernelgate.plugin"  # pytester hands it on, unlike options
    report = root / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--ignore=src", f"--junitxml={report}", *arguments]
    done = subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest: expected exit status 0 or 1, found {done.returncode}:\n{done.stdout[-5000:]}")
    return dict(_outcome(case) for case in ET.parse(report).iter("testcase"))  # noqa: S314 -- pytest's own


def _outcome(case: ET.Element) -> tuple[str, Outcome]:
    name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
    for element, kind in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(element)
        if found is not None:
            return name, Outcome(kind, found.text or "")
    return name, Outcome("passed")
