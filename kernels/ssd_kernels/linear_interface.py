"""A projection of a few tokens with what stands around it in a decode step: its contract, checks, and torch form."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_kernels.checks import expect_device, expect_dtype, expect_ndim, expect_same_dtype, expect_shape


class LinearStep(Protocol):
    """The weights are read once and nothing in between is written: what a token costs at a small batch.

        u = x, or x · silu(gate)
        v = u, or norm_weight · u / √(mean(u²) + eps)
        r = v weightᵀ + bias, or silu(v weightᵀ) · (v up_weightᵀ)
        out = r, or residual + r

    Sums are fp32 (fp64 for fp64 inputs), and the result is rounded once; implementations may round norm_weight · u to
    the dtype of the weight before the division, which then is one of the sum.

    Args:
        x: (batch, in_features), any strides.
        weight: (out_features, in_features), in the dtype of x.
        bias: (out_features,), any floating dtype; none by default, and none with `up_weight`.
        gate: as x, any floating dtype; none by default.
        norm_weight: (in_features,), any floating dtype; none by default.
        eps: added to the mean of squares; not negative.
        up_weight: as weight; none by default.
        residual: (batch, out_features), any floating dtype; none by default.

    Returns:
        Contiguous (batch, out_features) in the dtype of x.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        gate: Tensor | None = None,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        up_weight: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Project."""


def linear_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    up_weight: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The projection in torch, differentiable; see :class:`LinearStep`. It rounds what the products are made of."""
    check_linear_step(x, weight, bias, gate, norm_weight, eps, up_weight, residual)
    dtype = torch.promote_types(x.dtype, torch.float32)
    u = x.to(dtype)
    if gate is not None:
        u = u * F.silu(gate.to(dtype))
    if norm_weight is not None:
        u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps) * norm_weight.to(dtype)
    v = u.to(x.dtype)
    if up_weight is not None:
        out = F.silu(F.linear(v, weight).to(dtype)) * F.linear(v, up_weight).to(dtype)
    else:
        out = F.linear(v, weight, None if bias is None else bias.to(x.dtype)).to(dtype)
    if residual is not None:
        out = residual.to(dtype) + out
    return out.to(x.dtype)


def check_linear_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, norm_weight: Tensor | None, eps: float,
    up_weight: Tensor | None, residual: Tensor | None,
) -> None:  # fmt: skip
    """Check the arguments of :class:`LinearStep` against each other."""
    expect_ndim("x", x, "(batch, in_features)")
    expect_ndim("weight", weight, "(out_features, in_features)")
    batch, features = x.shape
    outputs = weight.shape[0]
    expect_shape("weight", weight, "(out_features, in_features)", (outputs, features))
    expect_shape("bias", bias, "(out_features,)", (outputs,), optional=True)
    expect_shape("gate", gate, "(batch, in_features)", (batch, features), optional=True)
    expect_shape("norm_weight", norm_weight, "(in_features,)", (features,), optional=True)
    expect_shape("up_weight", up_weight, "(out_features, in_features)", (outputs, features), optional=True)
    expect_shape("residual", residual, "(batch, out_features)", (batch, outputs), optional=True)
    if features < 1:
        raise ValueError(f"x: in_features must be at least 1, got {features}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a number not below 0, got {eps}")
    if bias is not None and up_weight is not None:
        raise ValueError("bias must be None with up_weight, got both")
    named = (("x", x), ("bias", bias), ("gate", gate), ("norm_weight", norm_weight), ("residual", residual))
    for name, tensor in named:
        expect_dtype(name, tensor)
    expect_same_dtype("weight", weight, "x", x)
    expect_same_dtype("up_weight", up_weight, "x", x)
    expect_device(
        "x", x, weight=weight, bias=bias, gate=gate, norm_weight=norm_weight, up_weight=up_weight, residual=residual
    )
