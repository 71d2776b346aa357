"""The plugin's options and ini keys, and the meaning of pytest-benchmark's options where it is ours."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernelgate.processes import CHILD_OPTION
from kernelgate.project import BASELINES_DEFAULT, LOCAL_FOLDER
from kernelgate.stock import STORAGE_DEFAULT, under_xdist
from kernelgate.template import TEMPLATE_OPTION

DEFAULT_REPLICATION = 4
RESUME_OPTION = "--gate-resume"
FORKS = ("auto", "always", "never")

# Measured: processes on an H200 differ by 0.1 %, two H200s by up to 3 %. Processes on two shared cores differ by 9 to
# 33 %, so against a stored baseline time alone shows no less than a doubling there; memory and errors are as sharp as
# on a GPU. Pairs of processes next to each other on one device share what makes devices and hours differ.
DEFAULTS_BY_DEVICE = {
    "cuda": {"gate_margin": 0.04, "gate_mde": 0.03, "gate_env_tolerance": 0.05},
    "cpu": {"gate_margin": 0.50, "gate_mde": 1.50, "gate_env_tolerance": 1.00},
}
PAIRED_DEFAULTS_BY_DEVICE = {
    "cuda": {"gate_margin": 0.01, "gate_mde": 0.02, "gate_env_tolerance": 0.05},
    "cpu": {"gate_margin": 0.10, "gate_mde": 0.30, "gate_env_tolerance": 1.00},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this invocation asks of the gate.

    Attributes:
        compare: Selects a baseline; empty for the newest, None where nothing is compared.
        against: The commit to compare with, measured beside the current tree; None where none is.
        record: The reason for a new baseline, None where none is recorded.
        processes: Observations of each benchmark, at most.
        selftest: Whether to measure planted faults, and compare with nothing.
        resume: Whether to go on with an interrupted run.
        fork: Whether processes are forked from one that has imported everything: auto (where the GPU is timed), always,
            never.
        child: Where this process writes its observations if it is a child.
        template: The pipes of this process if children are forked from it.
        timeout: Seconds a child may take.
        baselines: The folder with a folder for each class of machine.
        local: As ``baselines``, outside version control.
        storage: pytest-benchmark's storage, if it was chosen; baselines are then looked up there.
        machine: The machine class, if it is named rather than detected.
    """

    compare: str | None
    against: str | None
    record: str | None
    processes: int
    selftest: bool
    resume: bool
    fork: str
    child: Path | None
    template: str | None
    timeout: float
    baselines: Path
    local: Path
    storage: Path | None
    machine: str


def add_options(parser: pytest.Parser) -> None:
    """Add the command line options and ini keys."""
    group = parser.getgroup("gate", "kernelgate: performance and accuracy against a baseline")
    group.addoption(
        "--gate-processes",
        type=int,
        metavar="N",
        help="Measure in N fresh processes at most, each one observation; decided after 4, 8 or 12, none follow. "
        f"Default: the ini key gate_processes, otherwise {DEFAULT_REPLICATION} when comparing or recording and 1 when "
        "only measuring.",
    )
    group.addoption(
        "--gate-against",
        metavar="REF",
        help="Compare with another commit, checked out beside this tree and measured in turn with it.",
    )
    group.addoption(
        RESUME_OPTION, action="store_true", help="Go on with the run that was interrupted; its processes count."
    )
    group.addoption(
        "--gate-selftest",
        action="store_true",
        help="Measure the unchanged tree in N processes and planted faults in some more, and record them: how often "
        "this gate errs on this machine.",
    )
    group.addoption("--gate-markdown", metavar="FILE", help="Write the verdicts as Markdown, for a pull request.")
    group.addoption("--gate-json", metavar="FILE", help="Write everything that was measured and decided as JSON.")
    group.addoption(
        "--gate-record",
        metavar="REASON",
        help="Add a baseline for this class of machine, with the reason for it. Needs a clean tree and a green run.",
    )
    group.addoption(
        "--gate-timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="Longest time that one of the processes may take. Default: %(default)g",
    )
    group.addoption(CHILD_OPTION, type=Path, metavar="FILE", help=argparse.SUPPRESS)
    group.addoption(TEMPLATE_OPTION, metavar="PIPES", help=argparse.SUPPRESS)
    parser.addini("gate_processes", "Default of --gate-processes", type="int", default=None)
    parser.addini("gate_fork", "Fork processes from one that imported everything: auto, always, never", default="auto")
    parser.addini("gate_margin", "Slowdown that counts as none (fraction)", type="float", default=None)
    parser.addini("gate_mde", "Slowdown beyond the margin that must be found (fraction)", type="float", default=None)
    parser.addini("gate_env_tolerance", "Difference of ceilings that is no difference", type="float", default=None)
    parser.addini("gate_baselines", "Folder of the baselines, relative to rootdir", default=BASELINES_DEFAULT)
    parser.addini("gate_machine", "Name of the machine class, instead of the detected one", default="")


