"""Mamba-2 operators, each in torch and in portable Triton: scan, convolution, norms, gates, projection, decode steps.

Start from the functions here, which take the implementation that suits the tensors' device, or name one with
:func:`get_op` (for the scan, whose definition in fp64 is there too, :func:`get_ssd`). :func:`explain` says what a call
takes. :func:`patch_transformers` puts them under transformers' models.
"""

from ssd_kernels.defaults import (
    attention_step,
    causal_conv1d,
    causal_conv1d_step,
    gated_rms_norm,
    linear_step,
    mixer_step,
    rms_norm,
    ssd,
    ssd_step,
    swiglu,
)
from ssd_kernels.explain import Explanation, explain
from ssd_kernels.interface import SSD
from ssd_kernels.registry import OPERATORS, get_op, get_ssd, names
from ssd_kernels.transformers_family import patch_transformers

__all__ = [
    "OPERATORS",
    "SSD",
    "Explanation",
    "attention_step",
    "causal_conv1d",
    "causal_conv1d_step",
    "explain",
    "gated_rms_norm",
    "get_op",
    "get_ssd",
    "linear_step",
    "mixer_step",
    "names",
    "patch_transformers",
    "rms_norm",
    "ssd",
    "ssd_step",
    "swiglu",
]
