"""Properties of every SSD implementation, against the fp64 recurrence."""

import pytest
import torch
from hypothesis import example, given, strategies as st

from ssd_kernels import get_ssd
from ssd_kernels.reference import recurrent
from tests.correctness.budget import assert_same_computation, assert_within_budget, plain_torch, truth
from tests.correctness.implementations import carries, check, implementations, in_fp32
from tests.correctness.operator_problems import poisoned_memory
from tests.correctness.problems import DEVICE, Problem, covering, problems, tokens
from tests.precision import upcast

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

THOUSANDS_OF_NATS = Problem(
    batch=1, seqlen=37, nheads=2, ngroups=1, headdim=5, d_state=7, chunk_size=16, dt_regime="fast", seed=1
)


@implementations
@carries
@covering("multi_chunk", "ragged", "grouped", "initial_state", "strided", "by_channel", "typical", "slow", "fast")
@given(problem=problems())
@example(problem=THOUSANDS_OF_NATS)
@example(problem=THOUSANDS_OF_NATS.but(seqlen=1))
@example(problem=THOUSANDS_OF_NATS.but(seqlen=16, dt_regime="slow", by_channel=True))
def test_equals_the_recurrence(name, dtype, carry, problem):
    check(name, problem, dtype, carry)


@in_fp32
@pytest.mark.parametrize("chunk_size", [300, 700])
@carries
def test_chunks_longer_than_a_block_of_the_kernels_are_exact(name, chunk_size, carry):
    problem = Problem(batch=1, seqlen=650, nheads=1, ngroups=1, headdim=4, d_state=4, chunk_size=chunk_size)
    check(name, problem, torch.float32, carry)


@in_fp32
@covering("multi_chunk", "ragged", "grouped")
@given(
    problem=problems(min_seqlen=3, dt_regime="typical"),
    chunk_sizes=st.lists(st.sampled_from([5, 16, 64]), min_size=2, max_size=2, unique=True),
)
def test_chunk_size_does_not_change_the_result(name, problem, chunk_sizes):
    inputs = problem.inputs()
    exact, _ = truth(inputs)
    own, _ = plain_torch(inputs)
    for chunk_size in chunk_sizes:
        assert_within_budget(get_ssd(name)(**{**inputs, "chunk_size": chunk_size}), exact, own)


@covering("multi_chunk", "ragged", "grouped")
@given(problem=problems(min_seqlen=3))
def test_in_fp64_chunk_size_changes_nothing_but_the_order_of_the_sums(problem):
    inputs = upcast(problem.inputs())
    whole = get_ssd("chunked")(**{**inputs, "chunk_size": problem.seqlen})
    assert_same_computation(get_ssd("chunked")(**inputs), whole, inputs)


@in_fp32
@covering("multi_chunk", "ragged", "grouped")
@given(problem=problems(min_seqlen=2), data=st.data())
def test_prefill_split_anywhere_equals_the_whole(name, problem, data):
    cut = data.draw(st.integers(1, problem.seqlen - 1), label="cut")
    inputs = problem.inputs()
    ssd = get_ssd(name)
    first, state = ssd(**tokens(inputs, slice(cut), inputs["initial_state"]), return_final_state=True)
    second, state = ssd(**tokens(inputs, slice(cut, None), state), return_final_state=True)
    exact, exact_state = truth(inputs)
    own, own_state = plain_torch(inputs)
    assert_within_budget(torch.cat([first, second], dim=1), exact, own)
    assert_within_budget(state, exact_state, own_state, what="final_state")


@in_fp32
@covering("multi_chunk", "ragged", "grouped")
@given(problem=problems(min_seqlen=4))
def test_prefill_then_token_by_token_equals_the_whole(name, problem):
    inputs = problem.inputs()
    ssd = get_ssd(name)
    cut = problem.seqlen - 3
    y, state = ssd(**tokens(inputs, slice(cut), inputs["initial_state"]), return_final_state=True)
    outputs = [y]
    for t in range(cut, problem.seqlen):
        y, state = ssd(**tokens(inputs, slice(t, t + 1), state), return_final_state=True)
        outputs.append(y)
    exact, _ = truth(inputs)
    own, _ = plain_torch(inputs)
    assert_within_budget(torch.cat(outputs, dim=1), exact, own)


