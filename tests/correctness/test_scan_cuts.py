"""What the Triton scan decides by itself, how a call is cut and which chunks are marked, does not show."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given

from ssd_kernels import get_ssd
from ssd_kernels.portable import chunk_scan, plan
from ssd_kernels.portable.configs import WHOLE, Config, SegmentSizes
from ssd_kernels.reference import recurrent
from tests.correctness.budget import assert_within_budget, plain_torch, truth
from tests.correctness.implementations import carries, check, check_inputs_within_budget
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import (
    DEVICE,
    TRITON_DTYPES,
    Problem,
    alone,
    covering,
    packed_problems,
    problems,
    tokens,
)
from tests.precision import upcast

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

dtypes = pytest.mark.parametrize("dtype", TRITON_DTYPES)
SSD = get_ssd("triton")
CHUNK = 16
PROBLEM = Problem(
    batch=2, seqlen=3 * CHUNK + 5, nheads=4, ngroups=2, headdim=5, d_state=7, chunk_size=CHUNK, softplus=False,
    bias=False, by_channel=True,
)  # fmt: skip
OCTAVES = 200  # of decay in a chunk, beyond which it is marked


def segments_of(tokens):
    """Let a program walk that many tokens, up to a whole number of chunks."""
    return mock.patch.object(plan, "segment_sizes", return_value=SegmentSizes((), (tokens,)))


def long_segments_of(tokens, *longer):
    """Let a program walk all of a sequence of at most `longer[0]` tokens, of others `tokens`, then 3 times as many."""
    sizes = (WHOLE, *((i * 2 + 1) * tokens for i in range(len(longer))))
    return mock.patch.object(plan, "segment_sizes", return_value=SegmentSizes(longer, sizes))


def channels(count):
    """Give a program that many channels."""
    config = Config(block={"BLOCK_P": count}, num_warps=4)
    return mock.patch.object(chunk_scan, "chunk_scan_config", return_value=config)


@dtypes
@covering("multi_chunk", "ragged", "grouped", "initial_state", "strided")
@given(problem=problems(min_seqlen=10))
def test_sequences_of_several_segments_equal_the_recurrence(dtype, problem):
    with segments_of(8):
        check("triton", problem, dtype)


@dtypes
@covering("several_sequences", "empty_sequence", "one_token", "initial_state")
@given(problem=packed_problems())
def test_packed_sequences_of_several_segments_equal_the_recurrence(dtype, problem):
    with segments_of(8):
        check("triton", problem, dtype)


@dtypes
@covering("several_sequences", "empty_sequence", "one_token", "initial_state")
@given(problem=packed_problems())
def test_packed_sequences_some_of_them_long_equal_the_recurrence(dtype, problem):
    with long_segments_of(8, 12, 30):
        check("triton", problem, dtype)


@pytest.mark.parametrize("longer", [(), (30,), (20, 30)])
@pytest.mark.parametrize(("chunk_size", "lengths"), [(CHUNK, (3, 0, 41, 28)), (5, (41, 28)), (48, (3, 130))])
def test_a_sequence_of_several_segments_has_the_same_bits_alone_in_a_batch_and_packed(longer, chunk_size, lengths):
    """Segments are counted from each sequence's start, whatever shares the call; also those of long sequences only."""
    inputs = PROBLEM.but(batch=1, seqlen=sum(lengths), lengths=lengths, chunk_size=chunk_size).inputs()
    with long_segments_of(CHUNK, *longer) if longer else segments_of(CHUNK):
        packed = SSD(**inputs, return_chunk_states=True)
        parts = [SSD(**each, return_chunk_states=True) for each in alone(inputs)]
        rows = PROBLEM.inputs()
        both = SSD(**rows, return_final_state=True)
        row = {key: rows[key][1:] for key in ("x", "dt", "B", "C", "initial_state")}
        one = SSD(**{**rows, **row}, return_final_state=True)
    for whole, part, dim in zip(packed, zip(*parts, strict=True), (1, 0, 1), strict=True):
        assert torch.equal(whole, torch.cat(part, dim=dim))
    assert all(torch.equal(whole[1:], part) for whole, part in zip(both, one, strict=True))


def test_chunk_states_of_several_segments_change_nothing_else():
    inputs = PROBLEM.inputs()
    with segments_of(CHUNK):
        y, final_state, states = SSD(**inputs, return_chunk_states=True)
        plain_y, plain_state = SSD(**inputs, return_final_state=True)
    assert torch.equal(y, plain_y)
    assert torch.equal(final_state, plain_state)
    assert torch.equal(states[:, -1], final_state)


