"""The search for launch configurations: what is right is measured, the fastest is stored, and what is stored is run."""

import json

import pytest
import torch

from ssd_kernels import explain, get_op, tune
from ssd_kernels.__main__ import main
from ssd_kernels.portable import configs, pinned
from ssd_kernels.tune_problems import Problem, all_problems
from tests.correctness.operator_calls import CALLS
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness


def entry(**block):
    return {"block": block, "num_warps": 1, "num_stages": 1}


GOOD, OTHER = entry(BLOCK=8, ROWS=1, STAGES=1), entry(BLOCK=8, ROWS=2, STAGES=1)
WRONG = entry(BLOCK=8, ROWS=3, STAGES=1)
BROKEN = entry(BLOCK=7, ROWS=1, STAGES=1)  # not a power of two


def make(dtype):
    """Inputs of a norm."""
    inputs = CALLS["gated_rms_norm"]()
    return {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in inputs.items()}


NORM = Problem(operator="gated_rms_norm", sizes=(4,), make=make, candidates=[GOOD, WRONG, BROKEN, OTHER])


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table."""
    file = tmp_path / "pinned.json"
    monkeypatch.setattr(pinned, "FILE", file)
    pinned._table.cache_clear()
    yield file
    pinned._table.cache_clear()


def test_only_what_is_right_is_measured_and_the_fastest_wins(monkeypatch):
    def miscompiled(**inputs):
        out = get_op("gated_rms_norm", "triton")(**inputs)
        return out * float("nan") if configs.gated_rms_norm_config(4).block == WRONG["block"] else out

    monkeypatch.setattr(
        tune, "get_op", lambda operator, name: miscompiled if name == "triton" else get_op(operator, name)
    )
    times = iter([5.0, 3.0])
    trials = tune.search(NORM, torch.float32, lambda call: (call(), next(times))[1])
    assert [trial.microseconds for trial in trials] == [5.0, None, None, 3.0]
    assert "relative error nan" in trials[1].fault
    assert trials[2].fault
    assert tune.fastest(trials).entry == OTHER


def test_where_nothing_is_right_it_says_so():
    with pytest.raises(RuntimeError, match="no candidate is right: too slow"):
        tune.fastest([tune.Trial(entry=GOOD, fault="too slow")])


def test_what_is_stored_is_what_runs_and_replaces_only_its_sizes(table):
    before = configs.gated_rms_norm_config(4)
    pinned.store({"gated_rms_norm": [{"sizes": [4], **GOOD}, {"sizes": [6], **GOOD}]}, table)
    pinned.store({"gated_rms_norm": [{"sizes": [4], **OTHER}], "ssd_step": [{"sizes": [4, 8], **GOOD}]}, table)
    stored = json.loads(table.read_text())[pinned.device_class()]
    assert stored["gated_rms_norm"] == [{"sizes": [6], **GOOD}, {"sizes": [4], **OTHER}]
    assert configs.gated_rms_norm_config(4).block == OTHER["block"] != before.block
    assert configs.gated_rms_norm_config(5).block["BLOCK"] == 8
    said = explain("gated_rms_norm", implementation="triton", **CALLS["gated_rms_norm"]())
    assert said.kernels[0].config == configs.gated_rms_norm_config(4).kwargs


def test_another_device_takes_the_rule(table):
    table.write_text(json.dumps({"another": {"gated_rms_norm": [{"sizes": [4], **OTHER}]}}))
    assert configs.gated_rms_norm_config(4).block["ROWS"] == 1


def test_an_imposed_configuration_ends_with_its_block():
    before = configs.gated_rms_norm_config(4)
    with pinned.imposed("gated_rms_norm", OTHER):
        assert configs.gated_rms_norm_config(4).block == OTHER["block"]
    assert configs.gated_rms_norm_config(4) == before


def test_the_table_that_ships_has_what_the_functions_take():
    functions = {name.removesuffix("_config"): value for name, value in vars(configs).items() if "_config" in name}
    for kernels in json.loads(pinned.FILE.read_text()).values():
        for kernel, entries in kernels.items():
            for each in entries:
                rule = functions[kernel](*each["sizes"])
                assert rule.block.keys() == each["block"].keys()


def test_every_operator_beside_the_scan_is_searched_the_pinned_configuration_among_the_candidates():
    problems = list(all_problems(tokens=1, batch=1))
    assert {problem.operator for problem in problems} == {
        "causal_conv1d", "causal_conv1d_step", "gated_rms_norm", "ssd_step"
    }  # fmt: skip
    for problem in problems:
        config = getattr(configs, f"{problem.operator}_config")(*problem.sizes)
        assert config.block in [each["block"] for each in problem.candidates], problem.operator
        assert len({json.dumps(each, sort_keys=True) for each in problem.candidates}) == len(problem.candidates) > 10


@pytest.mark.skipif(DEVICE == "cuda", reason="it would search")
def test_without_a_gpu_it_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["tune"])
    assert "tune needs a GPU to measure on, got none" in capsys.readouterr().err
