"""A linear layer with the norm, gate or residual around it: module by module, or for a few tokens in one operator."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bamba.operators import Operators

if TYPE_CHECKING:
    from bamba.parallel.ranks import Ranks

FEW = 16  # tokens; beyond, cuBLAS reads the weights as fast, and fused work is done anew by every program
WIDE = 8192  # outputs; fewer are too few programs to read the weights of several tokens at once


def project(
    x: Tensor,
    linear: nn.Module,
    operators: Operators,
    *,
    norm: nn.RMSNorm | None = None,
    gate: Tensor | None = None,
    up: nn.Module | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """What :class:`ssd_kernels.linear_interface.LinearStep` says, of modules.

    Args:
        x: (…, in_features).
        linear: the projection. What someone has put in its place (an adapter, a quantised layer) is called as it is.
        operators: what a model on a GPU has for a few tokens, for norms and for gates, in the place of modules.
        norm: the norm before it.
        gate: as x, the gate before the norm, where :func:`takes_gate`.
        up: a second projection, which that one's silu multiplies.
        residual: (…, out_features), what is added; on a GPU, where no gradient is recorded, it may be overwritten.

    Returns:
        (…, out_features).
    """
    if residual is not None and operators.ranks is not None:
        if up is None and _is_one_token_added_directly(x, linear, operators):
            return operators.ranks.project(x, cast("nn.Linear", linear).weight, residual, gate=gate, **_of_norm(norm))
        partial = project(x, linear, operators, norm=norm, gate=gate, up=up)
        gated = None if gate is None else (x, gate)
        return operators.ranks.add(partial, residual, gated=gated, eps=0.0 if norm is None else cast("float", norm.eps))
    step = operators.linear_step
    if step is not None and _suits(x, linear, up):
        weights = cast("nn.Linear", linear)
        out = step(
            x.flatten(0, -2), weights.weight, weights.bias,
            gate=None if gate is None else gate.flatten(0, -2),
            up_weight=None if up is None else cast("nn.Linear", up).weight,
            residual=None if residual is None else residual.flatten(0, -2),
            **_of_norm(norm),
        )  # fmt: skip
        return torch.unflatten(out, 0, x.shape[:-1])
    if gate is not None:
        own = cast("Ranks", operators.ranks)
        x = own.own_norm(x, gate, cast("nn.RMSNorm", norm).weight, eps=cast("float", cast("nn.RMSNorm", norm).eps))
    elif norm is not None:
        x = normed(x, norm, operators)
    if residual is not None and up is None and _may_add_to(residual, linear, operators):
        rows, weight = residual.flatten(0, -2), cast("nn.Linear", linear).weight
        rows.addmm_(x.flatten(0, -2), weight.t())
        return residual
    out = linear(x)
    if up is not None:
        out = F.silu(out) * up(x) if operators.swiglu is None else operators.swiglu(out, up(x))
    return out if residual is None else residual + out


def embed(token_ids: Tensor, embedding: nn.Embedding, operators: Operators) -> Tensor:
    """The embeddings (batch, seqlen, d_model) of token ids (batch, seqlen)."""
    if operators.ranks is not None:
        return operators.ranks.embed(token_ids, embedding.weight)
    return cast("Tensor", embedding(token_ids))


def _of_norm(norm: nn.RMSNorm | None) -> dict[str, Any]:
    """What an operator is told of the norm before a projection."""
    return {} if norm is None else {"norm_weight": norm.weight, "eps": norm.eps}


def _may_add_to(residual: Tensor, linear: nn.Module, operators: Operators) -> bool:
    """Whether a product may be added to the residual by the kernel that makes it: a launch less, and one rounding."""
    return (
        operators.rms_norm is not None
        and type(linear) is nn.Linear
        and cast("Tensor | None", linear.bias) is None
        and not torch.is_grad_enabled()
        and residual.dtype == linear.weight.dtype
        and residual.is_contiguous()
    )


def project_each(
    x: Tensor, linears: Sequence[nn.Module], operators: Operators, *, norm: nn.RMSNorm
) -> Iterator[Tensor]:
    """:func:`project` of one normed input by several layers; the norm is taken once, or within each operator."""
    shared = None
    for linear in linears:
        if operators.linear_step is not None and _suits(x, linear, None):
            yield project(x, linear, operators, norm=norm)
        else:
            shared = normed(x, norm, operators) if shared is None else shared
            yield linear(shared)


def normed(x: Tensor, norm: nn.RMSNorm, operators: Operators) -> Tensor:
    """What the norm makes of (…, width)."""
    if operators.rms_norm is None or type(norm) is not nn.RMSNorm:
        return cast("Tensor", norm(x))
    return operators.rms_norm(x, norm.weight, eps=cast("float", norm.eps))


def takes_gate(x: Tensor, linear: nn.Module, operators: Operators) -> bool:
    """Whether :func:`project` takes a gate: of one token, which every program gates anew.

    Where the norm spans ranks, of as many as these add directly: their sum makes up for what each has divided by, but
    not in a bias.
    """
    if operators.ranks is not None and operators.ranks.norm_span > 1:
        return operators.ranks.adds_directly(x) and getattr(linear, "bias", None) is None
    return operators.linear_step is not None and x.numel() == x.shape[-1] and _suits(x, linear, None)


def _is_one_token_added_directly(x: Tensor, linear: nn.Module, operators: Operators) -> bool:
    """Whether the ranks project one token and add what they get in one launch."""
    ranks = cast("Ranks", operators.ranks)
    return (
        x.numel() == x.shape[-1]
        and _suits(x, linear, None)
        and cast("Tensor | None", cast("nn.Linear", linear).bias) is None
        and ranks.adds_directly(x)
    )


def _suits(x: Tensor, linear: nn.Module, up: nn.Module | None) -> bool:
    """Whether the operator does what the modules would: few tokens, plain layers, no bias of two; not in fp16.

    Weighed inputs that are not divided yet might not fit fp16.
    """
    layers = [linear] if up is None else [linear, up]
    rows = x.numel() // x.shape[-1]
    return (
        (rows == 1 or (rows <= FEW and getattr(linear, "out_features", 0) >= WIDE))
        and x.dtype != torch.float16
        and all(type(layer) is nn.Linear for layer in layers)
        and (up is None or linear.bias is None is up.bias)
    )
