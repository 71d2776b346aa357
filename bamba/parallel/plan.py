"""Which part of each weight a rank holds: heads of the mixers, width of the MLPs, words of the vocabulary.

Every rank holds as many heads as any other. Groups of heads that share something (B and C, keys and values) are cut
with them; a group whose heads are on several ranks is held by each of these.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bamba.config import BambaConfig


@dataclass(frozen=True)
class Cut:
    """A rank's part of a tensor: ranges of one dimension one after the other, then zeros up to `size`."""

    dim: int
    ranges: tuple[tuple[int, int], ...]
    size: int

    def of(self, full: Any) -> Tensor:
        """The part, in memory of its own, of a tensor or of what safetensors gives for a slice of a file."""
        pieces = [full[self._at(start, stop)] for start, stop in self.ranges]
        missing = self.size - sum(stop - start for start, stop in self.ranges)
        if missing:
            like = full[self._at(0, 1)]
            pieces.append(like.new_zeros((*like.shape[: self.dim], missing, *like.shape[self.dim + 1 :])))
        return torch.cat(pieces, dim=self.dim)

    def _at(self, start: int, stop: int) -> tuple[slice, ...]:
        return (slice(None),) * self.dim + (slice(start, stop),)


Cuts = Mapping[str, Mapping[str, Cut]]  # module → parameter → its part; what is not in it is whole on every rank


