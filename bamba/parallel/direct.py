"""Sums over ranks of a few tokens, by words that GPUs write into each other's memory: one short kernel for each.

    out = residual + Σ_r c_r partial_r,   c_r = 1, or √(m_r + eps) / √(mean(m) + eps)

where m_r is the mean of squares of a rank's part of the gated norm's input: each rank has normed its part by its own
m_r before the projection, and a root is one number a token, so that what all ranks share is put right after it.

A word is 8 bytes, a value in fp32 and the number of the call, and is written at once: whoever reads the number has the
value, and no rank asks another whether it is ready. Source: NCCL's "LL" protocol, Hu et al., "Demystifying NCCL"
(arXiv:2507.04786), section 4. Reference: :meth:`bamba.parallel.ranks.Ranks.add`.
"""

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory  # torch documents it under this name
import triton
import triton.language as tl
from torch import Tensor

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
        self.channels = rows * triton.cdiv(columns, BLOCK)
        # Two halves by turns: a rank that writes call n + 2 has read what all others wrote of call n + 1, which they
        # began after they had read all of call n.
        shape = (2, self.size, self.channels, HEAD + BLOCK)
        self._words = symmetric_memory.empty(shape, dtype=torch.int64, device=device)
        handle = symmetric_memory.rendezvous(self._words, group)
        self._words.zero_()
        self._addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=device)
        self._calls = torch.zeros(self.channels, dtype=torch.int32, device=device)
        dist.barrier(group)  # no word may come before the zeros

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
        blocks = triton.cdiv(columns, BLOCK)
        with torch.cuda.device(partial.device):
            add_kernel[(rows * blocks,)](
                partial, residual, out, y, z, self._addresses, self._calls,
                1 if y is None else y.stride(0), 1 if z is None else z.stride(0), self.rank, columns, eps,
                WIDTH=1 if y is None else y.shape[1], SPAN=span, RANKS=self.size,
                RANKS_2=triton.next_power_of_2(self.size), CHANNELS=self.channels, BLOCKS=blocks, BLOCK=BLOCK,
                HEAD=HEAD, num_warps=4,
            )  # fmt: skip
        return out


@triton.jit(do_not_specialize=["rank", "eps"])
def add_kernel(
    partial_ptr, residual_ptr, out_ptr, y_ptr, z_ptr, addresses_ptr, calls_ptr, y_stride, z_stride, rank, columns, eps,
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
    words = _words(partial, call)
    for peer in tl.static_range(RANKS):
        base = tl.load(addresses_ptr + peer).to(tl.pointer_type(tl.int64))
        tl.store(base + mine + HEAD + tl.arange(0, BLOCK), words)
    theirs = tl.load(addresses_ptr + rank).to(tl.pointer_type(tl.int64)) + half + channel.to(tl.int64) * (HEAD + BLOCK)
    squares = tl.zeros((RANKS_2,), dtype=tl.float32)
    if y_ptr is not None:
        square = _mean_of_squares(y_ptr + row * y_stride, z_ptr + row * z_stride, WIDTH)
        everyones = tl.load(addresses_ptr + offs_r, mask=offs_r < RANKS, other=0).to(tl.pointer_type(tl.int64))
        tl.store(everyones + mine, _words(tl.full((RANKS_2,), 0.0, tl.float32) + square, call), mask=offs_r < RANKS)
        squares = _values(theirs + offs_r.to(tl.int64) * (CHANNELS * (HEAD + BLOCK)), offs_r < RANKS, call)
    acc = tl.load(residual_ptr + row * columns + offs, mask=in_row, other=0.0).to(tl.float32)
    for peer in tl.static_range(RANKS):
        ptrs = theirs + peer * (CHANNELS * (HEAD + BLOCK)) + HEAD + tl.arange(0, BLOCK)
        value = _values(ptrs, tl.arange(0, BLOCK) < BLOCK, call)
        if y_ptr is not None:
            own = tl.sum(tl.where(offs_r == peer, squares, 0.0), 0)
            shared = tl.sum(tl.where(offs_r // SPAN == peer // SPAN, squares, 0.0), 0) / SPAN
            value *= tl.sqrt(own + eps) * tl.rsqrt(shared + eps)
        acc += value
    tl.store(out_ptr + row * columns + offs, acc.to(out_ptr.dtype.element_ty), mask=in_row)
    tl.store(calls_ptr + channel, call)  # all of the program's threads have read it: they have met in a sum since


@triton.jit
def _words(values, call):
    """Values in fp32 with the number of the call above them."""
    return values.to(tl.uint32, bitcast=True).to(tl.int64) | (call.to(tl.int64) << 32)


@triton.jit
def _values(ptrs, mask, call):
    """Waits until all words are of this call."""
    words = tl.load(ptrs, mask=mask, other=0, volatile=True)
    while tl.sum((mask & ((words >> 32) != call)).to(tl.int32), 0) > 0:
        words = tl.load(ptrs, mask=mask, other=0, volatile=True)
    return tl.where(mask, (words & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True), 0.0)


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
