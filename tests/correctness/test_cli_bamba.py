import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bamba import Bamba, BambaConfig, generate, save_checkpoint
from bamba.__main__ import main
from bamba.bench import bench

pytestmark = pytest.mark.correctness

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def run(capsys, *arguments):
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_module_runs_as_a_command():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", "bamba", "info", "--model", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "tiny: 4 layers, attention at 2" in done.stdout


def test_info_counts_the_9b_model_without_building_it(capsys):
    out = run(capsys, "info", "--model", "bamba-9b", "--length", "1024")
    assert "attention at 9, 18, 27; bfloat16" in out
    parts = {name: int(count.replace(",", "")) for name, count in re.findall(r"│ (.+?) +│ +([\d,]+) │", out)}
    assert parts.pop("total") == sum(parts.values()) == 9_780_235_392
    kv, ssm = 3 * 2 * 8 * 128 * 1024 * 2, 29 * (8448 * 3 * 2 + 128 * 64 * 128 * 4)
    assert f"cache of one sequence of 1,024 tokens: {(kv + ssm) / 2**20:,.2f} MiB" in out


def test_generate_prints_what_the_library_generates_and_that_it_is_random(capsys):
    where = ("--ssm", "chunked", "--device", "cpu")
    out = run(capsys, "generate", "--prompt-ids", "3", "1", "4", "--new-tokens", "5", "--seed", "7", *where)
    model = Bamba(BambaConfig.preset("tiny"), ssm="chunked")
    model.init_weights(seed=7)
    expected = generate(model, torch.tensor([[3, 1, 4]]), max_new_tokens=5)[0, 3:].tolist()
    assert f"generated: {' '.join(map(str, expected))}" in out
    assert "random weights (seed 7)" in out
    assert "ssm: asked for chunked, ran chunked; carry all" in out
    assert re.search(r"time to first token: \d+\.\d\d ms", out)
    assert re.search(r"then \d+\.\d tokens/s", out)


def test_a_checkpoint_folder_is_a_model_of_its_own_dtype_and_weights(capsys, tmp_path):
    model = Bamba(BambaConfig.preset("tiny"), ssm="chunked", dtype=torch.bfloat16)
    model.init_weights(seed=3)
    save_checkpoint(model, tmp_path)
    where = ("--model", str(tmp_path), "--ssm", "chunked", "--device", "cpu")
    out = run(capsys, "generate", "--prompt-ids", "3", "1", "4", "--new-tokens", "5", *where)
    expected = generate(model, torch.tensor([[3, 1, 4]]), max_new_tokens=5)[0, 3:].tolist()
    assert f"generated: {' '.join(map(str, expected))}" in out
    assert "; bfloat16" in out
    assert "random weights" not in out
    assert "4 layers, attention at 2" in run(capsys, "info", "--model", str(tmp_path))
    assert "; float32" in run(capsys, "bench", "--new-tokens", "2", "--repeats", "1", "--dtype", "float32", *where)


def test_prompts_of_a_batch_are_printed_each_with_its_own_tokens(capsys):
    where = ("--ssm", "chunked", "--device", "cpu", "--seed", "7", "--new-tokens", "6")
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]
    model = Bamba(BambaConfig.preset("tiny"), ssm="chunked")
    model.init_weights(seed=7)
    free = [row[len(prompt) :].tolist() for row, prompt in zip(
        generate(model, [torch.tensor(prompt) for prompt in prompts], max_new_tokens=6), prompts, strict=True
    )]  # fmt: skip
    stop = free[0][1]
    arguments = [argument for prompt in prompts for argument in ("--prompt-ids", *map(str, prompt))]
    out = run(capsys, "generate", *arguments, "--stop-ids", str(stop), *where)
    for prompt, row in zip(prompts, free, strict=True):
        made = row[: row.index(stop) + 1] if stop in row else row
        assert f"prompt:    {' '.join(map(str, prompt))}\ngenerated: {' '.join(map(str, made))}\n" in out


def test_sampling_options_reach_the_library(capsys):
    command = ("generate", "--prompt-ids", "3", "1", "--new-tokens", "8", "--temperature", "5")
    greedy, sampled, likeliest, narrow = (
        re.findall(r"generated: .*", run(capsys, *command[:6], *command[6:8] * (i > 0), *more))
        for i, more in enumerate([(), (), ("--top-k", "1"), ("--top-p", "1e-6")])
    )
    assert greedy == likeliest == narrow != sampled


def test_the_same_seed_prints_the_same_tokens(capsys):
    command = ("generate", "--prompt-length", "6", "--new-tokens", "3", "--temperature", "1", "--carry", "none")
    tokens = [re.findall(r"(?:prompt|generated): .*", run(capsys, *command, "--seed", seed)) for seed in "112"]
    assert tokens[0] == tokens[1] != tokens[2]


def test_bench_says_what_was_asked_and_what_ran(capsys):
    out = run(capsys, "bench", "--prompt-length", "20", "--new-tokens", "2", "--repeats", "2", "--dtype", "bfloat16")
    ran_on = "cuda" if torch.cuda.is_available() else "cpu"
    assert re.search(r"ssm: asked for auto, ran (chunked|triton); carry all", out)
    assert re.search(rf"device: asked for auto, ran on {ran_on}.*; bfloat16", out)
    assert "batch 1, prompt 20, then 2 tokens; median of 2 rounds" in out
    assert re.search(r"prefill +│ +[\d.,]+ │ +[\d.,]+ │", out)


def test_bench_rates_follow_from_its_times():
    result = bench(Bamba(BambaConfig.preset("tiny")), batch=3, prompt_length=10, new_tokens=2, repeats=1, warmup=0)
    assert result.prefill_tokens_per_s == pytest.approx(30 / result.prefill_s)
    assert result.decode_tokens_per_s == pytest.approx(3 / result.decode_s)
    assert result.peak_bytes is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (["bench", "--warmup", "-1"], "warmup must be at least 0, got -1"),
        (["generate", "--carry", "window:2"], "carry must be one of ('all', 'none'), got 'window:2'"),
        (["generate", "--ssm", "fastest"], "'fastest'"),
        (["generate", "--ssm", "nowhere.to.be:found"], "No module named 'nowhere'"),
        (["generate", "--ssm", "hopper", "--device", "cpu"], "for 'hopper', got device cpu"),
        (["generate", "--prompt-ids", "256"], "prompt_ids[0] must be in [0, 256), got 256 to 256"),
        (["generate", "--top-k", "0"], "top_k must be at least 1, got 0"),
        (["generate", "--top-p", "2"], "top_p must be above 0 and at most 1, got 2.0"),
        (["generate", "--stop-ids", "3", "-1"], "stop_ids must be in [0, 256), got -1"),
        (["generate", "--pad-id", "256"], "pad_id must be in [0, 256), got 256"),
        (["info", "--model", "mamba"], "argument --model: must be one of tiny, "),
        (["generate", "--model", "mamba"], "or a checkpoint folder, got 'mamba'"),
        (["info", "--model", str(ROOT)], f"{ROOT} holds no config.json"),
        (["generate", "--model", str(ROOT)], f"{ROOT} holds no config.json"),
        (["info", "--length", "0"], "max_len must be at least 1, got 0"),
        ([], "required"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--device", "cuda"])
    assert "--device: 'cuda' needs a GPU that torch can use, got none" in capsys.readouterr().err
