"""The project in a folder, as pytest sees it: what a command has to know without running pytest."""

from dataclasses import dataclass
from pathlib import Path

# Private, but used by pytest-benchmark's own command as well. The public way runs the project's conftests.
from _pytest.config.findpaths import locate_config

BASELINES_DEFAULT = "perf_baselines"
LOCAL_FOLDER = ".kernelgate"  # what a project's own machine knows, outside version control


@dataclass(frozen=True, kw_only=True)
class Project:
    """Where a project keeps its baselines.

    Attributes:
        root: pytest's rootdir.
        baselines: The folder with a folder for each class of machine.
        machine: The machine class, if the project names it; empty where it is detected.
    """

    root: Path
    baselines: Path
    machine: str


def find_project(folder: Path, baselines: Path | None = None) -> Project:
    """The project that pytest would find in a folder.

    Args:
        folder: Where the command was started.
        baselines: Overrides the ini key ``gate_baselines``.

    Raises:
        pytest.UsageError: The configuration file cannot be read.
    """
    found, _, keys, *_ = locate_config(folder, ())
    root = found or folder
    # pytest 9 wraps the values.
    values = {name: str(getattr(value, "value", value)) for name, value in keys.items()}
    chosen = root / values.get("gate_baselines", BASELINES_DEFAULT) if baselines is None else folder / baselines
    return Project(root=root, baselines=chosen, machine=values.get("gate_machine", ""))


def ignored_by_git(folder: Path) -> Path:
    """Make a folder, if it is not there, whose content git does not see."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.is_file() or not ignore.read_text():
        ignore.write_text("*\n")
    return folder