def read_options(config: pytest.Config) -> Options:
    """Read and check the options of this invocation.

    Raises:
        pytest.UsageError: They contradict each other or mean nothing.
    """
    option = config.option
    compare = _selector(config)
    record: str | None = option.gate_record
    against: str | None = option.gate_against
    deciding = compare is not None or record is not None or against is not None
    processes: int | None = (
        option.gate_processes if option.gate_processes is not None else config.getini("gate_processes")
    )
    if processes is None:
        processes = DEFAULT_REPLICATION if deciding else 1
    disabled = option.benchmark_disable and not option.benchmark_enable
    if disabled and not deciding:
        processes = 1  # tests that measure nothing run here
    if processes < 1:
        raise pytest.UsageError(f"--gate-processes: expected at least 1, found {processes}")
    if record is not None and not record.strip():
        raise pytest.UsageError("--gate-record: expected the reason for the new baseline, found nothing")
    if record is not None and compare is not None:
        raise pytest.UsageError(
            "--gate-record makes a new baseline and --benchmark-compare uses an old one: choose one"
        )
    if against is not None and (record is not None or compare is not None):
        raise pytest.UsageError(
            "--gate-against measures what it compares with: leave out --benchmark-compare and --gate-record"
        )
    if against is not None and processes < 2:
        raise pytest.UsageError(f"--gate-against: expected at least 2 pairs of processes, found {processes}")
    if option.gate_selftest and deciding:
        raise pytest.UsageError("--gate-selftest compares with itself: leave out comparing and recording")
    if option.gate_selftest and processes < 4:
        raise pytest.UsageError(f"--gate-selftest: expected at least --gate-processes=4, found {processes}")
    fork = config.getini("gate_fork")
    if fork not in FORKS:
        raise pytest.UsageError(f"ini key gate_fork: expected one of {', '.join(FORKS)}, found {fork!r}")
    if deciding and under_xdist(config):
        raise pytest.UsageError("benchmarks cannot be compared or recorded under xdist; leave out -n")
    if deciding and disabled:
        raise pytest.UsageError("--benchmark-disable measures nothing that could be compared or recorded")
    for name in DEFAULTS_BY_DEVICE["cpu"]:
        value = config.getini(name)
        if value is not None and value <= 0:
            raise pytest.UsageError(f"ini key {name}: expected a positive fraction, found {value}")
    return Options(
        compare=compare,
        against=against,
        record=record,
        processes=processes,
        selftest=option.gate_selftest,
        resume=option.gate_resume,
        fork=fork,
        child=option.gate_child,
        template=option.gate_template,
        timeout=option.gate_timeout,
        baselines=config.rootpath / config.getini("gate_baselines"),
        local=config.rootpath / LOCAL_FOLDER,
        storage=_storage(config),
        machine=config.getini("gate_machine"),
    )


def tolerance(config: pytest.Config, name: str, device: str, *, paired: bool = False) -> float:
    """A margin, by its ini key, or the default of the kind of device and of comparison."""
    value = config.getini(name)
    defaults = PAIRED_DEFAULTS_BY_DEVICE if paired else DEFAULTS_BY_DEVICE
    return float(value) if value is not None else defaults[device.partition(":")[0]][name]


def _selector(config: pytest.Config) -> str | None:
    """The baseline that --benchmark-compare asks for."""
    value: Any = config.option.benchmark_compare
    if value is True:
        return ""
    if not value:
        return None
    swallowed = Path(config.invocation_params.dir, value.partition("::")[0])
    if "::" in value or (swallowed.exists() and swallowed.suffix != ".json"):
        raise pytest.UsageError(
            f"--benchmark-compare took {value!r}, which is a path to tests, as the baseline to compare with; "
            f"write the path first: pytest {value} --benchmark-compare"
        )
    return str(value)


def _storage(config: pytest.Config) -> Path | None:
    uri: str = config.option.benchmark_storage
    if uri == STORAGE_DEFAULT or "://" in uri.removeprefix("file://"):
        return None
    return Path(config.invocation_params.dir, uri.removeprefix("file://"))
