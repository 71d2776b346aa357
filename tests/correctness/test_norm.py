"""The gated RMSNorm, against its definition group by group."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op
from ssd_kernels.portable import configs
from tests.correctness.operator_problems import Filler, assert_right, implementations, in_fp32, poisoned_memory
from tests.correctness.problems import DEVICE, covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]


@dataclass(frozen=True, kw_only=True)
class NormProblem:
    """The structure of one call of gated_rms_norm."""

    leading: tuple[int, ...]
    groups: int
    group_width: int
    strided: bool = False
    scale: float = 1.0
    eps: float = 1e-5
    seed: int = 0

    def traits(self):
        yield f"leading_{len(self.leading)}"
        yield "one_group" if self.groups == 1 else "grouped"
        if self.group_width & (self.group_width - 1):
            yield "no_power_of_two"
        if self.strided:
            yield "strided"

    def inputs(self, dtype=torch.float32):
        fill, width = Filler(self.seed, dtype, self.strided), self.groups * self.group_width
        y, z = fill.normal(*self.leading, width) * self.scale, fill.normal(*self.leading, width)
        return {"y": y, "z": z, "weight": fill.normal(width), "eps": self.eps, "groups": self.groups}

    def but(self, **changes):
        return replace(self, **changes)


@st.composite
def norm_problems(draw):
    return NormProblem(
        leading=tuple(draw(st.lists(st.integers(1, 3), max_size=3))),
        groups=draw(st.sampled_from([1, 2, 3])),
        group_width=draw(st.one_of(st.sampled_from([1, 16, 128]), st.integers(1, 200))),
        strided=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 1e-3, 30.0])),
        eps=draw(st.sampled_from([1e-5, 1e-6, 1.0])),
        seed=draw(st.integers(0, 2**16)),
    )


def normed(inputs, dtype):
    """The definition, by torch's own RMSNorm of each group on its own."""
    y, z, weight = (inputs[name].to(dtype) for name in ("y", "z", "weight"))
    groups = zip(*(tensor.chunk(inputs["groups"], dim=-1) for tensor in (y * F.silu(z), weight)), strict=True)
    return torch.cat([F.rms_norm(u, u.shape[-1:], part, inputs["eps"]) for u, part in groups], dim=-1)


PROBLEM = NormProblem(leading=(2, 3), groups=2, group_width=12)


@implementations
@covering("leading_0", "leading_1", "leading_2", "leading_3", "one_group", "grouped", "no_power_of_two", "strided")
@given(problem=norm_problems())
@example(problem=PROBLEM)
@example(problem=PROBLEM.but(leading=(), strided=True))
@example(problem=PROBLEM.but(leading=(2, 1, 3)))
@example(problem=PROBLEM.but(groups=1, group_width=8192, leading=(2,)))
def test_equals_torchs_norm_of_each_group(name, dtype, problem):
    inputs = problem.inputs(dtype)
    out = get_op("gated_rms_norm", name)(**inputs)
    single = torch.promote_types(dtype, torch.float32)
    assert (out.dtype, out.shape) == (dtype, inputs["y"].shape)
    assert out.is_contiguous()
    assert_right(out, normed(inputs, torch.float64), normed(inputs, single).to(dtype), what="out")


def test_a_norm_of_bambas_width_is_read_once():
    config = configs.gated_rms_norm_config(8192)
    assert config.block["BLOCK"] == 8192


@pytest.mark.parametrize("width", [16385, 40000])
def test_a_norm_wider_than_a_program_holds_is_right(width):
    inputs = NormProblem(leading=(2,), groups=1, group_width=width, strided=True).inputs()
    assert configs.gated_rms_norm_config(width).block["BLOCK"] < width
    out = get_op("gated_rms_norm", "triton")(**inputs)
    assert_right(out, normed(inputs, torch.float64), normed(inputs, torch.float32), what="out")


