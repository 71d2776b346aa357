"""Jobs that torchrun starts: how one ends whose rank fails, and the command that measures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bamba.__main__ import main
from bamba.parallel.processes import NCCL, ranks

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]
A_MINUTE = 60

FAILING = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from bamba.parallel.processes import ranks

with ranks(sys.argv[2], patience=timedelta(seconds=5)) as mesh:
    told = torch.ones(4, device=sys.argv[2])
    dist.all_reduce(told)
    if mesh.get_rank() == 1:
        if sys.argv[1] == "raises":
            raise ValueError("the second rank has had enough")
        if sys.argv[1] == "is killed":
            os.kill(os.getpid(), 9)
        time.sleep(600)
    dist.all_reduce(told)
    told.tolist()
"""


def torchrun(*arguments):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    # A port of its own, so that several jobs can be on one machine.
    command[3:3] = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", "the second rank has had enough"),
        ("is killed", "Signal 9 (SIGKILL)"),
        ("hangs", {"cpu": "Timed out", "cuda": "Watchdog caught collective operation timeout"}),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_job_ends_with_its_reason_when_a_rank(tmp_path, how, reason, device):
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    start = time.monotonic()
    done = torchrun(str(script), how, device)
    took = time.monotonic() - start
    assert done.returncode != 0
    summary = done.stderr[done.stderr.index("Root Cause (first observed failure)") :]
    if how == "hangs":  # it is the other that gives up, and says so
        assert "rank      : 0" in summary
        assert reason[device] in done.stderr
    else:
        assert "rank      : 1" in summary
        assert reason in summary
    assert took < A_MINUTE


@pytest.mark.parametrize(
    ("way", "among"), [("tensor", "heads among 2 devices"), ("sequence", "prompt among 2 devices")]
)
def test_the_bench_of_several_processes_is_printed_once_and_written(tmp_path, way, among):
    where = tmp_path / "result.json"
    options = ["--device", "cpu", "--ssm", "chunked", "--prompt-length", "40", "--new-tokens", "2", "--repeats", "1"]
    done = torchrun("-m", "bamba", "bench", f"--{way}-parallel", "--json", str(where), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batch 1, prompt 40, then 2 tokens") == 1
    assert among in done.stdout
    result = json.loads(where.read_text())
    assert result["ranks"] == 2
    assert result[f"{way}_parallel"] is True
    assert result["prefill_s"] > 0
    assert result["decode_s"] > 0


def test_one_process_alone_is_told_to_start_by_torchrun(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE must be set, as by `torchrun --nproc-per-node N"), ranks("cpu"):
        pass
    with pytest.raises(SystemExit):
        main(["bench", "--tensor-parallel", "--sequence-parallel"])
    assert "expected at most one of them, got both" in capsys.readouterr().err


def test_what_a_hanging_rank_costs_beyond_the_patience_is_set_unless_somebody_has(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1000")  # so many GPUs has no machine
    for name in NCCL:
        monkeypatch.setenv(name, "as it was")
        monkeypatch.delenv(name)
    set_by_hand, *others = NCCL
    monkeypatch.setenv(set_by_hand, "60000")
    with pytest.raises(ValueError, match="expected a GPU for each process"), ranks("cuda"):
        pass
    assert os.environ[set_by_hand] == "60000"
    assert {name: os.environ[name] for name in others} == {name: NCCL[name] for name in others}