@carries
@covering("multi_chunk", "ragged", "grouped", "initial_state")
@given(problem=problems())
def test_chunk_states_of_the_recurrence_are_the_final_states_of_prefixes(carry, problem):
    inputs = problem.inputs()
    _, final_state, states = recurrent(**inputs, carry=carry, return_chunk_states=True)
    assert states.shape[1] == -(-problem.seqlen // problem.chunk_size)
    for chunk in range(states.shape[1]):
        prefix = tokens(inputs, slice((chunk + 1) * problem.chunk_size), inputs["initial_state"])
        _, state = recurrent(**prefix, carry=carry, return_final_state=True)
        assert torch.equal(states[:, chunk], state)
    assert torch.equal(states[:, -1], final_state)


@in_fp32
@carries
@covering("multi_chunk", "ragged", "grouped", "initial_state")
@given(problem=problems())
def test_chunk_states_are_those_of_the_recurrence_and_change_nothing_else(name, carry, problem):
    inputs = problem.inputs()
    y, final_state, states = get_ssd(name)(**inputs, carry=carry, return_chunk_states=True)
    _, _, exact = recurrent(**upcast(inputs), carry=carry, return_chunk_states=True)
    assert states.shape == exact.shape
    for chunk in range(exact.shape[1]):
        prefix = tokens(inputs, slice((chunk + 1) * problem.chunk_size), inputs["initial_state"])
        _, own = plain_torch(prefix, carry=carry)
        assert_within_budget(states[:, chunk], exact[:, chunk], own, what=f"state after chunk {chunk}")
    assert torch.equal(states[:, -1], final_state)
    plain_y, plain_state = get_ssd(name)(**inputs, carry=carry, return_final_state=True)
    assert torch.equal(y, plain_y)
    assert torch.equal(final_state, plain_state)


@covering("multi_chunk", "ragged", "grouped", "initial_state")
@given(problem=problems())
def test_carry_none_is_the_recurrence_restarted_at_each_chunk(problem):
    """The definition of `none` by that of `all`, chunk by chunk; the implementations are held to it above."""
    inputs = upcast(problem.inputs())
    y, state = recurrent(**inputs, carry="none", return_final_state=True)
    start_state, parts = inputs["initial_state"], []
    for start in range(0, problem.seqlen, problem.chunk_size):
        part = slice(start, start + problem.chunk_size)
        y_part, end_state = recurrent(**tokens(inputs, part, start_state), return_final_state=True)
        parts.append(y_part)
        start_state = None
    assert_same_computation(y, torch.cat(parts, dim=1), inputs)
    assert_same_computation(state, end_state, inputs)


@pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
@carries
@covering("multi_chunk", "ragged", "grouped")
@given(problem=problems(min_seqlen=2), data=st.data())
def test_no_output_depends_on_a_later_token(name, carry, problem, data):
    cut = data.draw(st.integers(1, problem.seqlen - 1), label="cut")
    inputs = problem.inputs()
    before = get_ssd(name)(**inputs, carry=carry)[:, :cut]
    other = problem.but(seed=problem.seed + 1).inputs()
    for key in ("x", "dt", "B", "C"):
        inputs[key][:, cut:] = other[key][:, cut:]
    assert torch.equal(get_ssd(name)(**inputs, carry=carry)[:, :cut], before)


@pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
@given(problem=problems(ngroups=2, nheads=6))
def test_consecutive_heads_share_a_group(name, problem):
    """Head h takes group h // 3: as with B and C written out for every head by repeat_interleave."""
    inputs = problem.inputs()
    written_out = {**inputs, **{key: inputs[key].repeat_interleave(3, dim=2) for key in ("B", "C")}}
    exact, _ = truth(written_out)
    own, _ = plain_torch(written_out)
    assert_within_budget(get_ssd(name)(**inputs), exact, own)


@in_fp32
@covering("multi_chunk", "ragged", "grouped")
@given(problem=problems(strided=True))
def test_views_give_what_contiguous_tensors_give_and_stay_as_they_were(name, problem):
    """The same bits, but for the matrix library, which takes other paths for other strides."""
    inputs = problem.inputs()
    assert not inputs["x"].is_contiguous() or problem.seqlen == problem.batch == 1
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    contiguous = {
        key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()
    }
    viewed = get_ssd(name)(**inputs)
    if name == "triton":
        assert torch.equal(viewed, get_ssd(name)(**contiguous))
    else:
        assert_within_budget(viewed, truth(inputs)[0], get_ssd(name)(**contiguous))
    for key, value in kept.items():
        assert torch.equal(inputs[key], value) if isinstance(value, torch.Tensor) else inputs[key] == value


@in_fp32
@carries
@covering("multi_chunk")
@given(problem=problems())
def test_the_same_call_twice_gives_the_same_bits(name, carry, problem):
    inputs = problem.inputs()
    first, second = (get_ssd(name)(**inputs, carry=carry, return_final_state=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["recurrent", "chunked", "triton"])
@pytest.mark.parametrize(("batch", "seqlen"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("initial", [True, False])
def test_nothing_to_do_leaves_the_state_as_it_was(name, batch, seqlen, initial):
    problem = Problem(
        batch=batch, seqlen=seqlen, nheads=2, ngroups=1, headdim=8, d_state=16, chunk_size=4, initial=initial
    )
    inputs = problem.inputs()
    y, state = get_ssd(name)(**inputs, return_final_state=True)
    assert y.shape == (batch, seqlen, 2, 8)
    assert torch.equal(state, inputs["initial_state"] if initial else torch.zeros(batch, 2, 8, 16, device=DEVICE))
    assert state is not inputs["initial_state"]


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 5 GiB of GPU memory: offsets beyond 2³¹ elements")
@pytest.mark.parametrize("packed", [False, True])
def test_offsets_beyond_two_to_the_31_elements_are_right(packed):
    """x, B and C as views into one in_proj output of Bamba-9B, long enough for its offsets to overflow int32."""
    width, seqlen = 16768, 131_072
    assert width * seqlen > 2**31
    projected = torch.randn(1, seqlen, width, device=DEVICE, dtype=torch.bfloat16)
    last = slice(-300, None)
    x, B, C, dt = projected[..., 8192:].split([8192, 128, 128, 128], dim=-1)
    inputs = {
        "x": x.unflatten(-1, (128, 64)), "dt": dt, "B": B.unsqueeze(2), "C": C.unsqueeze(2),
        "A": -torch.rand(128, device=DEVICE) - 1, "chunk_size": 256, "D": None, "dt_bias": None,
        "dt_softplus": True, "dt_limit": (0.1, float("inf")), "initial_state": None,
    }  # fmt: skip
    # Where every step decays by at least 0.1 nat, 300 tokens forget what came before to far below a bf16 ulp.
    tail = tokens(inputs, slice(-600, None), None)
    tail = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in tail.items()}
    exact, _ = truth(tail)
    own, _ = plain_torch(tail)
    options = {"cu_seqlens": torch.tensor([0, seqlen - 600, seqlen], device=DEVICE)} if packed else {}
    assert_within_budget(get_ssd("triton")(**inputs, **options)[:, last], exact[:, last], own[:, last])