@in_fp32
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_the_result_has_the_dtype_of_y_whatever_those_of_z_and_weight(name, dtypes):
    inputs = PROBLEM.inputs()
    inputs.update(y=inputs["y"].to(dtypes[0]), z=inputs["z"].to(dtypes[1]), weight=inputs["weight"].to(dtypes[1]))
    out = get_op("gated_rms_norm", name)(**inputs)
    assert out.dtype == dtypes[0]
    assert_right(out, normed(inputs, torch.float64), normed(inputs, torch.float32).to(dtypes[0]))


@in_fp32
def test_a_nan_stays_in_its_row_and_group(name):
    inputs = PROBLEM.inputs()
    clean = get_op("gated_rms_norm", name)(**inputs)
    inputs["z"][1, 0, 3] = float("nan")
    out = get_op("gated_rms_norm", name)(**inputs)
    assert out[1, 0, :12].isnan().all()
    out[1, 0, :12] = clean[1, 0, :12]
    assert torch.equal(out, clean)


@in_fp32
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # of the interpreter: it has to
@pytest.mark.parametrize("gate", [-200.0, 200.0])
def test_a_gate_far_from_zero_overflows_nowhere(name, gate):
    inputs = PROBLEM.inputs()
    inputs["z"].fill_(gate)
    assert_right(get_op("gated_rms_norm", name)(**inputs), normed(inputs, torch.float64), normed(inputs, torch.float32))


@in_fp32
@pytest.mark.parametrize("view", ["transposed", "expanded", "every other", "both"])
def test_views_give_what_contiguous_tensors_give(name, view):
    inputs = NormProblem(leading=(3, 4, 2), groups=2, group_width=6).inputs()
    y, z = inputs["y"], inputs["z"]
    if view == "transposed":
        y = y.transpose(0, 2).contiguous().transpose(0, 2)
    elif view == "expanded":
        z = z[:1].expand(3, -1, -1, -1)
    elif view == "every other":
        y = y.repeat_interleave(2, dim=-1)[..., ::2]
    else:
        y, z = y.mT.contiguous().mT, z[:, :1].transpose(0, 2).contiguous().transpose(0, 2).expand(-1, 4, -1, -1)
    out = get_op("gated_rms_norm", name)(**{**inputs, "y": y, "z": z})
    expected = get_op("gated_rms_norm", name)(**{**inputs, "y": y.contiguous(), "z": z.contiguous()})
    assert_right(out, normed({**inputs, "y": y, "z": z}, torch.float64), expected)


def test_leading_dimensions_that_do_not_merge_are_refused_by_triton_and_taken_by_torch():
    inputs = NormProblem(leading=(2, 3, 4, 5), groups=1, group_width=6).inputs()
    inputs["y"] = inputs["y"].permute(3, 2, 1, 0, 4).contiguous().permute(3, 2, 1, 0, 4)
    with pytest.raises(NotImplementedError, match=r"y and z: .* merge into three, got shape \(2, 3, 4, 5, 6\)"):
        get_op("gated_rms_norm", "triton")(**inputs)
    assert_right(
        get_op("gated_rms_norm", "torch")(**inputs), normed(inputs, torch.float64), normed(inputs, torch.float32)
    )


@in_fp32
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3, 2)])
def test_no_rows_are_nothing_to_do(name, leading):
    inputs = PROBLEM.but(leading=leading).inputs()
    assert get_op("gated_rms_norm", name)(**inputs).shape == (*leading, 24)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 9 GiB of GPU memory: offsets beyond 2³¹ elements")
def test_offsets_beyond_two_to_the_31_elements_are_right():
    width, seqlen = 16768, 131_072
    assert width * seqlen > 2**31
    projected = torch.randn(1, seqlen, width, device=DEVICE, dtype=torch.bfloat16)
    y, z = projected[..., 8192:16384], projected[..., :8192]
    inputs = {"weight": torch.randn(8192, device=DEVICE), "eps": 1e-5, "groups": 1}
    out = get_op("gated_rms_norm", "triton")(y, z, **inputs)[:, -3:]
    tail = {**inputs, "y": y[:, -3:].clone(), "z": z[:, -3:].clone()}
    assert_right(out, normed(tail, torch.float64), normed(tail, torch.float32).bfloat16())
