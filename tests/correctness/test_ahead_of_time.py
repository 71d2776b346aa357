"""Kernels compile for devices that are not here, into binaries that take what they took before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aot import stored
from tests.aot.isolated import Failure, run_all
from tests.aot.targets import MAY_SPILL, spills

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
USED = {"registers": 40, "spilled_bytes": 0, "shared_bytes": 1024}
LAUNCHES_OF_EVERY_CASE = """
import json
from tests.aot.worker import every_kernel, find
launched = {f"{launch.module}:{launch.kernel}" for launches in find("sm_90", False).values() for launch in launches}
print(json.dumps([sorted(every_kernel()), sorted(launched)]))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the kernels compiled, not interpreted as in this process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_bambas_main_shapes_compile_for_sm_90_as_stored_and_without_spills():
    """The quick cases; `tox -e aot` compiles all, for every device."""
    done = python("-m", "tests.aot", "--quick", "--target", "sm_90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sm_90: " in done.stdout


def test_every_kernel_is_launched_by_a_case():
    done = python("-c", LAUNCHES_OF_EVERY_CASE)
    assert done.returncode == 0, done.stderr
    every, launched = json.loads(done.stdout)
    assert len(every) >= 9
    assert launched == every


@pytest.mark.parametrize("tested", ["cpu", "gpu"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_results_are_stored_for_the_pinned_versions_of_triton(target, tested):
    pins = (ROOT / "requirements" / f"{tested}.txt").read_text().splitlines()
    (version,) = (pin.partition("==")[2] for pin in pins if pin.startswith("triton=="))
    results = json.loads((stored.FOLDER / f"triton-{version}" / f"{target}.json").read_text())
    assert len(results) > 50
    spilled = [
        line for case, kernels in results.items() for name, used in kernels.items()
        for line in spills(target, case, name, used)
    ]  # fmt: skip
    assert not spilled


def test_what_may_spill_on_sm_90_is_a_stored_kernel_and_as_much_as_one_of_the_pinned_versions_of_triton_spills():
    stored_results = [json.loads(path.read_text()) for path in stored.FOLDER.glob("triton-*/sm_90.json")]
    for (case, kernel), allowed in MAY_SPILL.items():
        assert max(results[case][kernel]["spilled_bytes"] for results in stored_results) == allowed


def test_a_kernel_may_spill_where_that_was_allowed_and_no_more():
    (case, kernel), allowed = next(iter(MAY_SPILL.items()))
    used = USED | {"spilled_bytes": allowed}
    assert spills("sm_90", case, kernel, used) == []
    assert spills("sm_80", case, "_other", used) == []
    assert spills("sm_90", case, kernel, USED | {"spilled_bytes": allowed + 4}) == [
        f"sm_90 · {case} · {kernel}: spilled_bytes must be at most {allowed}, got {allowed + 4}"
    ]
    assert spills("sm_90", case, "_other", used) == [f"sm_90 · {case} · _other: spilled_bytes must be 0, got {allowed}"]


def test_what_differs_from_the_stored_results_is_said_by_case_and_kernel():
    before = {"a": {"_k": USED, "_gone": USED}, "b": {"_k": USED}}
    after = {"a": {"_k": USED | {"registers": 64}, "_new": USED}, "b": {"_k": USED}}
    assert stored.differences("sm_90", before, after) == [
        "sm_90 · a · _gone: stored, and no longer launched",
        "sm_90 · a · _k: registers 40 → 64",
        "sm_90 · a · _new: new, registers 40, spilled_bytes 0, shared_bytes 1024",
    ]
    assert stored.differences("sm_90", before, before) == []


def test_a_case_that_was_not_compiled_is_missed_unless_only_a_few_were():
    assert stored.differences("sm_90", {"a": {"_k": USED}, "b": {"_k": USED}}, {"a": {"_k": USED}}) == [
        "sm_90 · b · _k: stored, and no longer launched"
    ]
    assert stored.differences("sm_90", {"a": {"_k": USED}, "b": {"_k": USED}}, {"a": {"_k": USED}}, partial=True) == []


def test_stored_results_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    results = {"a": {"_k": USED, "_k #2": USED}, "b": {"_k": USED}}
    assert stored.load("sm_90") is None
    stored.store("sm_90", results)
    assert stored.load("sm_90") == results


def test_a_compiler_that_raises_or_dies_takes_nothing_else_with_it():
    fine, raised, died = (next(run_all(name, [call], 1)) for name, call in CALLS)
    assert fine == 7
    assert isinstance(raised, Failure)
    assert "ZeroDivisionError" in str(raised)
    assert isinstance(died, Failure)
    assert "died with exit status 3" in str(died)


CALLS = [("operator:add", (3, 4)), ("operator:truediv", (1, 0)), ("os:_exit", (3,))]


@pytest.mark.parametrize("case", ["batch", "independent", "packed"])
def test_two_programs_of_the_portable_walk_find_room_on_one_multiprocessor_of_hopper(case):
    a_multiprocessor, a_program_more = 228 << 10, 1 << 10
    for path in stored.FOLDER.glob("triton-*/sm_90.json"):
        walk = json.loads(path.read_text())[f"ssd bf16 p64 n128 q256 {case}"]["_chunk_scan_kernel"]
        assert 2 * (walk["shared_bytes"] + a_program_more) <= a_multiprocessor
        assert 2 * walk["registers"] * 128 <= 65536
