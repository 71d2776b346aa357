"""Rows that lie 2³⁰ elements apart, so that every offset beyond the second row's needs 64 bits.

They are views of a sparse file: only the pages that hold a row exist. The interpreter computes offsets with the widths
that the kernels ask for, as a GPU does; there, tests of the scan, the convolution, the gated norm and the decode step
do the same with memory that is really there.
"""

import pytest
import torch

from ssd_kernels import get_op, get_ssd
from tests.correctness.problems import DEVICE, Problem

pytestmark = [
    pytest.mark.correctness,
    pytest.mark.skipif(DEVICE == "cuda", reason="a file is no memory of a GPU: tests of the operators take it there"),
]

APART = 2**30
ROWS = 4


@pytest.fixture
def far_apart(tmp_path):
    """The same values, the rows of the first dimension 2³⁰ elements apart."""

    def spread(tensor):
        size = APART * (tensor.shape[0] - 1) + tensor[0].numel()
        file = torch.from_file(str(tmp_path / f"{len(list(tmp_path.iterdir()))}"), True, size, dtype=tensor.dtype)
        rows = file.as_strided(tensor.shape, (APART, *tensor[0].contiguous().stride()))
        return rows.copy_(tensor)

    return spread


def test_the_scan_reads_rows_that_far_apart(far_apart):
    problem = Problem(batch=ROWS, seqlen=11, nheads=2, ngroups=1, headdim=4, d_state=4, chunk_size=8)
    inputs = problem.inputs()
    expected = get_ssd("triton")(**inputs, return_final_state=True)
    spread = {name: far_apart(inputs[name]) for name in ("x", "dt", "B", "C", "initial_state")}
    actual = get_ssd("triton")(**{**inputs, **spread}, return_final_state=True)
    assert all(map(torch.equal, actual, expected))


def test_the_convolution_reads_rows_that_far_apart(far_apart):
    x, weight, window = torch.randn(ROWS, 7, 5), torch.randn(5, 4), torch.randn(ROWS, 5, 3)
    convolve = get_op("causal_conv1d", "triton")
    expected = convolve(x, weight, initial_window=window, return_final_window=True)
    actual = convolve(far_apart(x), weight, initial_window=far_apart(window), return_final_window=True)
    assert all(map(torch.equal, actual, expected))


def test_the_convolution_step_reads_and_writes_rows_that_far_apart(far_apart):
    x, weight, window = torch.randn(ROWS, 5), torch.randn(5, 4), torch.randn(ROWS, 5, 3)
    x_spread, window_spread = far_apart(x), far_apart(window)
    step = get_op("causal_conv1d_step", "triton")
    assert torch.equal(step(x_spread, window_spread, weight), step(x, window, weight))
    assert torch.equal(window_spread, window)


def test_the_gated_norm_reads_rows_that_far_apart(far_apart):
    y, z, weight = torch.randn(ROWS, 6), torch.randn(ROWS, 6), torch.randn(6)
    norm = get_op("gated_rms_norm", "triton")
    assert torch.equal(norm(far_apart(y), far_apart(z), weight, eps=1e-5), norm(y, z, weight, eps=1e-5))


def test_the_decode_step_reads_and_writes_states_that_far_apart(far_apart):
    x, dt, B, C = torch.randn(ROWS, 2, 4), torch.rand(ROWS, 2), torch.randn(ROWS, 1, 3), torch.randn(ROWS, 1, 3)
    A, state = -torch.rand(2), torch.randn(ROWS, 2, 4, 3)
    spread = far_apart(state)
    step = get_op("ssd_step", "triton")
    actual = step(spread, far_apart(x), far_apart(dt), A, far_apart(B), far_apart(C), z=far_apart(x))
    assert torch.equal(actual, step(state, x, dt, A, B, C, z=x))
    assert torch.equal(spread, state)


def test_the_norm_and_the_gate_of_an_mlp_read_rows_that_far_apart(far_apart):
    x, up, weight = torch.randn(ROWS, 6), torch.randn(ROWS, 6), torch.randn(6)
    norm, gate = get_op("rms_norm", "triton"), get_op("swiglu", "triton")
    assert torch.equal(norm(far_apart(x), weight, eps=1e-5), norm(x, weight, eps=1e-5))
    assert torch.equal(gate(far_apart(x), far_apart(up)), gate(x, up))


@pytest.mark.parametrize("tokens", [1, ROWS])
def test_the_projection_of_few_tokens_reads_rows_that_far_apart(far_apart, tokens):
    x, gate, weight, residual = torch.randn(tokens, 8), torch.randn(tokens, 8), torch.randn(ROWS, 8), torch.randn(ROWS)
    residual = residual.expand(tokens, ROWS).contiguous()
    step = get_op("linear_step", "triton")
    expected = step(x, weight, gate=gate, residual=residual)
    spread = {name: far_apart(value) for name, value in {"gate": gate, "residual": residual}.items()}
    assert torch.equal(step(far_apart(x), far_apart(weight), **spread), expected)
    paired = step(x, weight, up_weight=weight)
    assert torch.equal(step(far_apart(x), far_apart(weight), up_weight=far_apart(weight)), paired)


def test_attention_of_a_token_reads_and_writes_caches_that_far_apart(far_apart):
    q, k, v = torch.randn(ROWS, 4, 8), torch.randn(ROWS, 2, 8), torch.randn(ROWS, 2, 8)
    cos, sin, lengths = torch.randn(ROWS, 2), torch.randn(ROWS, 2), torch.tensor([4, 0, 3, 2])
    keys, values = torch.randn(ROWS, 2, 5, 8), torch.randn(ROWS, 2, 5, 8)
    far_keys, far_values = far_apart(keys), far_apart(values)
    step = get_op("attention_step", "triton")
    actual = step(*map(far_apart, (q, k, v, cos, sin)), far_keys, far_values, lengths)
    assert torch.equal(actual, step(q, k, v, cos, sin, keys, values, lengths))
    assert torch.equal(far_keys, keys)
    assert torch.equal(far_values, values)
