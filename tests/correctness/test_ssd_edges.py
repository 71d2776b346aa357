"""The edges of every SSD implementation: extreme steps and decays, what is not finite, odd sizes, odd strides."""

import pytest
import torch

from ssd_kernels import get_ssd
from tests.correctness.budget import assert_within_budget, plain_torch, truth
from tests.correctness.implementations import (
    carries,
    check,
    check_inputs_within_budget,
    implementations,
    in_fp32,
    own_state_in,
)
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import DEVICE, Problem, tokens

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

every_implementation = pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
# More than a chunk; on a GPU of the shape that other tests compile too.
HEADDIM, D_STATE, CHUNK = (32, 16, 16) if DEVICE == "cuda" else (5, 7, 8)
PROBLEM = Problem(
    batch=2, seqlen=CHUNK + 5, nheads=4, ngroups=2, headdim=HEADDIM, d_state=D_STATE, chunk_size=CHUNK,
    by_channel=True,
)  # fmt: skip


@in_fp32
@carries
def test_a_row_of_a_batch_is_what_it_is_alone(name, carry):
    """Bit by bit in Triton; on a CPU the matrix library takes other paths for other sizes."""
    inputs = PROBLEM.inputs()
    both = get_ssd(name)(**inputs, carry=carry, return_chunk_states=True)
    row = {key: inputs[key][1:] for key in ("x", "dt", "B", "C", "initial_state")}
    alone = get_ssd(name)(**{**inputs, **row}, carry=carry, return_chunk_states=True)
    if name == "triton":
        assert all(torch.equal(whole[1:], part) for whole, part in zip(both, alone, strict=True))
    else:
        exact = truth({**inputs, **row}, carry=carry)
        for whole, part, right in zip(both, alone, exact, strict=False):
            assert_within_budget(whole[1:], right, part.float())


@every_implementation
def test_steps_of_zero_leave_the_state_as_it_was(name):
    inputs = PROBLEM.but(softplus=False, bias=False, skip=False).inputs()
    inputs["dt"] = torch.zeros_like(inputs["dt"])
    y, state = get_ssd(name)(**inputs, return_final_state=True)
    assert torch.equal(state, inputs["initial_state"])
    C = inputs["C"].repeat_interleave(2, dim=2).double()
    exact = torch.einsum("bthn,bhpn->bthp", C, state.double())
    assert_within_budget(y, exact, plain_torch(inputs)[0])


@implementations
@pytest.mark.parametrize(
    ("raw", "softplus", "limit"),
    [
        pytest.param(-40.0, True, (0.0, float("inf")), id="tiny"),
        pytest.param(1e-30, False, (0.0, float("inf")), id="tiny, no softplus"),
        pytest.param(19.999, True, (0.0, float("inf")), id="below the threshold of softplus"),
        pytest.param(20.001, True, (0.0, float("inf")), id="above the threshold of softplus"),
        pytest.param(300.0, True, (0.0, float("inf")), id="huge"),
        pytest.param(-1.0, False, (0.0, float("inf")), id="negative, clamped to zero"),
        pytest.param(5.0, True, (0.01, 0.1), id="saturated above"),
        pytest.param(-5.0, True, (0.01, 0.1), id="saturated below"),
        pytest.param(0.0, True, (0.05, 0.05), id="one step for all"),
    ],
)
def test_extreme_steps_equal_the_recurrence(name, dtype, raw, softplus, limit):
    inputs = PROBLEM.but(batch=1, bias=False, softplus=softplus, dt_limit=limit).inputs(dtype)
    spread = torch.linspace(0.999, 1.001, inputs["dt"].numel(), dtype=torch.float64, device=DEVICE)
    inputs["dt"] = (raw * spread).view(inputs["dt"].shape).to(dtype)
    check_inputs_within_budget(name, inputs)


@implementations
@pytest.mark.parametrize("step", [1e-3, 1.0, 50.0])
def test_slow_and_fast_heads_side_by_side_equal_the_recurrence(name, dtype, step):
    """Of head 0, a chunk decays by 1e-6 nats at the least; of head 3, by up to 80 000."""
    inputs = PROBLEM.but(batch=1, bias=False, softplus=False).inputs(dtype)
    inputs["A"] = torch.tensor([-1e-4, -1e-2, -1.0, -200.0], device=DEVICE, dtype=inputs["A"].dtype)
    inputs["dt"] = torch.full_like(inputs["dt"], step)
    check_inputs_within_budget(name, inputs)


# NumPy warns of it in Triton's interpreter.
not_finite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
# Where the value is put, and the heads and channels that it may reach.
SPOILS = {
    "x": ((1, CHUNK + 2, 1, 3), (slice(1, 2), slice(3, 4))),
    "dt": ((1, CHUNK + 2, 1), (slice(1, 2), slice(None))),
    "B": ((1, CHUNK + 2, 0, 2), (slice(0, 2), slice(None))),
    "C": ((1, CHUNK + 2, 0, 2), (slice(0, 2), slice(None))),
}


