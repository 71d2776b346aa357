"""One token of the causal convolution, and of a whole mixer, against the convolution and the scan of all tokens."""

import pytest
import torch
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op, get_ssd
from tests.correctness.budget import assert_within_budget
from tests.correctness.operator_problems import (
    ConvProblem,
    Filler,
    assert_right,
    conv_problems,
    convolved,
    implementations,
    in_fp32,
    poisoned_memory,
)
from tests.correctness.problems import DEVICE, covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

PROBLEM = ConvProblem(lengths=(7, 7, 7), packed=False, channels=5)
NSLOTS = 5
SLOTS = (4, 0, 2)


def step_inputs(problem, dtype=torch.float32):
    """The arguments of causal_conv1d, and of its step but for x: windows of NaN where no row's slot is."""
    inputs = problem.inputs(dtype)
    rows = len(problem.lengths)
    window = torch.full((NSLOTS, problem.channels, problem.width - 1), float("nan"), dtype=dtype, device=DEVICE)
    window[list(SLOTS[:rows])] = 0.0 if inputs["initial_window"] is None else inputs["initial_window"]
    slots = torch.tensor(SLOTS[:rows], dtype=problem.index_dtype, device=DEVICE)
    return inputs, {**{k: inputs[k] for k in ("weight", "bias", "activation")}, "window": window, "slots": slots}


@implementations
@covering("initial_window", "no_window", "strided", "width_2", "width_3", "width_4")
@given(problem=conv_problems(packed=False, lengths=(6, 6)))
@example(problem=PROBLEM)
@example(problem=PROBLEM.but(width=3, initial=False, bias=False, activation=None))
@example(problem=PROBLEM.but(width=2, strided=True))
def test_steps_from_the_first_token_on_equal_the_whole(name, dtype, problem):
    inputs, arguments = step_inputs(problem, dtype)
    steps = [get_op("causal_conv1d_step", name)(x, **arguments) for x in inputs["x"].unbind(1)]
    exact, exact_window = convolved(inputs, torch.float64)
    own = convolved(inputs, torch.promote_types(dtype, torch.float32))[0].to(dtype)
    assert all(y.is_contiguous() and y.dtype == dtype for y in steps)
    assert_right(torch.stack(steps, dim=1), exact, own)
    window, used = arguments["window"], list(SLOTS[: len(problem.lengths)])
    assert torch.equal(window[used].double(), exact_window)
    assert window[[slot for slot in range(NSLOTS) if slot not in used]].isnan().all()


@in_fp32
@given(cut=st.integers(0, 6))
def test_steps_after_a_prefill_equal_the_prefill_of_all(name, cut):
    inputs, arguments = step_inputs(PROBLEM)
    prefill = {**inputs, "x": inputs["x"][:, :cut]}
    first, arguments["window"] = get_op("causal_conv1d", name)(**prefill, return_final_window=True)
    arguments["slots"] = None
    rest = [get_op("causal_conv1d_step", name)(x, **arguments) for x in inputs["x"][:, cut:].unbind(1)]
    exact, exact_window = convolved(inputs, torch.float64)
    own = convolved(inputs, torch.float32)[0]
    assert_within_budget(torch.cat([first, torch.stack(rest, dim=1)], dim=1), exact, own)
    assert torch.equal(arguments["window"].double(), exact_window)


@pytest.mark.parametrize("width", [1, 5])
def test_the_torch_form_takes_any_width(width):
    inputs, arguments = step_inputs(PROBLEM.but(width=width))
    steps = [get_op("causal_conv1d_step", "torch")(x, **arguments) for x in inputs["x"].unbind(1)]
    exact, _ = convolved(inputs, torch.float64)
    assert_within_budget(torch.stack(steps, dim=1), exact, convolved(inputs, torch.float32)[0])


@in_fp32
@given(order=st.permutations(range(3)))
def test_the_order_of_slots_changes_nothing_but_where_windows_lie(name, order):
    inputs, arguments = step_inputs(PROBLEM)
    plain = {**arguments, "window": inputs["initial_window"].clone(), "slots": None}
    moved = {**arguments, "window": torch.empty_like(plain["window"]), "slots": torch.tensor(order, device=DEVICE)}
    moved["window"][order] = plain["window"]
    y = get_op("causal_conv1d_step", name)(inputs["x"][:, 0], **plain)
    assert torch.equal(get_op("causal_conv1d_step", name)(inputs["x"][:, 0], **moved), y)
    assert torch.equal(moved["window"][order], plain["window"])


@in_fp32
def test_a_nan_stays_in_its_row_and_channel_for_as_long_as_the_window(name):
    inputs, arguments = step_inputs(PROBLEM)
    x = inputs["x"].clone()
    x[1, 0, 2] = float("nan")
    for t in range(5):
        y = get_op("causal_conv1d_step", name)(x[:, t], **arguments)
        assert y.isnan().nonzero().tolist() == ([[1, 2]] if t < 4 else [])


@in_fp32
def test_a_window_may_be_any_view(name):
    inputs, arguments = step_inputs(PROBLEM)
    x = inputs["x"][:1, 0].expand(3, -1)
    around = torch.full((3, 5, NSLOTS, 2), float("nan"), device=DEVICE)  # width - 1, channels, slots, layers
    viewed = around[..., 1].permute(2, 1, 0).copy_(arguments["window"])
    y = get_op("causal_conv1d_step", name)(x, **arguments)
    assert torch.equal(get_op("causal_conv1d_step", name)(x, **{**arguments, "window": viewed}), y)
    used = list(SLOTS)
    assert torch.equal(viewed[used], arguments["window"][used])
    assert around[..., 0].isnan().all()


