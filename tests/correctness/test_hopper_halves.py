"""Chunks of the Hopper scan that decay beyond the range of factors: two scales where the halves fit, else exact."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ssd_kernels.hopper.configs import CHUNK, Cut
from ssd_kernels.hopper.decays import BETWEEN, STEEP
from tests.correctness.hopper_model import hopper_model
from tests.correctness.hopper_scans import both, by_hopper, by_two_warpgroups, check, modelled, on_cpu
from tests.correctness.implementations import CARRIES, needs_hopper
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import DEVICE, Problem

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

PLAIN, HALVED, EXACT = range(3)
# What the halves of a chunk decay by, in powers of two: together within 200, each of them, or not even these.
SPANS = {
    PLAIN: [(1.0, 2.0), (90.0, 95.0), (0.0, 150.0), (190.0, 0.0)],
    HALVED: [(150.0, 150.0), (190.0, 30.0), (20.0, 195.0), (195.0, 195.0)],
    EXACT: [(230.0, 1.0), (5.0, 300.0), (400.0, 400.0), (1000.0, 0.0)],
}
# The share of a half's decay that each of its tokens has.
SHARES = {
    "even": torch.ones(CHUNK // 2),
    "rising": torch.linspace(0, 1, CHUNK // 2),
    "all in the first": torch.eye(CHUNK // 2)[0],
    "all in the last": torch.eye(CHUNK // 2)[-1],
}
NHEADS = 4
A = (-1.0, -0.3, -4.0, -16.0)
PROBLEM = Problem(
    batch=1, seqlen=330, nheads=NHEADS, ngroups=2, headdim=64, d_state=64, chunk_size=2 * CHUNK, softplus=False,
    bias=False,
)  # fmt: skip
LENGTHS = (100, 0, 1, 64, 129, 36)
CUTS = [None, Cut(segments=2), Cut(segments=3, pieces_of_segment=2)]


def chunks_of(inputs):
    """Of each chunk: its slot, first token and one past its last."""
    bounds = [0, inputs["dt"].shape[1]] if inputs.get("cu_seqlens") is None else inputs["cu_seqlens"].tolist()
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for token in range(start, stop, CHUNK):
            yield start // CHUNK + i + (token - start) // CHUNK, token, min(token + CHUNK, stop)


def decaying(problem, asked):
    """Inputs whose chunks decay as `asked` in turn, head after head: spans of the halves, and how tokens share them."""
    inputs = problem.inputs(torch.bfloat16)
    inputs["A"] = torch.tensor(A, device=DEVICE)
    in_turn = itertools.cycle(asked)
    for _, token, stop in chunks_of(inputs):
        for head in range(NHEADS):
            spans, share = next(in_turn)
            octaves = torch.cat([span * SHARES[share] / SHARES[share].sum() for span in spans])
            steps = octaves * (math.log(2) / -A[head])
            inputs["dt"][:, token:stop, head] = steps[: stop - token].to(inputs["dt"])
    return inputs


def kinds(inputs):
    """Of each chunk and head, by slot: how it has to be computed. Of steps and A of one sign each."""
    octaves = inputs["dt"][0].double() * inputs["A"].double().abs() / math.log(2)
    for slot, token, stop in chunks_of(inputs):
        halves = [octaves[token:stop][part].sum(0) for part in (slice(CHUNK // 2), slice(CHUNK // 2, None))]
        for head, (first, second) in enumerate(zip(*(half.tolist() for half in halves), strict=True)):
            yield slot, head, PLAIN if first + second <= 200 else HALVED if max(first, second) <= 200 else EXACT


@st.composite
def chunks(draw):
    """Spans of halves and shares of tokens, chunk after chunk; of each kind at least one."""
    more = draw(st.lists(st.sampled_from([PLAIN, HALVED, EXACT]), max_size=9))
    ordered = draw(st.permutations([PLAIN, HALVED, EXACT, *more]))
    return [(draw(st.sampled_from(SPANS[kind])), draw(st.sampled_from(sorted(SHARES)))) for kind in ordered]


@both
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "packed"])
@settings(max_examples=5)
@given(asked=chunks(), carry=st.sampled_from(CARRIES), cut=st.sampled_from(CUTS))
def test_chunks_of_every_kind_side_by_side_equal_the_recurrence(scan, lengths, asked, carry, cut):
    inputs = decaying(PROBLEM.but(lengths=lengths), asked)
    assert {kind for _, _, kind in kinds(inputs)} == {PLAIN, HALVED, EXACT}
    check(scan, inputs, carry, cut, by_head=True)


WARPGROUPS = [
    pytest.param(modelled, marks=on_cpu),
    pytest.param(by_hopper, marks=needs_hopper),
    pytest.param(by_two_warpgroups, marks=needs_hopper),
]


@pytest.mark.parametrize("scan", WARPGROUPS)
@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({"d_state": 128}, None),
        ({"d_state": 128, "lengths": LENGTHS, "strided": True}, None),
        ({"headdim": 128, "by_channel": True}, None),
        ({"initial": False, "skip": False, "batch": 2}, None),
        ({"seqlen": 600}, Cut(segments=2, pieces_of_segment=2)),
    ],
    ids=["wide states", "wide states, packed views", "wide heads", "nothing optional", "segments"],
)
def test_two_scales_in_a_chunk_equal_the_recurrence(scan, changes, cut):
    """No exact chunks: the large steps of theirs would hide what others lose."""
    asked = [(spans, share) for share in SHARES for spans in (*SPANS[HALVED], SPANS[PLAIN][0])]
    inputs = decaying(PROBLEM.but(**changes), asked)
    assert {kind for _, _, kind in kinds(inputs)} == {PLAIN, HALVED}
    check(scan, inputs, cut=cut, by_head=True)


@on_cpu
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "packed"])
@settings(max_examples=5)
@given(asked=chunks())
def test_no_more_chunks_than_have_to_are_halved_or_exact(lengths, asked):
    inputs = decaying(PROBLEM.but(lengths=lengths), asked)
    _, _, run = hopper_model(inputs)
    exponents = run.prepared.exponents[0]
    for slot, head, kind in kinds(inputs):
        found = exponents[head, slot]
        said = EXACT if found[STEEP.value] else HALVED if found[BETWEEN.value] else PLAIN
        assert said == kind, (slot, head)
