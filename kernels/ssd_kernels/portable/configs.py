"""Every launch configuration of the portable kernels, pinned; none is searched for at run time.

Chosen on an H200; `docs/kernel_log.md` has the measurements. For other devices, and for the operators beside the scan,
`python -m ssd_kernels tune` puts what it finds into the table of :mod:`ssd_kernels.portable.pinned`, which comes first;
attention_step, rms_norm and swiglu are not searched, and have their rules alone.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NamedTuple

import torch

from ssd_kernels.device import holds_three_stages, multiprocessors
from ssd_kernels.portable.pinned import pinned


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tile sizes of a kernel that the launcher chooses, and how Triton compiles it."""

    block: dict[str, int]
    num_warps: int
    num_stages: int = 2

    @property
    def kwargs(self) -> dict[str, Any]:
        """What a launch takes as keywords."""
        return {**self.block, "num_warps": self.num_warps, "num_stages": self.num_stages}


def tuned(kernel: str) -> Callable[[Callable[..., Config]], Callable[..., Config]]:
    """For a rule: what the table has for the kernel and the rule's dtype and sizes comes first, but for its options."""

    def wrap(rule: Callable[..., Config]) -> Callable[..., Config]:
        @wraps(rule)
        def config(*args: Any, **options: Any) -> Config:
            if any(options.values()):
                return rule(*args, **options)
            sizes = (each for each in args if not isinstance(each, torch.device))
            named = (str(each).removeprefix("torch.") if isinstance(each, torch.dtype) else int(each) for each in sizes)
            return _pinned(kernel, *named) or rule(*args, **options)

        return config

    return wrap


CHUNK_TABLE = Config(block={"BLOCK": 256}, num_warps=1)
STATE_PASSING = Config(block={"BLOCK": 1024, "AHEAD": 4}, num_warps=4)

CAUSAL_CONV1D = Config(block={"BLOCK_T": 32, "ROWS": 8, "BLOCK_C": 128}, num_warps=1)
# The search for the sequence of a program's first token keeps registers that wide rows would spill.
CAUSAL_CONV1D_PACKED = Config(block={"BLOCK_T": 64, "ROWS": 8, "BLOCK_C": 256}, num_warps=1)
CAUSAL_CONV1D_STEP = Config(block={"BLOCK_C": 128}, num_warps=4)
WEIGH = Config(block={}, num_warps=4)
SWIGLU = Config(block={"BLOCK": 1024}, num_warps=4)

MAX_CONV_WIDTH = 4  # taps
# Tokens of a chunk of the scan's: the (chunk, chunk) products grow with its square, and the decay inside one should
# stay within the range of fp32.
MAX_CHUNK = 64
WHOLE = 1 << 24  # tokens of a segment that is a whole sequence, if it has no more


def causal_conv1d_config(packed: bool = False) -> Config:
    """BLOCK_T: tokens; ROWS: of them, at once; BLOCK_C: channels, side by side in a thread."""
    return _pinned("causal_conv1d") or (CAUSAL_CONV1D_PACKED if packed else CAUSAL_CONV1D)


def causal_conv1d_step_config() -> Config:
    """BLOCK_C: channels."""
    return _pinned("causal_conv1d_step") or CAUSAL_CONV1D_STEP


def gated_rms_norm_config(width: int) -> Config:
    """BLOCK: elements of a norm held at once, a wider one is read twice; ROWS: norms a program; STAGES: in flight."""
    return _pinned("gated_rms_norm", width) or _gated_rms_norm(width)


