"""Models among several processes: what one process computes, whichever way they divide it."""

import copy
from itertools import pairwise
from multiprocessing import get_context

import pytest
import torch
import torch.multiprocessing as multiprocessing

from bamba.parallel.part import cut_sequence
from bamba.parallel.plan import local_config, plan
from tests.correctness.budget import assert_within_budget
from tests.correctness.parallel_cases import CASES, SEEDS, cases, draw, run

pytestmark = pytest.mark.correctness

SIZES = (2, 4)
NEIGHBOURS = 3
ALL = [(size, index) for size in SIZES for index in range(CASES + 3)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each number of processes and each case, what they have computed, all of it when the first is asked for."""
    folder = tmp_path_factory.mktemp("ranks")
    get_context("forkserver").set_forkserver_preload([run.__module__])  # imports once, for four processes
    multiprocessing.start_processes(run, (str(folder),), nprocs=4, start_method="forkserver")
    return torch.load(folder / "results")


@pytest.fixture(params=ALL, ids=[f"{size}-ranks-case-{index}" for size, index in ALL], scope="module")
def problem(request, results):
    """A case, its result, the true logits and those that one process gets with the largest error of its neighbours."""
    size, index = request.param
    case = list(cases(size))[index]
    exact = case.logits(case.model(torch.float64))
    worst = torch.zeros_like(exact)
    for seed in range(NEIGHBOURS + 1):
        model = case.model()
        if seed:
            disturb(model, seed)
        error = case.logits(model).double() - case.logits(copy.deepcopy(model).double())
        worst = max(worst, error, key=lambda tensor: tensor.abs().max())
    return case, results[size][index], exact, exact + worst


@torch.no_grad()
def disturb(model, seed):
    """As well conditioned, with last bits of its own: one lucky rounding does not set the budget."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.rand(parameter.shape, generator=generator) - 0.5
        parameter.mul_(1 + 8 * torch.finfo(parameter.dtype).eps * noise)


@pytest.mark.parametrize("way", ["tensor", "tensor, added directly", "sequence"])
def test_several_ranks_compute_what_one_does(problem, way):
    _, result, exact, by_one = problem
    assert_within_budget(result[way], exact, by_one, what=way)


def test_all_ranks_have_the_same_bits(problem):
    _, result, _, _ = problem
    assert result["same on all ranks"]
    assert result["same after"]


def test_the_last_logits_are_every_ranks(problem):
    case, result, exact, by_one = problem
    last = slice(case.prompt - 1, case.prompt)
    assert_within_budget(result["last"], exact[:, last], by_one[:, last], what="last")


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_is_read_in_the_parts_that_a_model_is_cut_into(results, size):
    loaded = [result["loaded"] for result in results[size] if "loaded" in result]
    assert len(loaded) >= 3
    assert all(loaded)


def test_what_wants_a_whole_model_refuses_a_part(problem):
    _, result, _, _ = problem
    assert len(result["refusals"]) == 4
    assert all("model must be whole, got" in message for message in result["refusals"])


def test_parts_of_independent_chunks_end_where_chunks_do(problem):
    case, result, _, _ = problem
    if case.carry == "none":
        assert all(bound % case.config.ssm_chunk_size == 0 for bound in result["bounds"][1:-1])
    assert result["bounds"][0] == 0
    assert result["bounds"][-1] == case.prompt
    assert list(result["bounds"]) == sorted(set(result["bounds"]))


def test_the_next_rank_is_told_of_each_layer_what_it_needs_and_of_independent_chunks_no_state(problem):
    case, result, _, _ = problem
    config = case.config
    window = (case.batch, config.ssm_conv_dim, config.ssm_d_conv - 1)
    state = (case.batch, config.ssm_nheads, config.ssm_headdim, config.ssm_d_state)
    keys_and_values = (2, case.batch, result["bounds"][1], config.attn_nheads_kv, config.attn_headdim)
    of_mixer = [window, state] if case.carry == "all" else [window]
    layers = range(config.num_layers)
    assert result["told"] == [
        each for layer in layers for each in ([keys_and_values] if layer in config.attn_layers else of_mixer)
    ]


def test_cases_exercise_what_may_go_wrong():
    found = set()
    for size in SIZES:
        for case in cases(size):
            config = case.config
            found |= {
                "shared keys and values" if config.attn_nheads_kv < size else "own keys and values",
                "keys and values that do not divide" if config.attn_nheads_kv % size else "",
                "one SSM group" if config.ssm_ngroups == 1 else "several SSM groups",
                "SSM groups that do not divide" if config.ssm_ngroups % size else "SSM groups that divide",
                "a norm over ranks" if config.ssm_norm_groups < size else "a norm of a rank",
                f"carry {case.carry}",
                "unequal parts" if case.prompt % size else "equal parts",
                "parts shorter than a window" if case.prompt // size < config.ssm_d_conv - 1 else "",
                "words that do not divide" if config.vocab_size % size else "words that divide",
                "biases" if config.ssm_proj_bias and config.attn_bias else "",
                "tied" if config.tie_embeddings else "untied",
            }
    assert len(found - {""}) == 19, found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_weight_is_on_some_rank_and_what_is_summed_on_one_alone(seed, size):
    case = draw(seed, size)
    model = case.model()
    plans = [plan(case.config, rank, size) for rank in range(size)]
    for module, cuts in plans[0].items():
        for name, first in cuts.items():
            full = getattr(model.get_submodule(module), name).detach()
            parts = [each[module][name] for each in plans]
            assert all(part.of(full).shape[part.dim] == part.size == first.size for part in parts)
            held = [i for part in parts for start, stop in part.ranges for i in range(start, stop)]
            assert set(held) == set(range(full.shape[first.dim])), f"{module}.{name}"
            if module.endswith(("out_proj", "o_proj", "down_proj")):
                assert len(held) == len(set(held)), f"{module}.{name}"


def test_heads_that_do_not_divide_are_refused():
    config = draw(0, 4).config.replace(ssm_nheads=4, ssm_ngroups=1, ssm_norm_groups=1)
    with pytest.raises(ValueError, match=r"ssm_nheads must be a multiple of the 3 ranks, got 4"):
        local_config(config.replace(attn_nheads=3, attn_nheads_kv=3), 3)
    with pytest.raises(ValueError, match=r"attn_nheads must be a multiple of the 3 ranks, got 4"):
        local_config(config.replace(attn_nheads=4, attn_nheads_kv=4), 3)
    with pytest.raises(ValueError, match=r"ssm_norm_groups must be a multiple or a divisor of the 4 ranks, got 3"):
        local_config(config.replace(attn_nheads=4, attn_nheads_kv=4, ssm_nheads=12, ssm_norm_groups=3), 4)


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("ratio", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_parts_of_a_sequence_cost_the_same(ranks, ratio, unit):
    for length in ((ranks - 1) * unit + 1, 1000, 100_000):
        bounds = cut_sequence(length, ranks, unit=unit, ratio=ratio)
        assert bounds[0] == 0
        assert bounds[-1] == length
        assert all(bound % unit == 0 for bound in bounds[:-1])
        assert all(start < stop for start, stop in pairwise(bounds))
        if length < 1000:
            continue
        costs = [(b - a) + ratio * (b**2 - a**2) / 2 for a, b in pairwise(bounds)]
        # A bound is off by half a unit, whose tokens cost the most at the end.
        assert max(costs) - min(costs) <= 2 * unit * (1 + ratio * length)


def test_a_sequence_without_a_token_for_each_rank_is_refused():
    with pytest.raises(ValueError, match=r"seqlen must be at least 4 tokens, one for each rank, got 3 tokens"):
        cut_sequence(3, 4, unit=1, ratio=0.0)
    with pytest.raises(ValueError, match=r"seqlen must be at least 4 chunks of 8, one for each rank, got 24 tokens"):
        cut_sequence(24, 4, unit=8, ratio=0.0)
