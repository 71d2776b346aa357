"""Sequence parallel: a long prompt among several devices, each with the whole model and its part of the tokens.

What a token costs in projections and scan is paid by its rank alone. Of the others it needs the last inputs of the
convolution, the state that enters its part, and in attention all earlier keys and values. All of it comes from the rank
before, and no rank waits for a later one: a later rank is behind by a part of a layer, and all work at once. With
independent chunks a part begins with one, and no state is told; the convolution and attention still see earlier tokens.
Sources: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 8.2; Korthikanti et al. (arXiv:2205.05198).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from bamba.cache import Cache
from bamba.model import Bamba
from bamba.packing import shape_of
from bamba.parallel.part import Part, cut_sequence
from bamba.positions import locate


@torch.inference_mode()
def prefill(
    model: Bamba, token_ids: Tensor, cache: Cache | None = None, *, mesh: DeviceMesh, own_logits: bool = False
) -> Tensor:
    """The logits after prompts without padding, whose tokens are computed by all ranks together.

    Afterwards the cache holds the whole prompts on every rank, and each may decode on its own.

    Args:
        model: whole, with the same weights on every rank.
        token_ids: (batch, seqlen), int64 or int32: all of them, the same on every rank.
        cache: empty; written to.
        mesh: of one dimension.
        own_logits: return the logits of this rank's tokens instead; :func:`part_of` says which.

    Returns:
        (batch, 1, vocab_size), after the last token, the same on every rank; or (batch, own tokens, vocab_size).

    Raises:
        ValueError: a mesh of several dimensions, a model that is cut, a cache that is not empty or too small, fewer
            tokens than ranks, or with independent chunks fewer of these.
        TypeError: token ids that are not integers.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}")
    model.expect_whole()
    batch, seqlen = shape_of(token_ids)
    part = part_of(model, seqlen, mesh)
    if cache is not None:
        if cache.length > 0:
            raise ValueError(f"cache must be empty, got {cache.length} tokens")
        cache.expect_room((seqlen,) * batch)
    t = torch.arange(part.start, part.stop, device=token_ids.device)
    rows = torch.arange(batch, device=token_ids.device)[:, None]
    held = None if part.start == 0 else t[:1].expand(batch)
    positions = locate(t, model.config, model.dtype)._replace(rows=rows, held=held, shard=part)
    hidden = model.model(token_ids[:, part.start : part.stop], positions, None if cache is None else cache.layers)
    part.share(() if cache is None else cache.layers)
    if cache is not None:
        cache.advance((seqlen,) * batch)
    if own_logits:
        return model.logits(hidden)
    # The last hidden state, not its logits: the rank that has it is the last, and the others would wait for it anyway.
    last = hidden[:, -1:].contiguous()
    dist.broadcast(last, group_src=mesh.size() - 1, group=part.group)
    return model.logits(last)


def part_of(model: Bamba, seqlen: int, mesh: DeviceMesh) -> Part:
    """This rank's part of a prompt of `seqlen` tokens; parts cost about the same arithmetic.

    Later tokens attend to more: so later parts are shorter. With independent chunks, parts end where chunks do.

    Raises:
        ValueError: fewer tokens, or independent chunks, than ranks.
    """
    config = model.config
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    # Of q k and of p v, for each earlier token.
    attended = 2 * len(config.attn_layers) * config.attn_nheads * config.attn_headdim
    unit = config.ssm_chunk_size if model.carry == "none" else 1
    bounds = cut_sequence(seqlen, mesh.size(), unit=unit, ratio=attended / weights)
    return Part(group=mesh.get_group(), bounds=bounds)
