"""What the ranks of a tensor-parallel model tell each other: sums of projections, the norm's sums, words."""

import warnings
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bamba.operators import Operators

if TYPE_CHECKING:
    from bamba.parallel.direct import DirectSums
    from bamba.parallel.direct_step import DirectStep

FEW = 64  # tokens, times the other ranks: beyond, what is written word by word takes longer than NCCL's sum


class Ranks:
    """The processes among which the heads of a model are, and the collectives of its forward.

    Sums of few tokens are taken directly where the GPUs write into each other's memory, and else by NCCL, with a
    warning: it takes three times as long.

    Two sums a layer, (tokens, d_model) each in the model's dtype, one of tokens where the gated norm spans ranks, one
    for the embedding, and the logits once.

    Args:
        group: the processes; every one of them makes the same calls.
        vocab_size: of the whole model.
        norm_groups: of the gated norm, of the whole model.
        d_model: the width of what is added.
    """

    def __init__(self, group: dist.ProcessGroup, *, vocab_size: int, norm_groups: int, d_model: int) -> None:
        self.group = group
        self.rank, self.size = group.rank(), group.size()
        self.vocab_size = vocab_size
        self.norm_span = max(1, self.size // norm_groups)  # ranks that one group of the norm is spread over
        self.d_model = d_model
        self._direct: tuple[DirectSums, DirectStep] | None = None
        self._has_tried = False

    def among(self, operators: Operators) -> Operators:
        """The operators of a rank's part of the model."""
        self.own_norm = operators.gated_rms_norm
        return operators._replace(
            ranks=self, gated_rms_norm=self.own_norm if self.norm_span == 1 else self.spanning_norm
        )

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """The embeddings (…, d_model) of token ids (…), of which each rank holds some, weight (words, d_model)."""
        local_ids = token_ids - self.rank * weight.shape[0]
        foreign = (local_ids < 0) | (local_ids >= weight.shape[0])
        found = F.embedding(local_ids.masked_fill(foreign, 0), weight).masked_fill(foreign[..., None], 0.0)
        return self._sum(found)

    def add(
        self, partial: Tensor, residual: Tensor, *, gated: tuple[Tensor, Tensor] | None = None, eps: float = 0.0
    ) -> Tensor:
        """The residual, and what all ranks' products add up to; `partial` may be overwritten.

        Args:
            partial: (…, d_model), this rank's product.
            residual: as partial, the same on all ranks.
            gated: y and z (…, width), where the product is of a gated norm of them, each rank's by itself, though it
                spans ranks; only where :meth:`adds_directly`.
            eps: of that norm.

        Returns:
            As residual; the same bits on every rank.
        """
        if not self.adds_directly(partial):
            return residual + self._sum(partial)
        rows = partial.flatten(0, -2)
        spans = None if gated is None or self.norm_span == 1 else (gated[0].flatten(0, -2), gated[1].flatten(0, -2))
        sums, _ = cast("tuple[DirectSums, DirectStep]", self._direct)
        out = sums.add(rows, residual.flatten(0, -2), gated=spans, eps=eps, span=self.norm_span)
        return out.view(residual.shape)

    def project(
        self, x: Tensor, weight: Tensor, residual: Tensor, *, gate: Tensor | None = None,
        norm_weight: Tensor | None = None, eps: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """The residual, and what all ranks' products of one token add up to; only where :meth:`adds_directly`.

        Args:
            x: (…, features), of one token, this rank's; elements adjacent.
            weight: (d_model, features).
            residual: (…, d_model), the same on all ranks.
            gate: as x; none by default.
            norm_weight: (features,), of a norm of x, or of the gated x, that spans ranks; none by default.
            eps: of that norm.

        Returns:
            As residual; the same bits on every rank.
        """
        _, step = cast("tuple[DirectSums, DirectStep]", self._direct)
        out = step.project(
            x.flatten(0, -2), weight, residual.flatten(0, -2), gate=None if gate is None else gate.flatten(0, -2),
            norm_weight=norm_weight, eps=eps, span=self.norm_span,
        )  # fmt: skip
        return out.view(residual.shape)

    def adds_directly(self, x: Tensor) -> bool:
        """Whether :meth:`add` takes a product of x (…, width) as soon as the ranks have written it."""
        is_few = x.numel() // x.shape[-1] * max(1, self.size - 1) <= FEW
        return is_few and x.is_cuda and x.dtype != torch.float64 and self.connect(x.device) is not None

    def connect(self, device: torch.device) -> "tuple[DirectSums, DirectStep] | None":
        """The direct sums, which all ranks have or none; tried once."""
        if self._has_tried:
            return self._direct
        from bamba.parallel import direct, direct_step  # Triton, which a CPU does without

        self._has_tried = True
        reason = "another rank's do not"
        try:
            self._direct = (
                direct.DirectSums(self.group, rows=FEW // max(1, self.size - 1), columns=self.d_model, device=device),
                direct_step.DirectStep(self.group, columns=self.d_model, device=device),
            )
        except RuntimeError as error:
            reason = str(error)
        have_all = torch.tensor(self._direct is not None, dtype=torch.int32, device=device)
        dist.all_reduce(have_all, dist.ReduceOp.MIN, group=self.group)
        if not have_all.item():
            self._direct = None
            warnings.warn(f"ranks add by NCCL: GPUs must see each other's memory, got: {reason}", stacklevel=2)
        return self._direct

    def words(self, logits: Tensor) -> Tensor:
        """The logits (…, vocab_size) of all words, of which each rank has some."""
        return gather(logits, self.group).movedim(0, -2).flatten(-2)[..., : self.vocab_size]

    def spanning_norm(self, y: Tensor, z: Tensor, weight: Tensor, *, eps: float, groups: int = 1) -> Tensor:
        """The part (…, width) of a gated norm that spans `norm_span` ranks; see :class:`ssd_kernels.norm.GatedRMSNorm`.

        Raises:
            ValueError: several groups: then none spans ranks.
        """
        if groups != 1:
            raise ValueError(f"groups must be 1 where a group spans ranks, got {groups}")
        dtype = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(dtype) * F.silu(z.to(dtype))
        squares = gated.square().mean(-1, keepdim=True)
        first = self.rank // self.norm_span * self.norm_span
        squares = gather(squares, self.group)[first : first + self.norm_span].mean(0)
        return (gated * torch.rsqrt(squares + eps) * weight.to(dtype)).to(y.dtype)

    def _sum(self, partial: Tensor) -> Tensor:
        if partial.requires_grad:
            raise NotImplementedError("tensor parallel: gradients are not supported, got weights that ask for one")
        dist.all_reduce(partial, group=self.group)
        return partial


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensors of all ranks, (ranks, …), all of one shape."""
    gathered = x.new_empty(group.size(), *x.shape)
    dist.all_gather(list(gathered.unbind()), x.contiguous(), group=group)
    return gathered