@cache
def rms_norm_config(width: int) -> Config:
    """BLOCK: elements of a row, all of them."""
    block = _power_of_2(width)
    return Config(block={"BLOCK": block}, num_warps=min(max(block // 1024, 1), 16))


@cache
def attention_step_config(dtype: torch.dtype, max_len: int, heads: int) -> Config:
    """SPAN: tokens of a program; BLOCK_T: of them, at once.

    About as many parts as fill a GPU, four on a multiprocessor, of 64 tokens or more; one of each head where the heads
    fill it. Of the nearest power of two: were it the next, one part might be far longer than the others, and all wait
    for it.
    """
    parts = max(1, 528 // heads)
    size = math.log2(max_len / parts)
    span = 1 << max(6, math.ceil(size) if parts == 1 else round(size))
    if dtype == torch.float32:  # products in fp32 take registers
        return Config(block={"SPAN": span, "BLOCK_T": 16}, num_warps=8)
    return Config(block={"SPAN": span, "BLOCK_T": 64}, num_warps=4)


def linear_step_config(dtype: torch.dtype, batch: int, paired: bool) -> Config:
    """BLOCK_B: tokens; BLOCK_O: outputs, of each weight where `paired`; BLOCK_I: inputs at once; STAGES: ahead."""
    block_b = 1 if batch == 1 else tile_size(batch)
    return _linear_step(dtype, block_b, paired)


def ssd_step_config(headdim: int, d_state: int) -> Config:
    """BLOCK_P, BLOCK_N: the tile of a head's state; BLOCK_N covers d_state."""
    return _pinned("ssd_step", headdim, d_state) or _ssd_step(headdim, d_state)


@cache
def _gated_rms_norm(width: int) -> Config:
    block = min(_power_of_2(width), 16384)
    return Config(block={"BLOCK": block, "ROWS": 1, "STAGES": 1}, num_warps=min(max(block // 1024, 1), 16))


@tuned("linear_step")
@cache
def _linear_step(dtype: torch.dtype, block_b: int, paired: bool) -> Config:
    single = dtype == torch.float32
    if block_b == 1:
        block = {"BLOCK_B": 1, "BLOCK_O": 4 if paired else 8, "BLOCK_I": 512 if single and paired else 1024}
        return Config(block={**block, "STAGES": 2 if paired else 3}, num_warps=4)
    if single:
        return Config(block={"BLOCK_B": block_b, "BLOCK_O": 16, "BLOCK_I": 64, "STAGES": 3}, num_warps=4)
    return Config(block={"BLOCK_B": block_b, "BLOCK_O": 64, "BLOCK_I": 64, "STAGES": 5}, num_warps=4)


@cache
def _ssd_step(headdim: int, d_state: int) -> Config:
    block_n = _power_of_2(d_state)
    block_p = min(_power_of_2(headdim), max(1, 2048 // block_n))
    return Config(block={"BLOCK_P": block_p, "BLOCK_N": block_n}, num_warps=1)


def _pinned(kernel: str, *sizes: int | str) -> Config | None:
    entry = pinned(kernel, *sizes)
    return None if entry is None else Config(**entry)


class SegmentSizes(NamedTuple):
    """Tokens that one program walks: sizes[i] of a sequence of at most bounds[i]; the last of a longer one."""

    bounds: tuple[int, ...]
    sizes: tuple[int, ...]

    def of(self, seqlen: int) -> int:
        """Of a sequence of so many tokens."""
        return self.sizes[bisect_left(self.bounds, seqlen)]


@cache
def segment_sizes(nheads: int, headdim: int, d_state: int) -> SegmentSizes:
    """As many as a sequence has where its heads fill half the chip, or it is short.

    Of a sequence of more than 65536 tokens some heads have hundreds of marked chunks, which take longer, while other
    heads' multiprocessors are idle. By the model's shape and the sequence's own length alone, so that a sequence has
    the same bits whatever shares the call with it.
    """
    programs = nheads * -(-headdim // 64)
    if programs > 64:
        return SegmentSizes((65536,), (WHOLE, 16384))
    # The states between segments take memory, and shorter segments more of it.
    few = 1024 if programs * d_state <= 8192 else 2048
    return SegmentSizes((2048, 32768), (WHOLE, few, 4096))


def max_chunk(dtype: torch.dtype, d_state: int) -> int:
    """Tokens worked on at once. In fp32, whose products run without tensor cores, as many as registers allow."""
    if dtype != torch.float32:
        return MAX_CHUNK
    return MAX_CHUNK // 2 if d_state <= 128 else MAX_CHUNK // 4


def prepare_config(dtype: torch.dtype, d_state: int) -> Config:
    """BLOCK_H: heads at once; BLOCK_N: of the state, at once."""
    block_n = 16 if dtype == torch.float32 else min(tile_size(d_state), 128)
    return Config(block={"BLOCK_H": 16, "BLOCK_N": block_n}, num_warps=8, num_stages=1)


@tuned("chunk_scan")
def chunk_scan_config(
    dtype: torch.dtype, chunk: int, headdim: int, d_state: int, heads: int, device: torch.device,
    every_state: bool = False,
) -> Config:  # fmt: skip
    """BLOCK_P: channels of a program, all of one head.

    Args:
        dtype: of x.
        chunk: tokens worked on at once; the rule is the same for any, an entry of the table is not.
        headdim: channels of a head.
        d_state: width of the state.
        heads: of all segments of the call.
        device: that the scan runs on.
        every_state: whether states are written chunk by chunk.
    """
    # Tiles of 32 rows where registers would not do for 64: wide states, and states written chunk by chunk; and where
    # they waste fewer.
    wide = dtype != torch.bfloat16 or d_state > 128 or every_state or headdim % 64 != 0
    rows = min(tile_size(headdim), 32 if wide else 64)
    if dtype == torch.float32 and d_state > 128:
        rows = 16
    # In fp32 eight warps of a small state spill.
    small = d_state <= 32
    warps = 4 if (dtype == torch.bfloat16 and not small and d_state <= 128) or (dtype == torch.float32 and small) else 8
    # Two stages of a wide state take more shared memory than a small device has.
    stages = 1 if dtype == torch.float32 or (d_state > 128 and not holds_three_stages(device)) else 2
    # A program that has a multiprocessor to itself has to hide by itself how long its loads take. In fp16, for its
    # registers, every one has.
    alone = dtype == torch.float16 or heads * -(-headdim // rows) <= multiprocessors(device)
    spare = stages == 2 and d_state <= 128 and not every_state and holds_three_stages(device)
    if alone and spare:
        stages = 3
    return Config(block={"BLOCK_P": rows}, num_warps=warps, num_stages=stages)


def tile_size(size: int) -> int:
    """The side of a tile that covers `size`: a power of two, at least the 16 that a matrix product needs."""
    return max(16, _power_of_2(size))


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()
