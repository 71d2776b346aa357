"""Memory that the GPUs of a group write into each other's of, word by word, each told from those before it.

A word is 8 bytes, a value in fp32 and the number of the call, and is written at once: whoever reads the number has the
value, and no rank asks another whether it is ready. Source: NCCL's "LL" protocol, Hu et al., "Demystifying NCCL"
(arXiv:2507.04786), section 4.
"""

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory  # torch documents it under this name
import triton
import triton.language as tl


class Words:
    """Words that each rank of a group has from all, in channels: a channel's programs, one a rank, hear each other.

    Every rank makes the same calls on one stream; they may be captured in a CUDA graph.

    Args:
        group: ranks whose GPUs see each other's memory.
        channels: the most programs of a call.
        width: words of a channel.

    Attributes:
        addresses: of each rank's (2, ranks, channels, width) words, as kernels take them: nothing to be loaded.
        calls: (channels,), the calls that each channel has heard.

    Raises:
        RuntimeError: GPUs that do not see each other.
    """

    def __init__(self, group: dist.ProcessGroup, *, channels: int, width: int, device: torch.device) -> None:
        self.channels, self.width = channels, width
        # Two halves by turns: a rank that writes call n + 2 has read what all others wrote of call n + 1, which they
        # began after they had read all of call n.
        self._words = symmetric_memory.empty((2, group.size(), channels, width), dtype=torch.int64, device=device)
        handle = symmetric_memory.rendezvous(self._words, group)
        self._words.zero_()
        self.addresses = tuple(handle.buffer_ptrs)
        self.calls = torch.zeros(channels, dtype=torch.int32, device=device)
        dist.barrier(group)  # no word may come before the zeros


@triton.jit
def as_words(values, call):
    """Values in fp32 with the number of the call above them."""
    return values.to(tl.uint32, bitcast=True).to(tl.int64) | (call.to(tl.int64) << 32)


@triton.jit
def read_values(ptrs, mask, call):
    """Waits until all words are of this call; zeros where masked.

    The tile must have words for all threads, two of each at least: threads that read the same word might see it differ,
    and leave the loop at different times.
    """
    words = tl.load(ptrs, mask=mask, other=0, volatile=True)
    while tl.sum((mask & ((words >> 32) != call)).to(tl.int32)) > 0:
        words = tl.load(ptrs, mask=mask, other=0, volatile=True)
    return tl.where(mask, (words & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True), 0.0)
