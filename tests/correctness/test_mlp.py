"""RMSNorm and SwiGLU, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op
from ssd_kernels.portable.configs import SWIGLU
from tests.correctness.operator_problems import Filler, assert_right, implementations, in_fp32, poisoned_memory

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]

shapes = st.tuples(
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.one_of(st.sampled_from([1, 16, 128, SWIGLU.block["BLOCK"] + 1]), st.integers(1, 300)),
).map(lambda both: (*both[0], both[1]))
seeds = st.integers(0, 2**16)


@implementations
@given(shape=shapes, seed=seeds, strided=st.booleans(), scale=st.sampled_from([1.0, 1e-3, 30.0]))
@example(shape=(2, 4096), seed=0, strided=False, scale=1.0)
@example(shape=(1, 5000), seed=0, strided=True, scale=1.0)
def test_the_norm_is_torchs(name, dtype, shape, seed, strided, scale):
    fill = Filler(seed, dtype, strided)
    x, weight = fill.normal(*shape) * scale, fill.normal(shape[-1])
    out = get_op("rms_norm", name)(x, weight, eps=1e-5)
    assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, x.shape, True)

    def normed(dtype):
        return F.rms_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), 1e-5)

    assert_right(out, normed(torch.float64), normed(torch.promote_types(dtype, torch.float32)).to(dtype), what="out")


@implementations
@given(shape=shapes, seed=seeds, strided=st.booleans())
@example(shape=(2, SWIGLU.block["BLOCK"] + 5), seed=0, strided=True)
def test_the_gate_is_torchs(name, dtype, shape, seed, strided):
    fill = Filler(seed, dtype, strided)
    gate, up = fill.normal(*shape) * 3, fill.normal(*shape)
    out = get_op("swiglu", name)(gate, up)
    assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, gate.shape, True)

    def gated(dtype):
        return F.silu(gate.to(dtype)) * up.to(dtype)

    assert_right(out, gated(torch.float64), gated(torch.promote_types(dtype, torch.float32)).to(dtype), what="out")


@in_fp32
def test_a_nan_stays_in_its_row(name):
    fill = Filler(0, torch.float32)
    x, weight = fill.normal(3, 8), fill.normal(8)
    clean = get_op("rms_norm", name)(x, weight, eps=1e-5)
    x[1, 2] = float("nan")
    out = get_op("rms_norm", name)(x, weight, eps=1e-5)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


@in_fp32
def test_what_does_not_fit_is_named(name):
    norm, gate = get_op("rms_norm", name), get_op("swiglu", name)
    x = Filler(0, torch.float32).normal(3, 8)
    with pytest.raises(ValueError, match=r"weight must have shape \(width,\) = \(8,\), got \(3,\)"):
        norm(x, x[:, 0], eps=1e-5)
    with pytest.raises(ValueError, match="eps must be a number not below 0, got nan"):
        norm(x, x[0], eps=float("nan"))
    with pytest.raises(ValueError, match=r"up must have shape that of gate = \(3, 8\), got \(2, 8\)"):
        gate(x, x[:2])
    with pytest.raises(TypeError, match=r"up: dtype must be that of gate, torch\.float32, got torch\.float16"):
        gate(x, x.half())


def test_what_triton_does_not_take_is_named():
    x = Filler(0, torch.float32).normal(4, 3, 8).transpose(0, 1)
    with pytest.raises(NotImplementedError, match="x: leading dimensions must merge into one for 'triton'"):
        get_op("rms_norm", "triton")(x, x[0, 0], eps=1e-5)
    with pytest.raises(NotImplementedError, match="gate: leading dimensions must merge into one for 'triton'"):
        get_op("swiglu", "triton")(x, x)
    with pytest.raises(NotImplementedError, match="x: width must be at most 65536 for 'triton', got 65537"):
        get_op("rms_norm", "triton")(x.new_zeros(1, 65537), x.new_zeros(65537), eps=1e-5)
