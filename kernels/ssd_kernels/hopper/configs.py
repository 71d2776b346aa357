"""Every launch configuration of the Hopper kernels, pinned; none is searched for at run time.

Chosen on an H200; `docs/kernel_log.md` has the measurements.
"""

from dataclasses import dataclass
from typing import Any

import triton.language as tl

CHUNK = 64  # tokens worked on at once
PART = 64  # channels of a head that a warpgroup works on
GROUP = 4  # chunks whose decay may be scaled together

# The span of decay, in powers of two, that a chunk's and a group's factors stand: half of it above one, half below, so
# that sums of values up to 2^27 stay within fp32.
RANGE = tl.constexpr(200.0)
GROUP_RANGE = tl.constexpr(128.0)
# Of steep chunks, running sums are integers in units of 2^-STEEP_BITS, and a step is at most STEEP_STEP: 2^-192 is zero
# in fp32 whatever it multiplies, and 64 such steps stay within 32 bits.
STEEP_BITS = tl.constexpr(17)
STEEP_STEP = tl.constexpr(192.0)

NEGLIGIBLE = 40.0  # of a state that decays by more, in powers of two, nothing is left beside what is added later


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


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a sequence is shared between programs: segments, one a program; and the pieces whose states are found first."""

    segments: int = 1
    pieces_of_segment: int = 1

    @property
    def pieces(self) -> int:
        """Of all segments."""
        return self.segments * self.pieces_of_segment

    @property
    def pieces_before_last(self) -> int:
        """Those that a later segment begins after."""
        return self.pieces - self.pieces_of_segment


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How the scan is shared between warpgroups and programs.

    consumers: warpgroups of a program, each with one part of a head; they share B, C and CB.
    stages: chunks in shared memory at once.
    panels: tiles that a row of B, C or the state is cut into.
    """

    consumers: int
    stages: int
    panels: int = 1
    registers: int = 240  # of a thread of the second warpgroup
    cut: Cut = Cut()

    @property
    def kwargs(self) -> dict[str, Any]:
        """What a launch takes as keywords."""
        return {
            "CONSUMERS": self.consumers, "PANELS": self.panels, "STAGES": self.stages, "REGISTERS": self.registers,
            "num_warps": 4,
        }  # fmt: skip


SEGMENT_STATES = Config(block={"BLOCK_C": 64}, num_warps=4, num_stages=3)
PREPARE = Config(block={"BLOCK_H": 8, "BLOCK_S": 64}, num_warps=4)
