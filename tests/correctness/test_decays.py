"""The command that prints how fast a model's states decay, against the decays of its layers one by one."""

import math
import re

import pytest
import torch

from bamba import Bamba, BambaConfig, save_checkpoint
from ssd_kernels import get_ssd
from ssd_kernels.__main__ import main
from ssd_kernels.decays import chunk_decays
from tests.correctness.problems import Problem

pytestmark = pytest.mark.correctness


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny model whose second state-space layer forgets at once."""
    model = Bamba(BambaConfig.preset("tiny"), device="cpu", dtype=torch.float32)
    mixers = [layer.mamba for layer in model.model.layers if hasattr(layer, "mamba")]
    with torch.no_grad():
        mixers[1].A_log.fill_(math.log(1000.0))
        mixers[1].dt_bias.fill_(3.0)
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rows(out):
    """The numbers of each row of the table, by the name of its layer."""
    cells = [re.findall(r"[^│ %]+", line) for line in out.splitlines() if line.startswith("│")]
    return {name: [float(number) for number in numbers] for name, *numbers in cells}


def test_a_decay_is_what_is_left_of_a_state_after_each_chunk():
    problem = Problem(batch=2, seqlen=21, nheads=4, ngroups=2, headdim=3, d_state=2, chunk_size=8, initial=False)
    inputs = problem.inputs(torch.float64)
    inputs["x"] = torch.zeros_like(inputs["x"])
    ones = torch.ones(2, 4, 3, 2, dtype=torch.float64, device=inputs["x"].device)
    _, _, states = get_ssd("recurrent")(**{**inputs, "initial_state": ones}, return_chunk_states=True)
    left = torch.cat([ones[:, None], states], dim=1)[..., 0, 0]
    names = ("dt", "A", "dt_bias", "dt_softplus", "dt_limit")
    octaves = chunk_decays(**{name: inputs[name] for name in names}, chunk_size=8)
    assert octaves.shape == (2, 3, 4)
    torch.testing.assert_close(octaves, -torch.log2(left[:, 1:] / left[:, :-1]))


def test_without_tokens_it_reads_the_parameters_alone(checkpoint, capsys):
    assert main(["decays", str(checkpoint), "--chunk-size", "32"]) == 0
    table = rows(capsys.readouterr().out)
    config = BambaConfig.preset("tiny")
    layers = [str(layer) for layer in range(config.num_layers) if layer not in config.attn_layers]
    assert [*table] == [*layers, "all"]
    of_all_heads = 32 * 1000 * math.log1p(math.exp(3.0)) / math.log(2)
    assert table[layers[1]] == [pytest.approx(of_all_heads, rel=1e-4)] * 4 + [100.0]
    assert table[layers[0]][4] < 100.0
    assert 0 < table["all"][4] < 100


@pytest.mark.parametrize("how", ["--tokens", "--token-ids"])
def test_with_tokens_the_model_runs(checkpoint, how, tmp_path, capsys):
    (tmp_path / "ids").write_text("1, 2 3\n4 5 6 7")
    value = "7" if how == "--tokens" else str(tmp_path / "ids")
    assert main(["decays", str(checkpoint), "--chunk-size", "2", "--device", "cpu", how, value]) == 0
    out = capsys.readouterr().out
    assert "7 tokens" in out
    forgetful = rows(out)["1"]
    assert forgetful[0] > 200
    assert forgetful[0] < forgetful[3]  # of each token its own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunk-size", "0"], "--chunk-size must be at least 1, got 0"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--token-ids", "ids"], "--token-ids: ids must hold numbers from 0 to 255, got '-2'"),
        (["--token-ids", "beyond"], "--token-ids: beyond must hold numbers from 0 to 255, got '256'"),
        (["--token-ids", "words"], "--token-ids: words must hold numbers from 0 to 255, got 'two'"),
        (["--token-ids", "empty"], "--token-ids: empty must hold numbers from 0 to 255, got none"),
    ],
)
def test_what_cannot_be_is_refused(checkpoint, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in {"ids": "1 -2", "beyond": "255, 256", "words": "1 two 3", "empty": "\n"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit):
        main(["decays", str(checkpoint), *arguments])
    assert message in capsys.readouterr().err
