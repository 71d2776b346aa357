"""The causal convolution of whole sequences, against torch's own of each sequence alone."""

import pytest
import torch
from hypothesis import example, given, strategies as st

import ssd_kernels.checks
from ssd_kernels import get_op
from tests.correctness.budget import assert_within_budget
from tests.correctness.operator_problems import (
    BLOCK_T,
    ConvProblem,
    assert_right,
    conv_problems,
    convolved,
    cu_seqlens,
    implementations,
    in_fp32,
    poisoned_memory,
)
from tests.correctness.problems import DEVICE, covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

PACKED = ConvProblem(lengths=(0, 1, 2, 0, 17, 3, 0), packed=True, channels=5)
PLAIN = ConvProblem(lengths=(19, 19), packed=False, channels=5)
LONG = BLOCK_T + 2


def check(name, problem, dtype):
    """Run one implementation on one problem and hold it to the budget."""
    inputs = problem.inputs(dtype)
    y, window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    exact, exact_window = convolved(inputs, torch.float64)
    own = convolved(inputs, torch.promote_types(dtype, torch.float32))[0].to(dtype)
    assert (y.dtype, y.shape, window.dtype) == (dtype, exact.shape, dtype)
    assert y.is_contiguous()
    assert window.is_contiguous()
    assert_right(y, exact, own)
    assert torch.equal(window.double(), exact_window)
    assert torch.equal(get_op("causal_conv1d", name)(**inputs), y)


@implementations
@covering(
    "packed", "several", "length_0", "length_1", "initial_window", "no_window", "shorter_than_the_window",
    "several_blocks", "strided", "width_2", "width_3", "width_4",
)  # fmt: skip
@given(problem=conv_problems())
@example(problem=PACKED)
@example(problem=PACKED.but(initial=False, width=3))
@example(problem=PACKED.but(lengths=(0, 0, 0)))
@example(problem=PLAIN.but(strided=True, width=2))
@example(problem=PLAIN.but(lengths=(2 * LONG,)))
@example(problem=PACKED.but(lengths=(BLOCK_T - 1, 2, BLOCK_T, BLOCK_T + 1)))
def test_equals_torchs_convolution_of_each_sequence(name, dtype, problem):
    check(name, problem, dtype)


@pytest.mark.parametrize("width", [1, 5, 9])
def test_the_torch_form_takes_any_width(width):
    check("torch", PACKED.but(width=width), torch.float32)
    check("torch", PLAIN.but(width=width), torch.float64)


@in_fp32
@covering("initial_window", "no_window", "several_blocks")
@given(problem=conv_problems(packed=False, lengths=(LONG,)), data=st.data())
def test_prefill_split_anywhere_equals_the_whole(name, problem, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, LONG), min_size=1, max_size=3), label="cuts"))
    inputs = problem.inputs()
    window, parts = inputs.pop("initial_window"), []
    for start, stop in zip([0, *cuts], [*cuts, LONG], strict=True):
        part, window = get_op("causal_conv1d", name)(
            **{**inputs, "x": inputs["x"][:, start:stop]}, initial_window=window, return_final_window=True
        )
        parts.append(part)
    exact, exact_window = convolved(problem.inputs(), torch.float64)
    assert_within_budget(torch.cat(parts, dim=1), exact, convolved(problem.inputs(), torch.float32)[0])
    assert torch.equal(window.double(), exact_window)


@in_fp32
@pytest.mark.parametrize("token", [0, 1, 3, 12])
def test_a_nan_reaches_only_the_taps_of_its_sequence_and_channel(name, token):
    inputs = PACKED.inputs()
    clean, clean_window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    inputs["x"][0, token, 2] = float("nan")
    y, window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    exact, exact_window = convolved(inputs, torch.float64)
    assert torch.equal(y.isnan(), exact.isnan())
    assert y.isnan().any()
    assert torch.equal(y[~y.isnan()], clean[~y.isnan()])
    assert torch.equal(window.isnan(), exact_window.isnan())
    assert torch.equal(window[~window.isnan()], clean_window[~window.isnan()])


@in_fp32
@pytest.mark.parametrize("entry", [0, 1, 2])
def test_a_nan_in_a_window_reaches_only_its_sequence(name, entry):
    inputs = PACKED.inputs()
    inputs["initial_window"][4, 2, entry] = float("nan")
    y, window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    seen = y.isnan().nonzero().tolist()
    assert seen == [[0, 3 + i, 2] for i in range(entry + 1)]
    assert not window.isnan().any()


