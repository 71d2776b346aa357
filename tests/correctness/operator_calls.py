"""A small call of every operator, made anew each time, since some work in place."""

from typing import Any

import torch

from tests.correctness.operator_problems import ConvProblem, Filler, StepProblem
from tests.correctness.problems import DEVICE, Problem

CONV = ConvProblem(lengths=(3, 0, 4), packed=True, channels=6)
STEP = StepProblem(batch=2, nheads=4, ngroups=2, headdim=4, d_state=8, slots=(2, 0), nslots=3)
SCAN = Problem(batch=1, seqlen=7, nheads=2, ngroups=1, headdim=4, d_state=8, chunk_size=4)


def stranger() -> str:
    """An implementation of nothing."""
    return "a stranger's"


def _conv_step() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    slots = STEP.inputs()["slots"]
    return {"x": fill.normal(2, 6), "window": fill.normal(3, 6, 3), "weight": fill.normal(6, 4), "slots": slots}


def _norm() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    return {"y": fill.normal(2, 3, 8), "z": fill.normal(2, 3, 8), "weight": fill.normal(8), "eps": 1e-5, "groups": 2}


def _mixer_step() -> dict[str, Any]:
    step, fill = STEP.inputs(), Filler(0, torch.float32)
    conv = {"xBC": fill.normal(2, 48), "window": fill.normal(3, 48, 3), "weight": fill.normal(48, 4)}
    kept = {name: step[name] for name in ("dt", "state", "A", "D", "dt_bias", "dt_softplus", "slots")}
    return {**conv, **kept, "bias": fill.normal(48), "z": fill.normal(2, 16)}


def _linear_step() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    return {"x": fill.normal(2, 8), "weight": fill.normal(6, 8), "bias": fill.normal(6), "norm_weight": fill.normal(8)}


def _attention_step() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    named = {"q": (2, 4, 8), "k": (2, 2, 8), "v": (2, 2, 8), "cos": (2, 2), "sin": (2, 2)}
    tensors = {name: fill.normal(*shape) for name, shape in named.items()}
    cache = {"keys": fill.normal(2, 2, 5, 8), "values": fill.normal(2, 2, 5, 8)}
    return {**tensors, **cache, "lengths": torch.tensor([4, 0], device=DEVICE)}


def _rms_norm() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    return {"x": fill.normal(2, 3, 8), "weight": fill.normal(8), "eps": 1e-5}


def _swiglu() -> dict[str, Any]:
    fill = Filler(0, torch.float32)
    return {"gate": fill.normal(2, 3, 8), "up": fill.normal(2, 3, 8)}


CALLS = {
    "ssd": lambda: SCAN.inputs(),
    "causal_conv1d": lambda: CONV.inputs(),
    "causal_conv1d_step": _conv_step,
    "gated_rms_norm": _norm,
    "ssd_step": lambda: STEP.inputs(),
    "mixer_step": _mixer_step,
    "linear_step": _linear_step,
    "attention_step": _attention_step,
    "rms_norm": _rms_norm,
    "swiglu": _swiglu,
}
