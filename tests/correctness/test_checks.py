"""What is no tensor where an operator takes one: an error that names the argument, what was expected, and what came."""

import inspect

import pytest
import torch
from torch import Tensor

import ssd_kernels
from ssd_kernels import explain, get_op, names
from ssd_kernels.attention_interface import AttentionStep
from ssd_kernels.conv_interface import CausalConv1d, CausalConv1dStep
from ssd_kernels.interface import SSD
from ssd_kernels.linear_interface import LinearStep
from ssd_kernels.mlp_interface import RMSNorm, SwiGLU
from ssd_kernels.norm import GatedRMSNorm
from ssd_kernels.step_interface import MixerStep, SSDStep
from tests.correctness.operator_calls import CALLS
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness

CONTRACTS = {
    "ssd": SSD, "causal_conv1d": CausalConv1d, "causal_conv1d_step": CausalConv1dStep, "gated_rms_norm": GatedRMSNorm,
    "ssd_step": SSDStep, "mixer_step": MixerStep, "linear_step": LinearStep, "attention_step": AttentionStep,
    "rms_norm": RMSNorm, "swiglu": SwiGLU,
}  # fmt: skip


def arguments_of(operator, annotation):
    """The names of a contract's arguments that are annotated so."""
    parameters = inspect.signature(CONTRACTS[operator].__call__).parameters.values()
    return [parameter.name for parameter in parameters if parameter.annotation == annotation]


def spoilt():
    """Every tensor of every operator, with what is none, and what is said to be expected."""
    for operator in ssd_kernels.OPERATORS:
        for argument in arguments_of(operator, Tensor):
            yield from ((operator, argument, value, "a tensor") for value in (None, "a word", [1.0]))
        for argument in arguments_of(operator, Tensor | None):
            yield from ((operator, argument, value, "a tensor or None") for value in ("a word", [1.0]))


SPOILT = [*spoilt()]
every_tensor = pytest.mark.parametrize(
    ("operator", "argument", "value", "expected"), SPOILT, ids=[f"{each[0]}-{each[1]}-{each[2]}" for each in SPOILT]
)


def test_every_operator_has_tensors_to_spoil():
    assert {each[0] for each in SPOILT} == {*ssd_kernels.OPERATORS} == {*CONTRACTS}
    tensors = {(operator, name) for operator, make in CALLS.items() for name, value in make().items()
               if isinstance(value, Tensor)}  # fmt: skip
    assert tensors <= {each[:2] for each in SPOILT}


@every_tensor
def test_what_is_no_tensor_is_named_by_every_implementation(operator, argument, value, expected):
    message = f"^{argument} must be {expected}, got {value!r}$".replace("[", r"\[").replace("]", r"\]")
    calls = [getattr(ssd_kernels, operator), *(get_op(operator, name) for name in names(operator))]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(**{**CALLS[operator](), argument: value})
    with pytest.raises(TypeError, match=message):
        explain(operator, **{**CALLS[operator](), argument: value})


MIXER = [
    ("xBC", lambda xBC: xBC[0], ValueError, "xBC must have 2 dimensions"),
    ("xBC", lambda xBC: xBC.int(), TypeError, "xBC: dtype must be one of"),
    ("window", lambda window: window.half(), TypeError, "window: dtype must be that of xBC, torch.float32"),
    ("window", lambda window: window.to("meta"), ValueError, f"window must be on the device of xBC, {DEVICE}"),
    ("state", lambda state: state.to("meta"), ValueError, f"state must be on the device of xBC, {DEVICE}"),
    (
        "xBC",
        lambda xBC: torch.cat([xBC, xBC[:, :16]], -1),
        ValueError,
        "xBC: ngroups must divide nheads 4, got ngroups 3",
    ),
]


@pytest.mark.parametrize("name", names("mixer_step"))
@pytest.mark.parametrize(("argument", "spoil", "error", "message"), MIXER, ids=[each[3][:40] for each in MIXER])
def test_the_mixers_step_speaks_of_its_own_arguments(name, argument, spoil, error, message):
    inputs = CALLS["mixer_step"]()
    inputs[argument] = spoil(inputs[argument])
    if "ngroups" in message:  # as wide everywhere
        inputs |= {each: torch.cat([inputs[each], inputs[each][:16]]) for each in ("weight", "bias")}
        inputs["window"] = torch.cat([inputs["window"], inputs["window"][:, :16]], 1)
    with pytest.raises(error, match=message):
        get_op("mixer_step", name)(**inputs)
