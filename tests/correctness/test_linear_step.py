"""The projection of a few tokens, against its definition step by step."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op
from ssd_kernels.portable.configs import linear_step_config
from ssd_kernels.portable.linear_step import MOST
from tests.correctness.operator_problems import Filler, assert_right, implementations, in_fp32, poisoned_memory
from tests.correctness.problems import covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]


@dataclass(frozen=True, kw_only=True)
class LinearProblem:
    """The structure of one call of linear_step."""

    batch: int
    features: int
    outputs: int
    bias: bool = False
    gate: bool = False
    norm: bool = True
    paired: bool = False
    residual: bool = False
    strided: bool = False
    seed: int = 0

    def traits(self):
        yield "one_token" if self.batch == 1 else "several_tokens"
        yield from (name for name in ("bias", "gate", "norm", "paired", "residual", "strided") if getattr(self, name))

    def inputs(self, dtype=torch.float32):
        fill = Filler(self.seed, dtype, self.strided)
        weights = Filler(self.seed + 1, dtype)  # their inputs are adjacent
        scale, norm = self.features**-0.5, self.norm and (dtype != torch.float16 or self.batch == 1)
        return {
            "x": fill.normal(self.batch, self.features),
            "weight": weights.normal(self.outputs, self.features) * scale,
            "bias": fill.normal(self.outputs) if self.bias and not self.paired else None,
            "gate": fill.normal(self.batch, self.features) if self.gate else None,
            "norm_weight": fill.normal(self.features) if norm else None,
            "eps": 1e-5 if norm else 0.0,
            "up_weight": weights.normal(self.outputs, self.features) * scale if self.paired else None,
            "residual": fill.normal(self.batch, self.outputs) if self.residual else None,
        }

    def but(self, **changes):
        return replace(self, **changes)


@st.composite
def linear_problems(draw):
    return LinearProblem(
        batch=draw(st.one_of(st.just(1), st.integers(2, 20))),
        features=draw(st.one_of(st.sampled_from([1, 64, 128]), st.integers(1, 300))),
        outputs=draw(st.one_of(st.sampled_from([1, 64]), st.integers(1, 100))),
        **{name: draw(st.booleans()) for name in ("bias", "gate", "norm", "paired", "residual", "strided")},
        seed=draw(st.integers(0, 2**16)),
    )


def projected(inputs, dtype):
    """The definition, each step rounded to `dtype`."""
    given = {name: value.to(dtype) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    v = given["x"]
    if "gate" in given:
        v = v * F.silu(given["gate"])
    if "norm_weight" in given:
        v = F.rms_norm(v, v.shape[-1:], given["norm_weight"], inputs["eps"])
    r = F.linear(v, given["weight"], given.get("bias"))
    if "up_weight" in given:
        r = F.silu(r) * F.linear(v, given["up_weight"])
    return r + given["residual"] if "residual" in given else r


PROBLEM = LinearProblem(batch=3, features=100, outputs=70)


@implementations
@covering("one_token", "several_tokens", "bias", "gate", "norm", "paired", "residual", "strided")
@given(problem=linear_problems())
@example(problem=PROBLEM)
@example(problem=PROBLEM.but(batch=1, paired=True, residual=True, gate=True))
@example(problem=PROBLEM.but(batch=17, paired=True, residual=True, strided=True))
@example(problem=PROBLEM.but(batch=1, features=1030, outputs=9, bias=True))
@example(problem=PROBLEM.but(norm=False, bias=True, gate=True))
def test_equals_its_definition(name, dtype, problem):
    inputs = problem.inputs(dtype)
    out = get_op("linear_step", name)(**inputs)
    assert (out.dtype, out.shape) == (dtype, (problem.batch, problem.outputs))
    assert out.is_contiguous()
    assert_right(out, projected(inputs, torch.float64), projected(inputs, dtype), what="out")


def test_a_token_alone_takes_a_configuration_of_its_own():
    assert linear_step_config(torch.bfloat16, 1, False).block["BLOCK_B"] == 1
    assert [linear_step_config(torch.bfloat16, batch, True).block["BLOCK_B"] for batch in (2, 16, 17, MOST)] == [
        16,
        16,
        32,
        64,
    ]


@in_fp32
def test_a_nan_stays_in_its_token(name):
    inputs = PROBLEM.inputs()
    clean = get_op("linear_step", name)(**inputs)
    inputs["x"][1, 7] = float("nan")
    out = get_op("linear_step", name)(**inputs)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


@in_fp32
def test_no_token_is_no_output(name):
    assert get_op("linear_step", name)(**PROBLEM.but(batch=0).inputs()).shape == (0, 70)


@in_fp32
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": (70, 99)}, ValueError, r"weight must have shape \(out_features, in_features\) = \(70, 100\)"),
        ({"up_weight": (69, 100)}, ValueError, r"up_weight must have shape .* = \(70, 100\), got \(69, 100\)"),
        ({"residual": (3, 100)}, ValueError, r"residual must have shape .* = \(3, 70\), got \(3, 100\)"),
        ({"norm_weight": (3,)}, ValueError, r"norm_weight must have shape \(in_features,\) = \(100,\), got \(3,\)"),
        ({"gate": (2, 100)}, ValueError, r"gate must have shape .* = \(3, 100\), got \(2, 100\)"),
        ({"bias": (3,)}, ValueError, r"bias must have shape \(out_features,\) = \(70,\), got \(3,\)"),
        ({"x": (100,)}, ValueError, r"x must have 2 dimensions \(batch, in_features\), got shape \(100,\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, change, error, message):
    made = {argument: torch.zeros(*shape, device=PROBLEM.inputs()["x"].device) for argument, shape in change.items()}
    with pytest.raises(error, match=message):
        get_op("linear_step", name)(**{**PROBLEM.inputs(), **made})


@in_fp32
def test_what_else_does_not_fit_is_named(name):
    linear_step, inputs = get_op("linear_step", name), PROBLEM.inputs()
    with pytest.raises(ValueError, match="bias must be None with up_weight, got both"):
        linear_step(**{**inputs, "bias": inputs["weight"][:, 0], "up_weight": inputs["weight"]})
    with pytest.raises(ValueError, match="eps must be a number not below 0, got -1"):
        linear_step(**{**inputs, "eps": -1.0})
    with pytest.raises(TypeError, match=r"weight: dtype must be that of x, torch\.float32, got torch\.float16"):
        linear_step(**{**inputs, "weight": inputs["weight"].half()})


def test_what_triton_does_not_take_is_named():
    linear_step = get_op("linear_step", "triton")
    with pytest.raises(NotImplementedError, match="x: batch must be at most 64 for 'triton', got 65"):
        linear_step(**PROBLEM.but(batch=65).inputs())
    inputs = PROBLEM.inputs()
    with pytest.raises(NotImplementedError, match="weight: stride of in_features must be 1 for 'triton', got 70"):
        linear_step(**{**inputs, "weight": inputs["weight"].t().contiguous().t()})
    half = {name: value.half() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with pytest.raises(NotImplementedError, match="norm_weight: must be None for several tokens in float16"):
        linear_step(**half)
