"""Packed sequences: each is what it is alone, whatever its length and its neighbours."""

import pytest
import torch
from hypothesis import example, given, settings

from ssd_kernels import get_ssd
from ssd_kernels.reference import recurrent
from tests.correctness.implementations import carries, check, implementations, in_fp32
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import DEVICE, Problem, alone, covering, packed_problems

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

EDGES = ("several_sequences", "empty_sequence", "one_token", "boundary_inside_a_chunk")
NO_AND_ONE_TOKEN = Problem(
    batch=1, seqlen=12, lengths=(0, 1, 0, 0, 10, 1, 0), nheads=4, ngroups=2, headdim=5, d_state=7, chunk_size=4,
    by_channel=True, strided=True,
)  # fmt: skip

# The state of the one token is one product, 1.29, of which the rounding to bf16 takes 0.77 of the most it may.
ONE_ROUNDING = Problem(
    batch=1, seqlen=101, lengths=(0, 1, 91, 9), nheads=6, ngroups=2, headdim=32, d_state=16, chunk_size=64,
    softplus=False, bias=False, initial=False, seed=1243,
)  # fmt: skip


def packed_and_alone(ssd, inputs, carry):
    """The y, final states and chunk states of packed sequences, and what those of each alone make together."""
    packed = ssd(**inputs, carry=carry, return_chunk_states=True)
    parts = zip(*(ssd(**each, carry=carry, return_chunk_states=True) for each in alone(inputs)), strict=True)
    return zip(packed, (torch.cat(part, dim=dim) for part, dim in zip(parts, (1, 0, 1), strict=True)), strict=True)


@carries
@covering(*EDGES, "initial_state", "grouped")
@given(problem=packed_problems())
@example(problem=NO_AND_ONE_TOKEN)
def test_the_recurrence_of_packed_sequences_is_that_of_each_alone(carry, problem):
    for packed, together in packed_and_alone(recurrent, problem.inputs(), carry):
        assert torch.equal(packed, together)


@implementations
@carries
@covering(*EDGES, "initial_state", "grouped", "by_channel")
@given(problem=packed_problems())
@example(problem=NO_AND_ONE_TOKEN)
@example(problem=ONE_ROUNDING)
def test_packed_sequences_equal_the_recurrence(name, dtype, carry, problem):
    check(name, problem, dtype, carry)


@in_fp32
@carries
@covering(*EDGES, "initial_state", "grouped", "strided")
@settings(max_examples=4)
@given(problem=packed_problems())
@example(problem=NO_AND_ONE_TOKEN)
def test_a_sequence_has_the_same_bits_packed_and_alone(name, carry, problem):
    for packed, together in packed_and_alone(get_ssd(name), problem.inputs(), carry):
        assert torch.equal(packed, together)


@in_fp32
@carries
def test_a_sequence_of_chunks_longer_than_the_kernels_has_the_same_bits_packed_and_alone(name, carry):
    problem = NO_AND_ONE_TOKEN.but(lengths=(0, 1, 310), seqlen=311, chunk_size=300, nheads=1, ngroups=1)
    for packed, together in packed_and_alone(get_ssd(name), problem.inputs(), carry):
        assert torch.equal(packed, together)


@pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("nseqs", [0, 3])
def test_packed_sequences_without_a_token_keep_their_states(name, initial, nseqs):
    inputs = NO_AND_ONE_TOKEN.but(lengths=(0,) * nseqs, seqlen=0, initial=initial).inputs()
    y, final_state, chunk_states = get_ssd(name)(**inputs, return_chunk_states=True)
    assert y.shape == (1, 0, 4, 5)
    assert chunk_states.shape == (1, 0, 4, 5, 7)
    assert torch.equal(final_state, inputs["initial_state"] if initial else torch.zeros(nseqs, 4, 5, 7, device=DEVICE))


@pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
def test_bounds_may_be_int32_and_strided(name):
    inputs = NO_AND_ONE_TOKEN.inputs()
    expected = get_ssd(name)(**inputs)
    inputs["cu_seqlens"] = inputs["cu_seqlens"].int().repeat_interleave(2)[::2]
    assert not inputs["cu_seqlens"].is_contiguous()
    assert torch.equal(get_ssd(name)(**inputs), expected)


@in_fp32
@carries
def test_what_one_sequence_holds_reaches_no_other(name, carry):
    clean = NO_AND_ONE_TOKEN.but(lengths=(5, 0, 6, 1), initial=True).inputs()
    spoilt = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in clean.items()}
    for key in ("x", "dt", "B", "C"):
        spoilt[key][:, 5:11] = float("nan")
    spoilt["initial_state"][2] = float("nan")
    (y, states), (spoilt_y, spoilt_states) = (
        get_ssd(name)(**inputs, carry=carry, return_final_state=True) for inputs in (clean, spoilt)
    )
    for part in (slice(5), slice(11, None)):
        assert torch.equal(spoilt_y[:, part], y[:, part])
    assert spoilt_y[:, 5:11].isnan().all()
    for i in (0, 1, 3):
        assert torch.equal(spoilt_states[i], states[i])
    assert spoilt_states[2].isnan().all()
