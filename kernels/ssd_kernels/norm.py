"""The gated RMSNorm: its contract, its checks, and its form in plain torch."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import expect_device, expect_dtype, expect_shape, expect_tensor


class GatedRMSNorm(Protocol):
    """RMSNorm of a gated tensor, over each of `groups` equal parts of its last dimension.

        u = y · silu(z)        out = weight · u / √(mean(u²) + eps)        silu(z) = z / (1 + e^−z)

    In fp32 (fp64 for fp64 inputs) and rounded once. Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060),
    section 7; Zhang and Sennrich, "Root Mean Square Layer Normalization" (arXiv:1910.07467).

    Args:
        y: (…, width), any strides.
        z: as y, any floating dtype.
        weight: (width,), any floating dtype.
        eps: added to the mean of squares; not negative.
        groups: equal parts of the last dimension, each with a norm of its own; divides width.

    Returns:
        Contiguous (…, width) in the dtype of y.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(self, y: Tensor, z: Tensor, weight: Tensor, *, eps: float, groups: int = 1) -> Tensor:
        """Gate and norm."""


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, *, eps: float, groups: int = 1) -> Tensor:
    """The gated norm in torch, differentiable; see :class:`GatedRMSNorm`."""
    check_norm(y, z, weight, eps, groups)
    dtype = torch.promote_types(y.dtype, torch.float32)
    gated = (y.to(dtype) * F.silu(z.to(dtype))).unflatten(-1, (groups, y.shape[-1] // groups))
    normed: Tensor = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    out: Tensor = (normed.flatten(-2) * weight.to(dtype)).to(y.dtype)
    return out.contiguous()


def check_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> None:
    """Check the arguments of :class:`GatedRMSNorm` against each other."""
    expect_tensor("y", y)
    if y.ndim < 1 or y.shape[-1] < 1:
        raise ValueError(f"y must have shape (…, width), width at least 1, got {tuple(y.shape)}")
    width = y.shape[-1]
    expect_shape("z", z, "that of y", tuple(y.shape))
    expect_shape("weight", weight, "(width,)", (width,))
    expect_dtype("y", y)
    expect_dtype("z", z)
    expect_dtype("weight", weight)
    expect_device("y", y, z=z, weight=weight)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if groups < 1 or width % groups:
        raise ValueError(f"groups must divide width {width}, got {groups}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and not negative, got {eps}")