@every_implementation
@not_finite
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("argument", SPOILS)
def test_what_is_not_finite_stays_in_its_sequence_head_and_channel_and_reaches_no_earlier_chunk(name, argument, value):
    """And is seen at its own token; in B of a group all of whose heads and channels read it."""
    place, (heads, channels) = SPOILS[argument]
    clean = PROBLEM.but(softplus=False).inputs()
    spoilt = {**clean, argument: clean[argument].clone()}
    spoilt[argument][place] = value
    (y, state), (spoilt_y, spoilt_state) = (
        get_ssd(name)(**inputs, return_final_state=True) for inputs in (clean, spoilt)
    )
    token = CHUNK + 2
    assert not spoilt_y[1, token, heads, channels].isfinite().any()
    reached = torch.zeros_like(y, dtype=torch.bool)
    reached[1, token if name == "recurrent" else CHUNK :, heads, channels] = True
    assert torch.equal(torch.where(reached, 0, spoilt_y), torch.where(reached, 0, y))
    reached = torch.zeros_like(state, dtype=torch.bool)
    reached[1, heads, channels] = argument != "C"
    assert torch.equal(torch.where(reached, 0, spoilt_state), torch.where(reached, 0, state))


@every_implementation
@not_finite
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_a_state_stays_in_its_sequence_head_and_channel(name, value):
    clean = PROBLEM.inputs()
    spoilt = {**clean, "initial_state": clean["initial_state"].clone()}
    spoilt["initial_state"][0, 2, 1, 3] = value
    (y, state), (spoilt_y, spoilt_state) = (
        get_ssd(name)(**inputs, return_final_state=True) for inputs in (clean, spoilt)
    )
    assert not spoilt_y[0, 0, 2, 1].isfinite()
    spoilt_y[0, :, 2, 1], spoilt_state[0, 2, 1] = y[0, :, 2, 1], state[0, 2, 1]
    assert torch.equal(spoilt_y, y)
    assert torch.equal(spoilt_state, state)


@implementations
@carries
@pytest.mark.parametrize(
    "seqlen", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1], ids="{} tokens".format
)
def test_lengths_around_the_edges_of_chunks_equal_the_recurrence(name, dtype, carry, seqlen):
    check(name, PROBLEM.but(batch=1, seqlen=seqlen), dtype, carry)


@implementations
@pytest.mark.parametrize(("headdim", "d_state"), [(1, 1), (3, 130), (33, 17), (80, 24), (17, 65)])
def test_sizes_that_are_no_powers_of_two_equal_the_recurrence(name, dtype, headdim, d_state):
    problem = PROBLEM.but(batch=1, nheads=2, ngroups=1, seqlen=CHUNK + 1, headdim=headdim, d_state=d_state)
    check(name, problem, dtype)


def expanded(inputs):
    """x, dt, B and C that are the same at every token: views with a stride of 0."""
    views = {key: inputs[key][:, :1].expand_as(inputs[key]) for key in ("x", "dt", "B", "C")}
    assert all(view.stride(1) == 0 for view in views.values())
    return views


def transposed(inputs):
    """Heads, or groups, before tokens in memory, and every other element."""
    views = {}
    for key in ("x", "dt", "B", "C"):
        wide = inputs[key].transpose(1, 2).repeat_interleave(2, dim=-1)[..., ::2]
        views[key] = wide.transpose(1, 2)
        assert torch.equal(views[key], inputs[key])
        assert not views[key].is_contiguous()
    views["initial_state"] = inputs["initial_state"].mT.contiguous().mT
    views["D"] = inputs["D"].mT.contiguous().mT
    views["A"] = inputs["A"].repeat_interleave(2)[::2]
    return views


def shared(inputs):
    """One sequence for the whole batch, one head's D and state for all: strides of 0 again."""
    views = {key: inputs[key][:1].expand_as(inputs[key]) for key in ("x", "dt", "B", "C", "D", "initial_state", "A")}
    assert all(view.stride(0) == 0 for view in views.values())
    return views


@in_fp32
@carries
@pytest.mark.parametrize("view", [expanded, transposed, shared])
def test_views_of_any_strides_give_what_contiguous_tensors_give(name, carry, view):
    inputs = PROBLEM.inputs()
    views = view(inputs)
    contiguous = {key: value.contiguous() for key, value in views.items()}
    viewed = get_ssd(name)(**{**inputs, **views}, carry=carry, return_final_state=True)
    expected = get_ssd(name)(**{**inputs, **contiguous}, carry=carry, return_final_state=True)
    exact = truth({**inputs, **views}, carry=carry)
    for actual, same, right in zip(viewed, expected, exact, strict=True):
        if name == "triton":
            assert torch.equal(actual, same)
        else:
            assert_within_budget(actual, right, same)


@implementations
def test_a_state_handed_from_prefill_to_decode_to_prefill_gives_the_whole(name, dtype):
    inputs = PROBLEM.inputs(dtype)
    ssd = get_ssd(name)
    state, outputs = inputs["initial_state"], []
    for start, stop in [(0, CHUNK - 1), *((t, t + 1) for t in range(CHUNK - 1, CHUNK + 2)), (CHUNK + 2, None)]:
        y, state = ssd(**tokens(inputs, slice(start, stop), state), return_final_state=True)
        outputs.append(y)
    exact, exact_state = truth(inputs)
    own, own_state = plain_torch(inputs)
    assert_within_budget(torch.cat(outputs, dim=1), exact, own)
    # A kernel that feeds tensor cores rounds on the way into the state, and the state on the way into each output.
    assert_within_budget(state, exact_state, own_state_in(dtype, own_state), what="final_state")


@in_fp32
@carries
def test_packed_sequences_give_the_same_bits_twice(name, carry):
    inputs = PROBLEM.but(batch=1, lengths=(3, 0, CHUNK + 1, 1), seqlen=CHUNK + 5).inputs()
    first, second = (get_ssd(name)(**inputs, carry=carry, return_chunk_states=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
