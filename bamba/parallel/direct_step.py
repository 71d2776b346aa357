"""A projection of one token whose inputs are among ranks, with the sum over them: one kernel, weights read once.

    out = residual + Σ_r s_r (v_r weight_rᵀ),   v = norm_weight · u or u,  u = x · silu(gate) or x,
    s_r = 1, or 1 / √(mean(u²) + eps), the mean over all that the norm of rank r spans

Each program writes its outputs, and the squares of its inputs, into every rank's memory and waits for those of the same
outputs from all others: the root joins after the sums. Reference: :meth:`bamba.parallel.ranks.Ranks.add` after
:class:`ssd_kernels.linear_interface.LinearStep`.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from bamba.parallel.words import Words, as_words, read_values
from ssd_kernels.library import device_of
from ssd_kernels.portable.configs import linear_step_config
from ssd_kernels.portable.linear_step import products

LEAST = 4  # outputs of a program: so many that there are words for all
SLOT = 32  # words of a program: its outputs, and last its mean of squares


class DirectStep:
    """Memory for the sums, and the kernel that projects and adds.

    Every rank makes the same calls, each of the same shape, on one stream. Calls may be captured in a CUDA graph.

    Args:
        group: ranks whose GPUs see each other's memory.
        columns: the outputs of a projection.

    Raises:
        RuntimeError: GPUs that do not see each other.
    """

    def __init__(self, group: dist.ProcessGroup, *, columns: int, device: torch.device) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._words = Words(group, channels=triton.cdiv(columns, LEAST), width=SLOT, device=device)

    def project(
        self, x: Tensor, weight: Tensor, residual: Tensor, *, gate: Tensor | None = None,
        norm_weight: Tensor | None = None, eps: float = 0.0, span: int = 1,
    ) -> Tensor:  # fmt: skip
        """The residual and the sum of all ranks' projections.

        Args:
            x: (1, features), this rank's.
            weight: (columns, features), this rank's.
            residual: (1, columns), the same on all ranks.
            gate: as x; none by default.
            norm_weight: (features,); none by default.
            eps: the norm's.
            span: ranks that a group of the norm is spread over.

        Returns:
            (1, columns) in the dtype of the residual: the same bits on every rank.

        Raises:
            ValueError: elements of a row that are not adjacent.
            NotImplementedError: a configuration whose tile does not fit a channel.
        """
        given = {"x": x, "weight": weight, "residual": residual, "gate": gate, "norm_weight": norm_weight}
        for name, tensor in given.items():
            if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
                raise ValueError(f"{name}: elements of a row must be adjacent, got a stride of {tensor.stride(-1)}")
        config = linear_step_config(x.dtype, 1, False)
        if not LEAST <= config.block["BLOCK_O"] < SLOT:
            raise NotImplementedError(f"BLOCK_O must be in [{LEAST}, {SLOT}), got {config.block['BLOCK_O']}")
        columns, features = weight.shape
        out = torch.empty_like(residual)
        words, ranks_2 = self._words, triton.next_power_of_2(self.size)
        with device_of(x):
            project_kernel[(triton.cdiv(columns, config.block["BLOCK_O"]),)](
                x, gate, norm_weight, weight, residual, out, words.addresses, words.addresses[self.rank], words.calls,
                weight.stride(0), self.rank, columns, eps,
                FEATURES=features, SPAN=span, RANKS=self.size, RANKS_2=ranks_2, CHANNELS=words.channels, SLOT=SLOT,
                LANES=max(SLOT, 64 * config.num_warps // ranks_2), **config.kwargs,
            )  # fmt: skip
        return out


@triton.jit(do_not_specialize=["rank", "eps"])
def project_kernel(
    x_ptr, gate_ptr, norm_ptr, weight_ptr, residual_ptr, out_ptr, everyones, own, calls_ptr, weight_stride,
    rank, columns, eps, FEATURES: tl.constexpr, SPAN: tl.constexpr, RANKS: tl.constexpr, RANKS_2: tl.constexpr,
    CHANNELS: tl.constexpr, SLOT: tl.constexpr, LANES: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_O outputs. Grid: (blocks of outputs,), a channel each."""
    channel = tl.program_id(0)
    offs_o = channel * BLOCK_O + tl.arange(0, BLOCK_O)
    in_o = offs_o < columns
    weight_rows = weight_ptr + offs_o.to(tl.int64)[:, None] * weight_stride
    # All that a program needs to know when it has its sums, asked for before them.
    call = tl.load(calls_ptr + channel) + 1
    lanes = tl.arange(0, LANES)
    places = channel * BLOCK_O + lanes
    in_out = (lanes < BLOCK_O) & (places < columns)
    residual = tl.load(residual_ptr + places, mask=in_out, other=0.0).to(tl.float32)
    acc, _, squares = products(
        x_ptr, gate_ptr, norm_ptr, ((1, 1), (1, 1), (1,)), weight_rows, None, in_o, tl.arange(0, 1),
        tl.full((1,), True, tl.int1), FEATURES, BLOCK_B, BLOCK_O, BLOCK_I, STAGES,
    )  # fmt: skip
    half = (call & 1).to(tl.int64) * (RANKS * CHANNELS * SLOT) + channel.to(tl.int64) * SLOT
    mine = half + rank.to(tl.int64) * (CHANNELS * SLOT)
    outputs = as_words(tl.sum(acc, 1), call)
    for peer in tl.static_range(RANKS):
        there = everyones[peer].to(tl.pointer_type(tl.int64)) + mine
        tl.store(there + tl.arange(0, BLOCK_O), outputs)
        if norm_ptr is not None:
            tl.store(there + SLOT - 1, as_words(tl.sum(tl.sum(squares, 1), 0) / FEATURES, call))
    offs_r = tl.arange(0, RANKS_2)
    is_sent = lanes < BLOCK_O
    if norm_ptr is not None:
        is_sent = is_sent | (lanes == SLOT - 1)
    ptrs = own.to(tl.pointer_type(tl.int64)) + half + offs_r.to(tl.int64)[:, None] * (CHANNELS * SLOT) + lanes[None, :]
    values = read_values(ptrs, (offs_r < RANKS)[:, None] & is_sent[None, :], call)  # (R, SLOT)
    if norm_ptr is not None:
        means = tl.sum(tl.where(lanes[None, :] == SLOT - 1, values, 0.0), 1)  # (R,)
        is_shared = (offs_r[:, None] // SPAN) == (offs_r[None, :] // SPAN)
        shared = tl.sum(tl.where(is_shared, means[None, :], 0.0), 1)
        values *= tl.where(offs_r < RANKS, tl.rsqrt(shared / SPAN + eps), 0.0)[:, None]
    out = residual + tl.sum(values, 0)
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=in_out)
    tl.store(calls_ptr + channel, call)