@pytest.mark.parametrize("segment", [40, 120])
def test_chunk_states_where_chunks_end_with_their_period_and_not_with_a_segment(segment):
    """Of 40 tokens asked for, 32 are a chunk and 8 another, for the states before segments as for the outputs."""
    inputs = PROBLEM.but(chunk_size=40, seqlen=300).inputs()
    with segments_of(segment):
        y, _, states = SSD(**inputs, return_chunk_states=True)
    exact_y, _, exact = recurrent(**upcast(inputs), return_chunk_states=True)
    assert_within_budget(y, exact_y, plain_torch(inputs)[0])
    for chunk in range(exact.shape[1]):
        prefix = tokens(inputs, slice((chunk + 1) * 40), inputs["initial_state"])
        own = plain_torch(prefix)[1]
        assert_within_budget(states[:, chunk], exact[:, chunk], own, what=f"state after chunk {chunk}")


@pytest.mark.parametrize("octaves", [1.0, 6000.0])
def test_outputs_of_every_chunk_are_written_for_either_form_of_the_skip(octaves):
    """Those of a plain chunk when the next begins; of five chunks, the fourth marked or not."""
    inputs = decaying(PROBLEM.but(by_channel=False, seqlen=5 * CHUNK + 3).inputs(), {2 * CHUNK + 4: octaves})
    check_inputs_within_budget("triton", inputs)
    by_channel = inputs | {"D": inputs["D"][:, None].repeat(1, PROBLEM.headdim)}
    assert torch.equal(SSD(**inputs), SSD(**by_channel))


def test_a_chunk_that_ends_with_a_period_sees_nothing_of_what_follows():
    """Of 40 tokens asked for, 32 are a chunk and 8 another."""
    inputs = PROBLEM.but(chunk_size=40, seqlen=100).inputs()
    before = SSD(**inputs, return_chunk_states=True)
    inputs["x"][:, 40:] = math.nan
    y, _, states = SSD(**inputs, return_chunk_states=True)
    assert torch.equal(y[:, :40], before[0][:, :40])
    assert torch.equal(states[:, 0], before[2][:, 0])


@dtypes
@carries
@pytest.mark.parametrize("count", [16, 32])
@pytest.mark.parametrize("dt_regime", ["typical", "fast"])
def test_any_tiles_equal_the_recurrence(dtype, carry, count, dt_regime):
    """Of 40 channels, which are several tiles."""
    with channels(count):
        check("triton", PROBLEM.but(headdim=40, softplus=True, bias=True, dt_regime=dt_regime), dtype, carry)


def decaying(inputs, octaves):
    """Set the steps so that every head decays by an octave a token; from the second chunk on as given by token."""
    inputs["A"] = torch.full_like(inputs["A"], -math.log(2) * 100)
    inputs["dt"] = torch.full_like(inputs["dt"], 0.01)
    for token, amount in octaves.items():
        inputs["dt"][:, CHUNK + token] = amount / 100
    return inputs


@dtypes
@carries
@pytest.mark.parametrize("token", [0, 7, CHUNK - 1])
@pytest.mark.parametrize("octaves", [1.0, OCTAVES - CHUNK, OCTAVES - CHUNK + 2, 6000.0])
def test_a_chunk_that_decays_at_one_token_equals_the_recurrence(dtype, carry, token, octaves):
    check_inputs_within_budget("triton", decaying(PROBLEM.inputs(dtype), {token: octaves}), carry)


@dtypes
@carries
def test_a_chunk_that_grows_and_decays_equals_the_recurrence(dtype, carry):
    """By 87 octaves up and 163 down from where it began: further than the range, from end to end."""
    inputs = decaying(PROBLEM.inputs(dtype), {3: -90.0, 9: 240.0})
    inputs["dt_limit"] = (-math.inf, math.inf)
    results = SSD(**inputs, carry=carry), truth(inputs, carry=carry)[0], plain_torch(inputs, carry=carry)[0]
    assert_within_budget(*(y[:, 2 * CHUNK :] for y in results))  # where y is small again


