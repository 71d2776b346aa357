"""Sums over ranks of a few tokens, by words that GPUs write into each other's memory: one short kernel for each.

    out = residual + Σ_r c_r partial_r,   c_r = 1, or √(m_r + eps) / √(mean(m) + eps)

where m_r is the mean of squares of a rank's part of the gated norm's input: each rank has normed its part by its own
m_r before the projection, and a root is one number a token, so that what all ranks share is put right after it.

Words are those of :mod:`bamba.parallel.words`. Reference: :meth:`bamba.parallel.ranks.Ranks.add`.
"""

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from bamba.parallel.words import Words, as_words, read_values
from ssd_kernels.library import device_of
from ssd_kernels.portable.activations import silu

BLOCK = 1024  # columns of a program
HEAD = 16  # words before them: the first is the program's mean of squares, and the others keep 128 bytes together


class DirectSums:
    """Memory for the sums of up to `rows` tokens, and the kernel that takes them.

    Every rank makes the same calls, each of the same shape, on one stream. Calls may be captured in a CUDA graph.

    Args:
        group: ranks whose GPUs see each other's memory.
        rows: the most tokens of a sum.
        columns: the width of what is summed.

    Raises:
        RuntimeError: GPUs that do not see each other.
    """

    def __init__(self, group: dist.ProcessGroup, *, rows: int, columns: int, device: torch.device) -> None:
        self.rank, self.size = group.rank(), group.size()
        self.rows, self.columns = rows, columns
        self._words = Words(group, channels=rows * triton.cdiv(columns, BLOCK), width=HEAD + BLOCK, device=device)

    def add(
        self, partial: Tensor, residual: Tensor, *, gated: tuple[Tensor, Tensor] | None = None, eps: float = 0.0,
        span: int = 1,
    ) -> Tensor:  # fmt: skip
        """The residual and the sum over all ranks.

        Args:
            partial: contiguous (rows, columns), this rank's.
            residual: contiguous (rows, columns), the same on all ranks.
            gated: y and z (rows, width), elements adjacent, of the norm that `partial` was made with; none by default.
            eps: the norm's.
            span: ranks that a group of the norm is spread over.

        Returns:
            (rows, columns) in the dtype of the residual: the same bits on every rank.
        """
        rows, columns = partial.shape
        out = torch.empty_like(residual)
        y, z = (None, None) if gated is None else gated
        blocks, words = triton.cdiv(columns, BLOCK), self._words
        with device_of(partial):
            add_kernel[(rows * blocks,)](
                partial, residual, out, y, z, words.addresses, words.addresses[self.rank], words.calls,
                1 if y is None else y.stride(0), 1 if z is None else z.stride(0), self.rank, columns, eps,
                WIDTH=1 if y is None else y.shape[1], SPAN=span, RANKS=self.size,
                RANKS_2=triton.next_power_of_2(self.size), CHANNELS=words.channels, BLOCKS=blocks, BLOCK=BLOCK,
                HEAD=HEAD, num_warps=4,
            )  # fmt: skip
        return out


@triton.jit(do_not_specialize=["rank", "eps"])
def add_kernel(
    partial_ptr, residual_ptr, out_ptr, y_ptr, z_ptr, everyones, own, calls_ptr, y_stride, z_stride, rank, columns, eps,
    WIDTH: tl.constexpr, SPAN: tl.constexpr, RANKS: tl.constexpr, RANKS_2: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK columns of one token. Grid: (tokens · BLOCKS,), a channel each."""
    channel = tl.program_id(0)
    row = (channel // BLOCKS).to(tl.int64)
    offs = channel % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    in_row = offs < columns
    offs_r = tl.arange(0, RANKS_2)
    call = tl.load(calls_ptr + channel) + 1
    half = (call & 1).to(tl.int64) * (RANKS * CHANNELS * (HEAD + BLOCK))
    mine = half + (rank * CHANNELS + channel).to(tl.int64) * (HEAD + BLOCK)
    partial = tl.load(partial_ptr + row * columns + offs, mask=in_row, other=0.0).to(tl.float32)
    acc = tl.load(residual_ptr + row * columns + offs, mask=in_row, other=0.0).to(tl.float32)
    square = 0.0
    if y_ptr is not None:
        square = _mean_of_squares(y_ptr + row * y_stride, z_ptr + row * z_stride, WIDTH)
    words = as_words(partial, call)
    for peer in tl.static_range(RANKS):
        there = everyones[peer].to(tl.pointer_type(tl.int64)) + mine
        tl.store(there + HEAD + tl.arange(0, BLOCK), words)
        if y_ptr is not None:
            tl.store(there, as_words(square, call))
    theirs = own.to(tl.pointer_type(tl.int64)) + half + channel.to(tl.int64) * (HEAD + BLOCK)
    squares = tl.zeros((RANKS_2,), dtype=tl.float32)
    if y_ptr is not None:
        lanes = tl.arange(0, BLOCK)
        ptrs = theirs + offs_r.to(tl.int64)[:, None] * (CHANNELS * (HEAD + BLOCK)) + lanes[None, :]
        squares = tl.sum(read_values(ptrs, (offs_r < RANKS)[:, None] & (lanes == 0)[None, :], call), 1)
    for peer in tl.static_range(RANKS):
        ptrs = theirs + peer * (CHANNELS * (HEAD + BLOCK)) + HEAD + tl.arange(0, BLOCK)
        value = read_values(ptrs, tl.arange(0, BLOCK) < BLOCK, call)
        if y_ptr is not None:
            alone = tl.sum(tl.where(offs_r == peer, squares, 0.0), 0)
            shared = tl.sum(tl.where(offs_r // SPAN == peer // SPAN, squares, 0.0), 0) / SPAN
            value *= tl.sqrt(alone + eps) * tl.rsqrt(shared + eps)
        acc += value
    tl.store(out_ptr + row * columns + offs, acc.to(out_ptr.dtype.element_ty), mask=in_row)
    tl.store(calls_ptr + channel, call)  # all of the program's threads have read it: they have met in a sum since


@triton.jit
def _mean_of_squares(y_ptr, z_ptr, WIDTH: tl.constexpr):
    """The mean of (y · silu(z))² over a row."""
    BLOCK: tl.constexpr = 2048
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        y = tl.load(y_ptr + offs, mask=offs < WIDTH, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + offs, mask=offs < WIDTH, other=0.0).to(tl.float32)
        u = y * silu(z)
        squares += u * u
    return tl.sum(squares, 0) / WIDTH