@in_fp32
def test_no_rows_are_nothing_to_do(name):
    inputs, arguments = step_inputs(PROBLEM)
    before = arguments["window"].clone()
    arguments["slots"] = arguments["slots"][:0]
    assert get_op("causal_conv1d_step", name)(inputs["x"][:0, 0], **arguments).shape == (0, 5)
    assert torch.equal(arguments["window"].nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("slot", [NSLOTS, -1])
def test_a_slot_that_nobody_checked_touches_nothing_and_shows(monkeypatch, slot):
    """As on a GPU, where the host does not read them."""
    monkeypatch.setattr("ssd_kernels.portable.causal_conv1d_step.expect_different_slots", lambda *_: None)
    inputs, arguments = step_inputs(PROBLEM)
    around = torch.full((NSLOTS + 2, 5, 3), float("nan"), device=DEVICE)
    window = around[1:-1].copy_(arguments["window"])
    y = get_op("causal_conv1d_step", "triton")(inputs["x"][:, 0], **arguments)
    arguments.update(window=window, slots=torch.tensor([slot, *SLOTS[1:]], device=DEVICE))
    seen = get_op("causal_conv1d_step", "triton")(inputs["x"][:, 0], **arguments)
    assert seen[0].isnan().all()
    assert torch.equal(seen[1:], y[1:])
    assert around[[0, -1]].isnan().all()


def mixer_inputs(batch, seqlen, ngroups=2):
    """A mixer's inputs for some tokens, with what it holds: nheads 4, headdim 5, d_state 7."""
    fill = Filler(0, torch.float32)
    conv_dim = 20 + 2 * ngroups * 7
    tokens = {"xBC": fill.normal(batch, seqlen, conv_dim), "dt": fill.normal(batch, seqlen, 4)}
    tokens["z"] = fill.normal(batch, seqlen, 20)
    held = {
        "weight": fill.normal(conv_dim, 4),
        "bias": fill.normal(conv_dim),
        "A": -fill.normal(4).exp(),
        "D": fill.normal(4),
        "dt_bias": fill.normal(4),
        "dt_softplus": True,
    }
    memory = {"window": torch.full((NSLOTS, conv_dim, 3), float("nan"), device=DEVICE)}
    memory["state"] = torch.full((NSLOTS, 4, 5, 7), float("nan"), device=DEVICE)
    return tokens, held, memory


@in_fp32
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ngroups", [1, 2, 4])
def test_steps_of_a_mixer_equal_its_convolution_and_scan_of_all_tokens(name, gated, ngroups):
    tokens, held, memory = mixer_inputs(batch=3, seqlen=5, ngroups=ngroups)

    def whole(dtype):
        cast = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in {**tokens, **held}.items()}
        convolution = {"x": cast["xBC"], "weight": cast["weight"], "bias": cast["bias"], "activation": "silu"}
        y, _ = convolved({**convolution, "initial_window": None, "cu_seqlens": None}, dtype)
        x, B, C = y.split([20, 7 * ngroups, 7 * ngroups], dim=-1)
        B, C = B.unflatten(-1, (ngroups, 7)), C.unflatten(-1, (ngroups, 7))
        options = {k: cast[k] for k in ("D", "dt_bias", "dt_softplus")}
        y = get_ssd("recurrent" if dtype == torch.float64 else "chunked")(
            x.unflatten(-1, (4, 5)), cast["dt"], cast["A"], B, C, chunk_size=5, **options
        ).flatten(-2)
        return y * torch.nn.functional.silu(cast["z"]) if gated else y

    slots = torch.tensor(SLOTS, device=DEVICE)
    for tensor in memory.values():
        tensor[slots] = 0.0
    steps = []
    for t in range(5):
        token = {k: v[:, t] for k, v in tokens.items()}
        token["z"] = token["z"] if gated else None
        steps.append(get_op("mixer_step", name)(**token, **memory, **held, slots=slots))
    assert_within_budget(torch.stack(steps, dim=1), whole(torch.float64), whole(torch.float32))
    assert all(tensor[[1, 3]].isnan().all() for tensor in memory.values())


@in_fp32
@pytest.mark.parametrize(
    ("argument", "spoil", "message"),
    [
        (
            "xBC",
            lambda xBC: xBC[:, :-1],
            r"xBC: conv_dim must be nheads · headdim 20 \+ 2 · ngroups · d_state 7, got 47",
        ),
        ("xBC", lambda xBC: xBC[:, :20], r"xBC: conv_dim must be .* got 20"),
        ("z", lambda z: z[:, :5], r"z must have shape \(batch, nheads · headdim\) = \(3, 20\), got \(3, 5\)"),
        ("window", lambda window: window[:4], r"window must have the slots of state, 5, got 4"),
        ("dt", lambda dt: dt[:, :3], r"dt must have shape \(batch, nheads\) = \(3, 4\), got \(3, 3\)"),
        ("weight", lambda weight: weight[:9], r"weight must have shape .* got \(9, 4\)"),
        ("D", lambda D: D[:3], r"D must have shape \(nheads,\) = \(4,\), got \(3,\)"),
    ],
)
def test_a_mixer_that_refuses_its_input_has_changed_nothing(name, argument, spoil, message):
    tokens, held, memory = mixer_inputs(batch=3, seqlen=1)
    arguments = {**{k: v[:, 0] for k, v in tokens.items()}, **memory, **held}
    arguments[argument] = spoil(arguments[argument])
    with pytest.raises(ValueError, match=message):
        get_op("mixer_step", name)(**arguments)
    assert all(tensor.isnan().all() for tensor in memory.values())