def local_config(config: BambaConfig, size: int) -> BambaConfig:
    """What one of `size` ranks computes; the vocabulary is left whole.

    Raises:
        ValueError: heads, or groups of the gated norm, that do not divide among the ranks.
    """
    changes: dict[str, int] = {"d_mlp": math.ceil(config.d_mlp / size)}
    if config.attn_layers:
        _expect_divisible("attn_nheads", config.attn_nheads, size)
        changes["attn_nheads"] = config.attn_nheads // size
        changes["attn_nheads_kv"] = len(_groups(config.attn_nheads, config.attn_nheads_kv, 0, size))
    if len(config.attn_layers) < config.num_layers:
        _expect_divisible("ssm_nheads", config.ssm_nheads, size)
        if config.ssm_norm_groups % size and size % config.ssm_norm_groups:
            raise ValueError(
                f"ssm_norm_groups must be a multiple or a divisor of the {size} ranks, got {config.ssm_norm_groups}"
            )
        changes["ssm_nheads"] = config.ssm_nheads // size
        changes["ssm_ngroups"] = len(_groups(config.ssm_nheads, config.ssm_ngroups, 0, size))
        changes["ssm_norm_groups"] = max(1, config.ssm_norm_groups // size)
    return config.replace(**changes)


def plan(config: BambaConfig, rank: int, size: int) -> Cuts:
    """The parts of the weights of a :class:`bamba.Bamba` that this rank of `size` holds.

    What the projections back to d_model add up to is summed over the ranks, so that the first alone holds their bias.

    Raises:
        ValueError: as :func:`local_config`.
    """
    local = local_config(config, size)
    words = _share(config.vocab_size, rank, size)
    cuts = {"model.embed_tokens": {"weight": words}, "lm_head": {"weight": words}}
    for layer in range(config.num_layers):
        block = f"model.layers.{layer}"
        parts = _attention(config, local, rank, size) if layer in config.attn_layers else _mixer(config, local, rank)
        parts |= _mlp(config, rank, size)
        cuts |= {f"{block}.{module}": cut for module, cut in parts.items()}
    return cuts


def _mixer(config: BambaConfig, local: BambaConfig, rank: int) -> dict[str, dict[str, Cut]]:
    size = config.ssm_nheads // local.ssm_nheads
    own = (rank * local.ssm_nheads, (rank + 1) * local.ssm_nheads)
    heads = Cut(0, (own,), local.ssm_nheads)
    x = [(own[0] * config.ssm_headdim, own[1] * config.ssm_headdim)]
    groups = _groups(config.ssm_nheads, config.ssm_ngroups, rank, size)
    B = list(_ranges(groups, config.ssm_d_state))
    xBC = [*x, *_shift(B, config.ssm_d_inner), *_shift(B, config.ssm_d_inner + config.ssm_ngroups * config.ssm_d_state)]
    zxBCdt = [*x, *_shift(xBC, config.ssm_d_inner), *_shift([own], config.ssm_d_inner + config.ssm_conv_dim)]
    return {
        "mamba": {"A_log": heads, "D": heads, "dt_bias": heads},
        "mamba.in_proj": _rows(Cut(0, tuple(zxBCdt), local.ssm_d_in_proj), config.ssm_proj_bias),
        "mamba.conv1d": _rows(Cut(0, tuple(xBC), local.ssm_conv_dim), config.ssm_conv_bias),
        "mamba.norm": {"weight": Cut(0, tuple(x), local.ssm_d_inner)},
        "mamba.out_proj": _columns(Cut(1, tuple(x), local.ssm_d_inner), config, config.ssm_proj_bias, rank),
    }


def _attention(config: BambaConfig, local: BambaConfig, rank: int, size: int) -> dict[str, dict[str, Cut]]:
    width = local.attn_nheads * config.attn_headdim
    q = ((rank * width, (rank + 1) * width),)
    groups = _groups(config.attn_nheads, config.attn_nheads_kv, rank, size)
    kv = Cut(0, tuple(_ranges(groups, config.attn_headdim)), local.attn_nheads_kv * config.attn_headdim)
    return {
        "self_attn.q_proj": _rows(Cut(0, q, width), config.attn_bias),
        "self_attn.k_proj": _rows(kv, config.attn_bias),
        "self_attn.v_proj": _rows(kv, config.attn_bias),
        "self_attn.o_proj": _columns(Cut(1, q, width), config, config.attn_bias, rank),
    }


def _mlp(config: BambaConfig, rank: int, size: int) -> dict[str, dict[str, Cut]]:
    # Zeros where the width does not divide: silu(0) · 0, times columns of zeros, adds nothing.
    share = _share(config.d_mlp, rank, size)
    return {
        "feed_forward.gate_proj": _rows(share, config.mlp_bias),
        "feed_forward.up_proj": _rows(share, config.mlp_bias),
        "feed_forward.down_proj": _columns(Cut(1, share.ranges, share.size), config, config.mlp_bias, rank),
    }


def _rows(cut: Cut, bias: bool) -> dict[str, Cut]:
    return {"weight": cut} | ({"bias": cut} if bias else {})


def _columns(cut: Cut, config: BambaConfig, bias: bool, rank: int) -> dict[str, Cut]:
    held = ((0, config.d_model),) if rank == 0 else ()
    return {"weight": cut} | ({"bias": Cut(0, held, config.d_model)} if bias else {})


def _share(width: int, rank: int, size: int) -> Cut:
    """An equal part of rows, those of the last ranks filled up with zeros."""
    share = math.ceil(width / size)
    start, stop = (min(edge * share, width) for edge in (rank, rank + 1))
    return Cut(0, ((start, stop),) if start < stop else (), share)


def _groups(nheads: int, ngroups: int, rank: int, size: int) -> list[int]:
    """The groups that a rank's heads are in, one for each run of heads of the rank; a group may come more than once.

    All runs are of one length, the longest that divides both a rank's heads and a group's, as operators want it.
    """
    heads, per_group = nheads // size, nheads // ngroups
    run = math.gcd(heads, per_group)
    return [head // per_group for head in range(rank * heads, (rank + 1) * heads, run)]


def _ranges(indices: list[int], width: int) -> Iterator[tuple[int, int]]:
    """The elements of these indices, `width` each; neighbours are one range."""
    start = 0
    for i, index in enumerate(indices):
        if i + 1 == len(indices) or indices[i + 1] != index + 1:
            yield indices[start] * width, (index + 1) * width
            start = i + 1


def _shift(ranges: list[tuple[int, int]], by: int) -> list[tuple[int, int]]:
    return [(start + by, stop + by) for start, stop in ranges]


def _expect_divisible(name: str, heads: int, size: int) -> None:
    if heads % size:
        raise ValueError(f"{name} must be a multiple of the {size} ranks, got {heads}")
