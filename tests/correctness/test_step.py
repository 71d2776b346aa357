"""The decode step of the state space, against its definition head by head and against the scan."""

import pytest
import torch
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op, get_ssd
from tests.correctness.budget import assert_within_budget
from tests.correctness.operator_problems import (
    StepProblem,
    assert_right,
    implementations,
    in_fp32,
    poisoned_memory,
    step_problems,
    stepped,
)
from tests.correctness.problems import DEVICE, DT_REGIMES, Problem, covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

PROBLEM = StepProblem(batch=3, nheads=4, ngroups=2, headdim=5, d_state=7, slots=(4, 0, 2), nslots=5)


@implementations
@covering(
    "permuted_slots", "spare_slots", "grouped", "several_tiles", "strided", "state_16_bit", "gate", "no_gate",
    "skip_None", "skip_head", "skip_channel", *DT_REGIMES,
)  # fmt: skip
@given(problem=step_problems())
@example(problem=PROBLEM)
@example(problem=PROBLEM.but(skip="channel", state_dtype=torch.float16, headdim=40, d_state=130, strided=True))
@example(problem=PROBLEM.but(dt_regime="fast", softplus=False))
@example(problem=PROBLEM.but(dt_regime="slow", slots=None, nslots=3, skip=None, gate=False, bias=False))
def test_equals_the_definition(name, dtype, problem):
    inputs = problem.inputs(dtype)
    single = torch.promote_types(dtype, torch.float32)
    exact, exact_state = stepped(inputs, torch.float64)
    own, own_state = stepped(inputs, single)
    before = inputs["state"].clone()
    y = get_op("ssd_step", name)(**inputs)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_right(y, exact, own.to(dtype))
    state = inputs["state"]
    assert_right(state, exact_state, own_state.to(state.dtype), what="state")
    # Rounded once, at the store: half a unit in the last place, and what fp32 lost before.
    lost = 20 * torch.finfo(single).eps * exact_state.abs().max()
    allowed = exact_state.abs().clamp(min=torch.finfo(state.dtype).tiny) * torch.finfo(state.dtype).eps / 2 + lost
    assert ((state.double() - exact_state).abs() <= allowed).all()
    used = list(range(problem.batch)) if problem.slots is None else list(problem.slots)
    unused = [slot for slot in range(problem.nslots) if slot not in used]
    assert torch.equal(state[unused], before[unused])


