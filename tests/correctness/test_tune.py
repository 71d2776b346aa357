"""The search for launch configurations: what is right is measured, the fastest is stored, and what is stored is run."""

import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from ssd_kernels import explain, get_op, tune, tune_problems, tune_scans
from ssd_kernels.__main__ import main
from ssd_kernels.hopper import configs as hopper
from ssd_kernels.interface import Sizes
from ssd_kernels.portable import configs, pinned
from ssd_kernels.repeating import Repeated
from ssd_kernels.tune_problems import Problem, linear_problems, operator_problems
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


NORM = Problem(
    operator="gated_rms_norm", kernel="gated_rms_norm", sizes=(4,), make=make, candidates=[GOOD, WRONG, BROKEN, OTHER]
)
BAMBA = Sizes(batch=1, seqlen=8192, nheads=128, headdim=64, ngroups=1, d_state=128)


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


def taken_by_rules(sizes):
    """The sizes of an entry as the functions of configurations take them: a dtype has a name there."""
    return [getattr(torch, each) if isinstance(each, str) else each for each in sizes]


def unfit(classes):
    """The kernels of a table of which an entry has other fields than the kernel's function takes."""
    functions = {name.removesuffix("_config"): value for name, value in vars(configs).items() if "_config" in name}
    functions["hopper_prepare"] = hopper.prepare_config
    for kernels in classes.values():
        for kernel, entries in kernels.items():
            for each in entries:
                if kernel == "hopper_scan":
                    taken = hopper.entry_of(hopper.of_entry(each))["block"]
                elif kernel == "chunk_scan":
                    taken = configs.chunk_scan_config(*taken_by_rules(each["sizes"]), torch.device(DEVICE)).block
                else:
                    taken = functions[kernel](*taken_by_rules(each["sizes"])).block
                if taken.keys() != each["block"].keys() or not {"num_warps", "num_stages"} <= each.keys():
                    yield kernel


def test_the_table_that_ships_has_what_the_functions_take():
    assert [*unfit(json.loads(pinned.FILE.read_text()))] == []


def test_a_table_of_what_is_searched_fits_and_one_with_other_fields_does_not():
    problems = [
        *operator_problems(tokens=1, batch=1), *linear_problems(torch.bfloat16),
        *tune_scans.portable_problems(torch.bfloat16, [(1, 64)]), *tune_scans.hopper_problems(1, [(1, 64)]),
    ]  # fmt: skip
    found = {each.kernel: [{"sizes": [*each.sizes], **each.candidates[0]}] for each in problems}
    assert len(found) == 8
    assert [*unfit({"a-gpu": found})] == []
    for kernel, (entry,) in found.items():
        other = {**entry, "block": {**entry["block"], "BLOCK_X": 1}}
        assert [*unfit({"a-gpu": {kernel: [other]}})] == [kernel]


def test_every_operator_beside_the_scan_is_searched_the_pinned_configuration_among_the_candidates():
    linear = [problem for dtype in tune.ERRORS for problem in linear_problems(dtype)]
    problems = [*operator_problems(tokens=1, batch=1), *linear]
    assert {problem.operator for problem in problems} == {
        "causal_conv1d", "causal_conv1d_step", "gated_rms_norm", "ssd_step", "linear_step"
    }  # fmt: skip
    for problem in problems:
        config = getattr(configs, f"{problem.operator}_config")(*taken_by_rules(problem.sizes))
        assert config.block in [each["block"] for each in problem.candidates], problem.operator
        assert len({json.dumps(each, sort_keys=True) for each in problem.candidates}) == len(problem.candidates) > 10


def test_an_entry_for_a_projection_is_for_its_dtype_tokens_and_number_of_weights(table, monkeypatch):
    monkeypatch.setattr(tune_problems, "random", partial(torch.empty, device="meta"))
    calls = {(dtype, tokens, paired) for dtype in tune.ERRORS for tokens in (1, 16, 64) for paired in (False, True)}
    other = {"block": {"BLOCK_B": 16, "BLOCK_O": 32, "BLOCK_I": 32, "STAGES": 1}, "num_warps": 2, "num_stages": 2}
    for problem in linear_problems(torch.bfloat16):
        pinned.store({"linear_step": [{"sizes": [*problem.sizes], **other}]}, table)
        taken = {call for call in calls if configs.linear_step_config(*call).block == other["block"]}
        made = problem.make(torch.bfloat16)
        assert taken == {(torch.bfloat16, made["x"].shape[0], made["up_weight"] is not None)}
        table.unlink()


