"""What surrounds a model's products of matrices, token by token: RMSNorm and SwiGLU. Contracts, checks, torch forms."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import expect_device, expect_dtype, expect_same_dtype, expect_shape, expect_tensor


class RMSNorm(Protocol):
    """RMSNorm over the last dimension: out = weight · x / √(mean(x²) + eps), in fp32 (fp64 for fp64), rounded once.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv:1910.07467).

    Args:
        x: (…, width), any strides.
        weight: (width,), any floating dtype.
        eps: added to the mean of squares; not negative.

    Returns:
        Contiguous (…, width) in the dtype of x.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """Norm."""


class SwiGLU(Protocol):
    """The gate of an MLP: out = silu(gate) · up, in fp32 (fp64 for fp64), rounded once; silu(u) = u / (1 + e^−u).

    Source: Shazeer, "GLU Variants Improve Transformer" (arXiv:2002.05202).

    Args:
        gate: (…, width), any strides.
        up: as gate, in its dtype.

    Returns:
        Contiguous (…, width) in the dtype of gate.

    Raises:
        ValueError, TypeError, NotImplementedError: as :class:`RMSNorm`.
    """

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Gate."""


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """The norm in torch, differentiable; see :class:`RMSNorm`."""
    check_rms_norm(x, weight, eps)
    dtype = torch.promote_types(x.dtype, torch.float32)
    u = x.to(dtype)
    return (u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)).to(x.dtype).contiguous()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The gate in torch, differentiable; see :class:`SwiGLU`."""
    check_swiglu(gate, up)
    dtype = torch.promote_types(gate.dtype, torch.float32)
    return (F.silu(gate.to(dtype)) * up.to(dtype)).to(gate.dtype).contiguous()


def check_rms_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    """Check the arguments of :class:`RMSNorm` against each other."""
    expect_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last dimension of at least one element, got shape {tuple(x.shape)}")
    expect_shape("weight", weight, "(width,)", (x.shape[-1],))
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a number not below 0, got {eps}")
    expect_dtype("x", x)
    expect_dtype("weight", weight)
    expect_device("x", x, weight=weight)


def check_swiglu(gate: Tensor, up: Tensor) -> None:
    """Check the arguments of :class:`SwiGLU` against each other."""
    expect_tensor("gate", gate)
    expect_shape("up", up, "that of gate", tuple(gate.shape))
    expect_dtype("gate", gate)
    expect_same_dtype("up", up, "gate", gate)
    expect_device("gate", gate, up=up)