@in_fp32
@pytest.mark.parametrize("softplus", [True, False])
def test_the_step_is_right_for_every_size_of_dt(name, softplus):
    """From e^-80 to far above 20, each element relative to itself: y is the step alone, times a power of two."""
    dt = torch.cat([torch.linspace(-80, 40, 197), torch.tensor([20.0, 20.1, 0.0, -0.0])]).to(DEVICE)[None]
    ones = torch.ones(1, dt.shape[1], 1, device=DEVICE)
    state = torch.zeros(1, dt.shape[1], 1, 1, device=DEVICE)
    if not softplus:
        dt = dt.abs()
    y = get_op("ssd_step", name)(
        state, ones, dt, -torch.ones(dt.shape[1], device=DEVICE), ones[:, :1], ones[:, :1], dt_softplus=softplus
    )
    exact = torch.nn.functional.softplus(dt.double()) if softplus else dt.double()
    assert ((y[..., 0].double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact).all()


@in_fp32
def test_a_dt_of_minus_infinity_leaves_the_state_alone(name):
    inputs = PROBLEM.but(bias=False).inputs()
    inputs["dt"][1] = float("-inf")
    before = inputs["state"].clone()
    y = get_op("ssd_step", name)(**inputs)
    assert torch.isfinite(y).all()
    assert torch.equal(inputs["state"][0], before[0])


@in_fp32
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
def test_steps_after_a_prefill_equal_the_prefill_of_all(name, state_dtype):
    problem = Problem(batch=2, seqlen=14, nheads=4, ngroups=2, headdim=8, d_state=16, chunk_size=4)
    inputs = problem.inputs()
    exact, exact_state = get_ssd("recurrent")(
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}, return_final_state=True
    )
    first = {k: v[:, :6] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
    _, state = get_ssd("chunked")(**first, return_final_state=True)
    rows = torch.tensor([3, 1], device=DEVICE)
    slots = torch.full((5, *state.shape[1:]), float("nan"), device=DEVICE, dtype=state_dtype)
    slots[rows] = state.to(state_dtype)
    by_torch = state.to(state_dtype)
    for t in range(6, 14):
        arguments = {k: inputs[k][:, t] for k in ("x", "dt", "B", "C")}
        arguments |= {k: inputs[k] for k in ("A", "D", "dt_bias", "dt_softplus", "dt_limit")}
        own, own_state = stepped({**arguments, "state": by_torch, "z": None, "slots": None}, torch.float32)
        by_torch = own_state.to(state_dtype)
        y = get_op("ssd_step", name)(slots, **arguments, slots=rows)
        assert_within_budget(y, exact[:, t], own)
    assert_within_budget(slots[rows], exact_state, by_torch, what="state")
    assert slots[[0, 2, 4]].isnan().all()


@in_fp32
@given(order=st.permutations(range(4)))
def test_the_order_of_slots_changes_nothing_but_where_states_lie(name, order):
    inputs = PROBLEM.but(batch=4, nslots=4, slots=None).inputs()
    moved = {**inputs, "state": torch.empty_like(inputs["state"]), "slots": torch.tensor(order, device=DEVICE)}
    moved["state"][order] = inputs["state"]
    y = get_op("ssd_step", name)(**inputs)
    assert torch.equal(get_op("ssd_step", name)(**moved), y)
    assert torch.equal(moved["state"][order], inputs["state"])


@in_fp32
@pytest.mark.parametrize("argument", ["x", "dt", "B", "C", "z", "state"])
def test_a_nan_stays_in_its_row(name, argument):
    inputs, clean = PROBLEM.inputs(), PROBLEM.inputs()
    inputs[argument][4 if argument == "state" else 0, 1] = float("nan")
    y, expected = (get_op("ssd_step", name)(**arguments) for arguments in (inputs, clean))
    assert y[0].isnan().any()
    assert torch.equal(y[1:], expected[1:])
    assert torch.equal(inputs["state"][:4], clean["state"][:4])
    if argument in ("x", "z"):
        assert torch.equal(y[0, [0, 2, 3]], expected[0, [0, 2, 3]])


@in_fp32
def test_a_state_may_be_any_view(name):
    inputs, viewed = PROBLEM.inputs(), PROBLEM.inputs()
    layers = torch.full((7, 4, 5, 3, 5), float("nan"), device=DEVICE)  # d_state, nheads, slots, layers, headdim
    viewed["state"] = layers[:, :, :, 1].permute(2, 1, 3, 0).copy_(inputs["state"])
    viewed["x"] = viewed["x"][:1].expand(3, -1, -1)
    inputs["x"] = viewed["x"].contiguous()
    assert_within_budget(
        get_op("ssd_step", name)(**viewed), stepped(inputs, torch.float64)[0], get_op("ssd_step", name)(**inputs)
    )
    assert_within_budget(viewed["state"], stepped(PROBLEM.inputs() | {"x": inputs["x"]}, torch.float64)[1],
                         inputs["state"], what="state")  # fmt: skip
    assert layers[:, :, :, [0, 2]].isnan().all()


@in_fp32
def test_no_rows_are_nothing_to_do(name):
    inputs = PROBLEM.but(batch=0, slots=()).inputs()
    before = inputs["state"].clone()
    assert get_op("ssd_step", name)(**inputs).shape == (0, 4, 5)
    assert torch.equal(inputs["state"], before)


@pytest.mark.parametrize("slots", [[5, 0, 2], [-1, 0, 2]])
def test_a_slot_that_nobody_checked_touches_nothing_and_shows(monkeypatch, slots):
    """As on a GPU, where the host does not read them."""
    monkeypatch.setattr("ssd_kernels.portable.ssd_step.expect_different_slots", lambda *_: None)
    inputs, clean = PROBLEM.inputs(), PROBLEM.inputs()
    around = torch.full((7, *inputs["state"].shape[1:]), 7.0, device=DEVICE)
    inputs["state"] = around[1:6].copy_(inputs["state"])
    inputs["slots"] = torch.tensor(slots, device=DEVICE)
    y, expected = (get_op("ssd_step", "triton")(**arguments) for arguments in (inputs, clean))
    assert y[0].isnan().all()
    assert torch.equal(y[1:], expected[1:])
    assert (around[[0, 6]] == 7.0).all()
    assert torch.equal(inputs["state"][:4], clean["state"][:4])


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 9 GiB of GPU memory: offsets beyond 2³¹ elements")
def test_offsets_beyond_two_to_the_31_elements_are_right():
    nslots = 2100
    state = torch.randn(nslots, 128, 64, 128, device=DEVICE, dtype=torch.bfloat16)
    assert state.numel() > 2**31
    problem = PROBLEM.but(nheads=128, ngroups=1, headdim=64, d_state=128, nslots=3, slots=None)
    inputs = problem.inputs()
    slots = torch.tensor([nslots - 1, 0, nslots - 2], device=DEVICE)
    inputs["state"] = state[slots]
    exact, exact_state = stepped(inputs, torch.float64)
    own, own_state = stepped(inputs, torch.float32)
    y = get_op("ssd_step", "triton")(**{**inputs, "state": state, "slots": slots})
    assert_within_budget(y, exact, own)
    assert_within_budget(state[slots], exact_state, own_state.bfloat16(), what="state")