def test_the_search_imposes_each_candidate_on_a_projection(monkeypatch):
    calls, taken = CALLS["linear_step"](), []

    def step(**inputs):
        taken.append(configs.linear_step_config(inputs["x"].dtype, 2, False).block)
        return get_op("linear_step", "triton")(**inputs)

    monkeypatch.setattr(tune, "get_op", lambda operator, name: step if name == "triton" else get_op(operator, name))
    (problem, *_) = (each for each in linear_problems(torch.float32) if each.sizes[1:] == (16, 0))
    few_candidates = [each for each in problem.candidates if each["num_warps"] == 4][:2]
    small = Problem(**{**vars(problem), "make": lambda _: calls, "candidates": few_candidates})
    trials = tune.search(small, torch.float32, lambda _: 1.0)
    assert [trial.fault for trial in trials] == ["", ""]
    assert taken == [each["block"] for each in few_candidates]


@pytest.mark.skipif(DEVICE == "cuda", reason="it would search")
def test_without_a_gpu_it_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["tune"])
    assert "tune needs a GPU to measure on, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "argument --tokens: must be a number of at least 1, got '0'"),
        (["--batch", "-3"], "argument --batch: must be a number of at least 1, got '-3'"),
        (["--scan", "2048"], "argument --scan: must be BATCHxTOKENS, such as 8x2048, got '2048'"),
        (["--scan", "8x0"], "argument --scan: must be BATCHxTOKENS, such as 8x2048, got '8x0'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["tune", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("period", [None, 4])
@pytest.mark.parametrize("nheads", [24, 48, 80, 112, 128])
def test_what_the_rule_takes_for_a_hopper_scan_is_among_the_candidates(nheads, period):
    lengths = [(1, seqlen * 1024) for seqlen in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)]
    for batch, seqlen in [*tune_scans.SHAPES, *lengths]:
        sizes = Sizes(batch=batch, seqlen=seqlen, nheads=nheads, headdim=64, ngroups=1, d_state=128)
        chosen = hopper.entry_of(hopper.scan_config(sizes, period, 132))
        candidates = hopper.scan_candidates(sizes, period)
        assert chosen in candidates, sizes
        assert len({json.dumps(each, sort_keys=True) for each in candidates}) == len(candidates)


def test_the_pinned_configuration_of_the_hopper_preparation_is_among_the_candidates():
    assert vars(hopper.prepare_config()) in hopper.prepare_candidates()


def test_an_entry_for_a_hopper_scan_overrides_the_rule_for_its_sizes_only(table, monkeypatch):
    monkeypatch.setattr(pinned, "device_class", lambda: "an-h200")
    rule = hopper.scan_config(BAMBA, None, 132)
    other = next(each for each in hopper.scan_candidates(BAMBA, None) if each["block"]["CONSUMERS"] != rule.consumers)
    pinned.store({"hopper_scan": [{"sizes": list(hopper.size_class(BAMBA, None)), **other}]}, table)
    assert hopper.entry_of(hopper.scan_config(BAMBA, None, 132)) == other != hopper.entry_of(rule)
    assert hopper.scan_config(BAMBA, 4, 132) == hopper.scan_config.__globals__["_fastest"](BAMBA, 4, 132)


class FakeGraph:
    """Replays nothing."""

    def replay(self):
        pass


