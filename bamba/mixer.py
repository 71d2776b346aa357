"""The Mamba-2 mixer: in_proj → causal convolution of x, B, C → SSD → gated norm → out_proj.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bamba.cache import SSMCache
from bamba.config import BambaConfig
from bamba.positions import Positions
from bamba.step import ssd_step
from ssd_kernels import SSD


class Mamba2(nn.Module):
    """One mixer; one token with a cache takes a step of the recurrence, several take a scan."""

    def __init__(self, config: BambaConfig, ssd: SSD, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.ssd = ssd
        self.carry = carry
        d_inner, conv_dim, nheads = config.ssm_d_inner, config.ssm_conv_dim, config.ssm_nheads
        head_dtype = torch.promote_types(dtype, torch.float32)
        self.in_proj = nn.Linear(config.d_model, config.ssm_d_in_proj, bias=config.ssm_proj_bias, dtype=dtype)
        self.conv1d = nn.Conv1d(
            conv_dim, conv_dim, config.ssm_d_conv, groups=conv_dim, bias=config.ssm_conv_bias, dtype=dtype
        )
        self.A_log = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.D = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.dt_bias = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.norm = GatedRMSNorm(d_inner, config.ssm_norm_groups, config.norm_eps, dtype)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.ssm_proj_bias, dtype=dtype)

    def forward(self, hidden: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        c = self.config
        d_group = c.ssm_ngroups * c.ssm_d_state
        z, xBC, dt = torch.split(self.in_proj(hidden), [c.ssm_d_inner, c.ssm_conv_dim, c.ssm_nheads], dim=-1)
        xBC = F.silu(self._convolve(xBC, positions, cache))
        x, B, C = torch.split(xBC, [c.ssm_d_inner, d_group, d_group], dim=-1)  # views: the scan takes any strides
        x = torch.unflatten(x, -1, (c.ssm_nheads, c.ssm_headdim))
        B = torch.unflatten(B, -1, (c.ssm_ngroups, c.ssm_d_state))
        C = torch.unflatten(C, -1, (c.ssm_ngroups, c.ssm_d_state))
        y = self._mix(x, dt, B, C, positions, cache)
        return cast("Tensor", self.out_proj(self.norm(y.flatten(-2), z)))

    def _convolve(self, xBC: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """The causal convolution of (batch, seqlen, conv_dim), in that layout."""
        seqlen, conv_dim = xBC.shape[1:]
        packed = positions.packed
        if packed is not None:
            bounds = packed.cu_seqlens.tolist()
            return torch.cat(
                [
                    self._convolve(
                        xBC[:, start:end],
                        positions._replace(packed=None),
                        None if cache is None else SSMCache(cache.conv_window[row, None], cache.state),
                    )
                    for row, (start, end) in enumerate(itertools.pairwise(bounds))
                    if end > start
                ],
                dim=1,
            )
        window = xBC.new_zeros(xBC.shape[0], conv_dim, self.config.ssm_d_conv - 1) if cache is None else cache[0]
        inputs = torch.cat([window, xBC.transpose(1, 2)], dim=-1)  # (b, conv_dim, before + t)
        if cache is not None:
            cache.conv_window.copy_(inputs[..., seqlen:])
        out = F.conv1d(inputs, self.conv1d.weight, self.conv1d.bias, groups=conv_dim)
        # One copy here, so that each token's channels are adjacent for the scan, the norm and out_proj.
        return out.transpose(1, 2).contiguous()

    def _mix(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """The SSD of x (b, t, h, p), with dt (b, t, h) and B, C (b, t, g, n)."""
        A = -torch.exp(at_least_fp32(self.A_log))
        chunk_size = self.config.ssm_chunk_size
        heads: dict[str, Any] = {"D": self.D, "dt_bias": self.dt_bias, "dt_limit": self.config.ssm_dt_limit}
        if cache is not None and x.shape[1] == 1 and positions.packed is None:
            if self.carry == "none":  # a new chunk forgets
                cache.state.masked_fill_((positions.t % chunk_size == 0)[..., None, None], 0.0)
            return ssd_step(cache.state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], **heads)[:, None]

        scan = partial(
            cast("Callable[..., Any]", self.ssd), chunk_size=chunk_size, dt_softplus=True, carry=self.carry, **heads
        )
        cu_seqlens = None if positions.packed is None else positions.packed.cu_seqlens
        if cache is None:
            return cast("Tensor", scan(x, dt, A, B, C, cu_seqlens=cu_seqlens))
        if positions.held is None:
            y, state = scan(x, dt, A, B, C, cu_seqlens=cu_seqlens, return_final_state=True)
        elif self.carry == "all":
            y, state = scan(
                x, dt, A, B, C, cu_seqlens=cu_seqlens, initial_state=cache.state, return_final_state=True
            )  # fmt: skip
        else:
            y, state = finish_chunk_then_scan(
                scan, x, dt, A, B, C, cu_seqlens=cu_seqlens, held=positions.held, state=cache.state,
                chunk_size=chunk_size,
            )  # fmt: skip
        cache.state.copy_(state)
        return cast("Tensor", y)


class GatedRMSNorm(nn.Module):
    """RMSNorm of y · silu(z) over each of `groups` equal parts of the last dimension, in fp32 at least."""

    def __init__(self, width: int, groups: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """(…, width) twice to (…, width), in the dtype of y."""
        gated = torch.unflatten(at_least_fp32(y) * F.silu(at_least_fp32(z)), -1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2)
        return self.weight * normed.to(y.dtype)


def finish_chunk_then_scan(
    scan: Callable[..., Any],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    cu_seqlens: Tensor | None,
    held: Tensor,
    state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Continue sequences of independent chunks, whose last chunk need not be full.

    Every sequence becomes two packed ones: what its open chunk still takes, from the state that it holds, and the
    chunks after that, from zero; either may be empty.

    Args:
        scan: an SSD with carry "none".
        x: (batch, seqlen, nheads, headdim), or (1, total, nheads, headdim) of packed sequences; dt, B and C alike.
        dt: its steps.
        A: (nheads,).
        B: as in SSD.
        C: as in SSD.
        cu_seqlens: (nseqs + 1,), the bounds of packed sequences.
        held: (batch or nseqs,), the tokens of each sequence before these.
        state: (batch or nseqs, nheads, headdim, d_state), after those tokens.
        chunk_size: tokens in a chunk.

    Returns:
        y, as x, and the final state, as `state`.
    """
    batch, seqlen = x.shape[:2]
    if cu_seqlens is None:
        cu_seqlens = torch.arange(batch + 1, device=x.device) * seqlen
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    restarts = torch.minimum(starts + -held % chunk_size, ends)
    y, final_state = scan(
        *(tensor if tensor is A else tensor.flatten(0, 1)[None] for tensor in (x, dt, A, B, C)),
        cu_seqlens=torch.cat([torch.stack([starts, restarts], dim=1).flatten(), ends[-1:]]),
        initial_state=torch.stack([state, torch.zeros_like(state)], dim=1).flatten(0, 1),
        return_final_state=True,
    )
    final_state = final_state.unflatten(0, (-1, 2))
    has_restarted = (restarts < ends)[:, None, None, None]
    return y.view(x.shape), torch.where(has_restarted, final_state[:, 1], final_state[:, 0])


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