def test_a_state_that_grows_before_it_decays_is_not_forgotten_at_the_end_of_a_segment():
    """From its second chunk, which grows by more than the third decays, nothing is left, and of the first all."""
    inputs = decaying(PROBLEM.but(seqlen=7 * CHUNK).inputs(), {0: -80.0, CHUNK: 40.0})
    inputs["dt_limit"] = (-math.inf, math.inf)
    with segments_of(3 * CHUNK):
        y = SSD(**inputs)
    after = slice(3 * CHUNK, None)  # where y is small again
    assert_within_budget(y[:, after], truth(inputs)[0][:, after], plain_torch(inputs)[0][:, after])


@pytest.mark.parametrize("lengths", [None, (4 * CHUNK, 6 * CHUNK)])
def test_chunks_of_which_nothing_is_left_are_not_read_for_the_states_of_segments(lengths):
    problem = PROBLEM.but(batch=1, seqlen=10 * CHUNK, lengths=lengths)
    inputs = decaying(problem.inputs(), dict.fromkeys(range(9 * CHUNK), 3.0))
    with segments_of(3 * CHUNK):
        before = SSD(**inputs)
        inputs["x"][:, 4 * CHUNK : 5 * CHUNK] = math.nan
        after = SSD(**inputs)
    end = 7 * CHUNK if lengths else 6 * CHUNK
    assert torch.equal(after[:, end:], before[:, end:])
    assert not before.isnan().any()


@dtypes
@pytest.mark.parametrize("octaves", [12.0, 13.0, 1000.0])
def test_a_chunk_that_decays_at_every_token_equals_the_recurrence(dtype, octaves):
    """13 octaves a token are beyond the range after 15 of 16 tokens."""
    check_inputs_within_budget("triton", decaying(PROBLEM.inputs(dtype), dict.fromkeys(range(CHUNK), octaves)))


@pytest.mark.parametrize("octaves", [1.0, OCTAVES - CHUNK, 6000.0])
@pytest.mark.parametrize("later", [0.0, 1.0, 150.0, 6000.0])
def test_no_bit_depends_on_how_much_later_tokens_of_the_chunk_decay(octaves, later):
    cut = CHUNK + 9
    inputs = decaying(PROBLEM.inputs(), {4: octaves})
    before = SSD(**inputs)[:, :cut]
    inputs["dt"][:, cut:] = later / 100
    assert torch.equal(SSD(**inputs)[:, :cut], before)


@pytest.mark.parametrize("other", [300.0, 6000.0, math.nan])
def test_no_bit_of_a_head_depends_on_how_much_its_neighbour_decays(other):
    inputs = decaying(PROBLEM.inputs(), {4: 3.0})
    y, state = SSD(**inputs, return_final_state=True)
    inputs["dt"][:, CHUNK + 3, 1] = other / 100
    other_y, other_state = SSD(**inputs, return_final_state=True)
    for head in (0, 2, 3):
        assert torch.equal(other_y[:, :, head], y[:, :, head])
        assert torch.equal(other_state[:, head], state[:, head])
    assert not torch.equal(other_y[:, CHUNK + 3 :, 1], y[:, CHUNK + 3 :, 1])


def growing(dtype, growth):
    """Two heads whose states decay, and two whose states grow, by up to `growth` nats a token."""
    inputs = PROBLEM.but(batch=1).inputs(dtype)
    inputs["A"] = torch.tensor([0.5, -0.5, 2.0, -300.0], device=DEVICE, dtype=inputs["A"].dtype) * growth
    inputs["dt"] = inputs["dt"].abs().clamp(max=0.5)
    return inputs


# Of growth by a nat y is up to 2.5e14, which fp16 does not hold.
@pytest.mark.parametrize("growth", [1.0, 0.2])
@pytest.mark.parametrize("dtype", [dtype for dtype in TRITON_DTYPES if dtype != torch.float16])
def test_states_that_grow_equal_the_recurrence(dtype, growth):
    """A is negative by contract; heads of the other sign are right as long as fp32 holds their states."""
    check_inputs_within_budget("triton", growing(dtype, growth))


@pytest.mark.skipif(torch.float16 not in TRITON_DTYPES, reason="half precision is checked on GPUs only")
def test_states_that_grow_equal_the_recurrence_in_fp16_where_it_holds_them():
    check_inputs_within_budget("triton", growing(torch.float16, 0.2))
    inputs = growing(torch.float16, 1.0)
    times_largest = truth(inputs)[0].abs() / torch.finfo(torch.float16).max
    y = SSD(**inputs)
    assert y[times_largest > 1.01].isinf().all()
    assert y[times_largest < 0.99].isfinite().all()