class FakeEvent:
    """Shows that a norm with two rows a program is twice as fast as any other call."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, _):
        return 0.002 if configs.gated_rms_norm_config(4).block.get("ROWS") == 2 else 0.004


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU as far as the search asks for one; tensors stay where they are."""
    for name, value in {
        "is_available": lambda: True, "synchronize": lambda: None, "CUDAGraph": FakeGraph, "Event": FakeEvent,
        "graph": lambda _: nullcontext(), "current_device": lambda: 0, "get_device_name": lambda _: "A GPU",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    for module in (tune, tune_problems, tune_scans):
        monkeypatch.setattr(module, "device", lambda: "cpu")
    monkeypatch.setattr(tune, "FLUSHED_BYTES", 16)
    pinned._class_of.cache_clear()
    yield
    pinned._class_of.cache_clear()


def few(problems):
    """The same with two candidates each."""
    return [Problem(**{**vars(problem), "candidates": problem.candidates[:2]}) for problem in problems]


@pytest.mark.skipif(DEVICE == "cuda", reason="pretends that there is a GPU")
def test_the_command_searches_and_stores_what_gains(table, fake_gpu, monkeypatch, capsys):
    monkeypatch.setattr(tune, "all_problems", lambda *_: [NORM])
    assert main(["tune", "--only", "gated_rms_norm", "--dtype", "float32", "--output", str(table)]) == 0
    said = capsys.readouterr().out
    assert "+100.0%" in said
    assert json.loads(table.read_text()) == {"a-gpu": {"gated_rms_norm": [{"sizes": [4], **OTHER}]}}
    assert main(["tune", "--only", "gated_rms_norm", "--dtype", "float32", "--output", str(table)]) == 0
    assert "0 entries that gain" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["tune", "--only", "another"])
    assert "--only must name one of ['gated_rms_norm'] that takes bfloat16 here" in capsys.readouterr().err


@pytest.mark.skipif(DEVICE == "cuda", reason="pretends that there is a GPU")
def test_the_search_imposes_each_candidate_on_the_scan(fake_gpu, monkeypatch):
    sizes = Sizes(batch=1, seqlen=128, nheads=128, headdim=64, ngroups=1, d_state=128)
    (problem,) = few(each for each in tune_scans.hopper_problems(1, [(1, 128)]) if each.kernel == "hopper_scan")
    taken = []

    def scan(**inputs):
        taken.append(hopper.entry_of(hopper.scan_config(sizes, None, 132)))
        return get_op("ssd", "chunked")(**inputs)

    monkeypatch.setattr(tune, "get_op", lambda operator, name: scan if name == "hopper" else get_op(operator, name))
    trials = tune.search(problem, torch.float32, tune.measure)
    assert [trial.fault for trial in trials] == ["", ""]
    assert [entry for entry in taken if entry not in problem.candidates] == []
    assert {json.dumps(entry) for entry in taken} == {json.dumps(entry) for entry in problem.candidates}
    now, then = tune.in_turn(problem, torch.float32, lambda call: (call(), float(len(taken)))[1], [{}, trials[0].entry])
    assert now < then


def test_what_is_repeated_is_forgotten_where_a_configuration_is_imposed():
    repeated = Repeated()
    repeated._calls.keep("a call", "what it launched")
    with pinned.imposed("gated_rms_norm", GOOD):
        assert not [*repeated._calls]
        repeated._calls.keep("a call", "what it launched")
    assert not [*repeated._calls]


def test_the_portable_scan_takes_what_is_imposed_and_its_rule_is_among_the_candidates(table, monkeypatch):
    for problem in tune_scans.portable_problems(torch.bfloat16, [(1, 64), (2, 64)]):
        inputs = problem.make(problem.dtypes[0])
        config = scan_kernel(inputs)
        assert problem.sizes[0] == str(problem.dtypes[0]).removeprefix("torch.")
        assert {json.dumps(each) for each in map(as_launched, problem.candidates)} >= {json.dumps(config)}
        other = next(each for each in problem.candidates if as_launched(each) != config)
        with pinned.imposed("chunk_scan", other):
            assert scan_kernel(inputs) == as_launched(other)
        monkeypatch.setattr(pinned, "device_class", lambda: "a-gpu")
        pinned.store({"chunk_scan": [{"sizes": list(problem.sizes), **other}]}, table)
        assert scan_kernel(inputs) == as_launched(other)


def scan_kernel(inputs):
    """How the longest kernel of the portable scan would be launched."""
    said = explain("ssd", implementation="portable", **inputs)
    return next(kernel.config for kernel in said.kernels if kernel.name == "_chunk_scan_kernel")


def as_launched(entry):
    return {**entry["block"], "num_warps": entry["num_warps"], "num_stages": entry["num_stages"]}
