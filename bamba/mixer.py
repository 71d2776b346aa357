"""The Mamba-2 mixer: in_proj → causal convolution of x, B, C → SSD → gated norm → out_proj.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bamba.cache import SSMCache
from bamba.config import BambaConfig
from bamba.operators import Operators
from bamba.positions import Positions
from bamba.projections import project, takes_gate
from bamba.slices import by_slices, takes_slices


class Mamba2(nn.Module):
    """One mixer with the norm before it and the residual.

    One token with a cache takes a step of the recurrence, several take a scan.
    """

    def __init__(self, config: BambaConfig, operators: Operators, carry: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.operators = operators
        self.carry = carry
        d_inner, conv_dim, nheads = config.ssm_d_inner, config.ssm_conv_dim, config.ssm_nheads
        head_dtype = torch.promote_types(dtype, torch.float32)
        self.in_proj = nn.Linear(config.d_model, config.ssm_d_in_proj, bias=config.ssm_proj_bias, dtype=dtype)
        self.conv1d = nn.Conv1d(  # holds the weights; the operator convolves
            conv_dim, conv_dim, config.ssm_d_conv, groups=conv_dim, bias=config.ssm_conv_bias, dtype=dtype
        )
        self.A_log = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self._rates: tuple[tuple[object, ...], Tensor] | None = None
        self.D = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.dt_bias = nn.Parameter(torch.empty(nheads, dtype=head_dtype))
        self.norm = nn.RMSNorm(d_inner, eps=config.norm_eps, dtype=dtype)  # holds the weight; the operator gates too
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.ssm_proj_bias, dtype=dtype)

    def forward(self, hidden: Tensor, norm: nn.RMSNorm, positions: Positions, cache: SSMCache | None) -> Tensor:
        """(batch, seqlen, d_model) to the same; more tokens than a slice are overwritten, where nothing is recorded."""
        is_part = positions.shard is not None
        in_slices = positions.packed is None and not is_part and takes_slices(hidden)
        if cache is None and (in_slices or is_part):
            cache = SSMCache.empty(self.config, hidden.shape[0], hidden.device, hidden.dtype)
        if not in_slices:
            return self._forward(hidden, norm, positions, cache)
        return by_slices(hidden, lambda part, start: self._forward(part, norm, positions.part(part, start), cache))

    def _forward(self, hidden: Tensor, norm: nn.RMSNorm, positions: Positions, cache: SSMCache | None) -> Tensor:
        c, operators = self.config, self.operators
        projected = project(hidden, self.in_proj, operators, norm=norm)
        z, xBC, dt = torch.split(projected, [c.ssm_d_inner, c.ssm_conv_dim, c.ssm_nheads], dim=-1)
        if cache is not None and hidden.shape[1] == 1 and positions.packed is None and positions.shard is None:
            y = self._step(xBC[:, 0], dt[:, 0], positions, cache)[:, None]
        else:
            y = self._scan(self._convolve(xBC, positions, cache), dt, positions, cache).flatten(-2)
        if c.ssm_norm_groups == 1 and takes_gate(y, self.out_proj, operators):
            return project(y, self.out_proj, operators, norm=self.norm, gate=z, residual=hidden)
        y = operators.gated_rms_norm(y, z, self.norm.weight, eps=c.norm_eps, groups=c.ssm_norm_groups)
        return project(y, self.out_proj, operators, residual=hidden)

    def _step(self, xBC: Tensor, dt: Tensor, positions: Positions, cache: SSMCache) -> Tensor:
        """One token of each sequence, xBC (b, conv_dim) and dt (b, h), to y (b, d_inner)."""
        if self.carry == "none":  # a new chunk forgets
            cache.state.masked_fill_((positions.t % self.config.ssm_chunk_size == 0)[..., None, None], 0.0)
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        return self.operators.mixer_step(
            xBC, dt, None, cache.conv_window, cache.state, weight, bias, self._A(), **self._heads()
        )  # fmt: skip

    def _convolve(self, xBC: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """The causal convolution and activation of (b, t, conv_dim), in that layout."""
        shard = positions.shard
        if shard is not None and cache is not None:
            shard.receive(cache.conv_window)
        result = self.operators.causal_conv1d(
            xBC,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            initial_window=None if cache is None or positions.held is None else cache.conv_window,
            cu_seqlens=positions.cu_seqlens,
            return_final_window=cache is not None,
        )
        if cache is None:
            return cast("Tensor", result)
        convolved, window = result
        cache.conv_window.copy_(window)
        if shard is not None:
            shard.send(cache.conv_window)
        return cast("Tensor", convolved)

    def _scan(self, xBC: Tensor, dt: Tensor, positions: Positions, cache: SSMCache | None) -> Tensor:
        """The SSD of x, B and C in xBC (b, t, conv_dim), with dt (b, t, h), to y (b, t, h, p)."""
        c = self.config
        d_group = c.ssm_ngroups * c.ssm_d_state
        x, B, C = torch.split(xBC, [c.ssm_d_inner, d_group, d_group], dim=-1)  # views: the scan takes any strides
        x = torch.unflatten(x, -1, (c.ssm_nheads, c.ssm_headdim))
        B = torch.unflatten(B, -1, (c.ssm_ngroups, c.ssm_d_state))
        C = torch.unflatten(C, -1, (c.ssm_ngroups, c.ssm_d_state))
        ssd = cast("Callable[..., Any]", self.operators.ssd)
        scan = partial(ssd, chunk_size=c.ssm_chunk_size, carry=self.carry, **self._heads())
        inputs, cu_seqlens = (x, dt, self._A(), B, C), positions.cu_seqlens
        if cache is None:
            return cast("Tensor", scan(*inputs, cu_seqlens=cu_seqlens))
        # A rank's part of independent chunks begins with one, and so asks nobody for a state.
        shard = positions.shard if self.carry == "all" else None
        if shard is not None:
            shard.receive(cache.state)
        if positions.held is None or (positions.shard is not None and self.carry == "none"):
            y, state = scan(*inputs, cu_seqlens=cu_seqlens, return_final_state=True)
        elif self.carry == "all":
            y, state = scan(*inputs, cu_seqlens=cu_seqlens, initial_state=cache.state, return_final_state=True)
        else:
            y, state = finish_chunk_then_scan(
                scan, *inputs, cu_seqlens=cu_seqlens, held=positions.held, state=cache.state,
                chunk_size=c.ssm_chunk_size,
            )  # fmt: skip
        cache.state.copy_(state)
        if shard is not None:
            shard.send(cache.state)
        return cast("Tensor", y)

    def _A(self) -> Tensor:  # noqa: N802  # the paper's name
        """-e^A_log; kept from call to call, where nobody asks for a gradient, until A_log changes."""
        A_log = self.A_log
        if torch.compiler.is_compiling() or A_log.is_inference() or (torch.is_grad_enabled() and A_log.requires_grad):
            return _decay_rates(A_log)
        key = (id(A_log), A_log._version, A_log.device, A_log.dtype)
        if self._rates is None or self._rates[0] != key:
            self._rates = key, _decay_rates(A_log)
        return self._rates[1]

    def _heads(self) -> dict[str, Any]:
        """What the scan and the step know of the heads beside A."""
        return {"D": self.D, "dt_bias": self.dt_bias, "dt_softplus": True, "dt_limit": self.config.ssm_dt_limit}


def _decay_rates(A_log: Tensor) -> Tensor:
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))


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