@in_fp32
@pytest.mark.parametrize("view", ["stride 0 along the batch", "stride 0 along tokens", "channels first", "every other"])
def test_views_give_what_contiguous_tensors_give_and_stay_as_they_were(name, view):
    inputs = PLAIN.inputs()
    x, window = inputs["x"], inputs["initial_window"]
    if view == "stride 0 along the batch":
        x, window = x[:1].expand(3, -1, -1), window[:1].expand(3, -1, -1)
    elif view == "stride 0 along tokens":
        x = x[:, :1].expand(-1, 19, -1)
    elif view == "channels first":
        x, window = x.mT.contiguous().mT, window.mT.contiguous().mT
        inputs["weight"] = inputs["weight"].T.contiguous().T
    else:
        x = x.repeat_interleave(2, dim=-1)[..., ::2]
        inputs["bias"] = inputs["bias"].repeat_interleave(2)[::2]
    assert not x.is_contiguous()
    kept = x.clone()
    y, final = get_op("causal_conv1d", name)(**{**inputs, "x": x, "initial_window": window}, return_final_window=True)
    contiguous = {**inputs, "x": x.contiguous(), "initial_window": window.contiguous()}
    expected, expected_final = get_op("causal_conv1d", name)(**contiguous, return_final_window=True)
    assert_within_budget(y, convolved(contiguous, torch.float64)[0], expected)
    assert torch.equal(final, expected_final)
    assert torch.equal(x, kept)


@in_fp32
@pytest.mark.parametrize(("batch", "seqlen"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("initial", [True, False])
def test_nothing_to_do_leaves_the_window_as_it_was(name, batch, seqlen, initial):
    inputs = PLAIN.but(lengths=(seqlen,) * max(batch, 1), initial=initial).inputs()
    if batch == 0:
        inputs.update(x=inputs["x"][:0], initial_window=inputs["initial_window"][:0] if initial else None)
    y, window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    assert y.shape == (batch, seqlen, 5)
    expected = inputs["initial_window"] if initial else torch.zeros(batch, 5, 3, device=DEVICE)
    assert torch.equal(window, expected)
    assert window is not inputs["initial_window"]


@in_fp32
def test_no_packed_sequence_at_all_is_nothing_to_do(name):
    inputs = PACKED.but(lengths=()).inputs()
    y, window = get_op("causal_conv1d", name)(**inputs, return_final_window=True)
    assert (y.shape, window.shape) == ((1, 0, 5), (0, 5, 3))


@pytest.mark.parametrize("values", [[0, 40, -3, 7, 23], [9, 9, 9, 9, 9], [-5, -4, -3, -2, -1], [100, 0, 100, 0, 23]])
def test_bounds_that_nobody_read_let_no_kernel_touch_memory_outside(monkeypatch, values):
    """As on a GPU, where a wrong cu_seqlens is not noticed: what lies around the tensors is NaN and stays."""
    monkeypatch.setattr(ssd_kernels.checks, "sequence_bounds", lambda *_: None)
    inputs = PACKED.but(lengths=(5, 6, 6, 6), strided=True).inputs()
    around = torch.full((3, 23, 5), float("nan"), device=DEVICE)
    around[1] = inputs["x"][0]
    inputs["x"] = around[1:2]
    windows = torch.full((12, 5, 3), float("nan"), device=DEVICE)
    windows[4:8] = inputs["initial_window"]
    inputs.update(initial_window=windows[4:8], cu_seqlens=torch.tensor(values, device=DEVICE))
    y, window = get_op("causal_conv1d", "triton")(**inputs, return_final_window=True)
    assert torch.isfinite(y).all()
    assert torch.isfinite(window).all()


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 5 GiB of GPU memory: offsets beyond 2³¹ elements")
def test_offsets_beyond_two_to_the_31_elements_are_right():
    width, seqlen = 16768, 131_072
    assert width * seqlen > 2**31
    x = torch.randn(1, seqlen, width, device=DEVICE, dtype=torch.bfloat16)[..., 8192:16640]
    inputs = {
        "weight": torch.randn(8448, 4, device=DEVICE), "bias": None, "activation": "silu", "initial_window": None,
    }  # fmt: skip
    bounds = cu_seqlens((seqlen - 7, 7))
    y, window = get_op("causal_conv1d", "triton")(x, **inputs, cu_seqlens=bounds, return_final_window=True)
    tail = {**inputs, "x": x[:, -7:].clone(), "cu_seqlens": None}
    exact, exact_window = convolved(tail, torch.float64)
    assert_within_budget(y[:, -7:], exact, convolved(tail, torch.float32)[0].bfloat16())
    assert torch.equal(window[1:].double(), exact_window)
