"""Every launch configuration of the Hopper kernels, and the rule that picks one; none is searched for at run time.

Chosen on an H200; `docs/kernel_log.md` has the measurements. An entry of `ssd_kernels/portable/pinned.json` comes
first: of "hopper_prepare", or of "hopper_scan" for sizes as :func:`size_class` gives them.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import triton.language as tl

from ssd_kernels.interface import Sizes
from ssd_kernels.portable import tiles
from ssd_kernels.portable.pinned import Entry, pinned

CHUNK = 64  # tokens worked on at once
PART = 64  # channels of a head that a warpgroup works on
WIDTH = 128  # columns of the state that a warpgroup carries at most; of wider states, two carry a half each
GROUP = 4  # chunks whose decay may be scaled together

# The span of decay, in powers of two, that a chunk's and a group's factors stand: half of it above one, half below, so
# that sums of values up to 2^27 stay within fp32.
RANGE = tl.constexpr(200.0)
GROUP_RANGE = 128.0
# Of steep chunks, running sums are integers in units of STEEP_UNIT, and a step is at most STEEP_STEP: 2^-192 is zero in
# fp32 whatever it multiplies, and 64 such steps stay within 32 bits.
STEEP_UNIT = tl.constexpr(2.0**-17)
STEEP_STEP = tl.constexpr(192.0)

# Whether the scan is put on the device while the preparation still runs, and waits there for its end. Before that it
# only loads what the call was given: the preparation, an ordinary launch, has waited for whatever wrote that. It writes
# nothing before, every program of it waits, and what is launched after it waits for all of it: so no workspace that the
# allocator hands to the next call is read late. Where states of segments are found in between, by an ordinary launch
# too, the scan waits for that one, which has waited for the preparation.
EARLY_START = True

# The fewest dimensions in which TMA sees x, B, C and y, where they allow it: 2, 3 or 4.
TILE_RANK = 3

NEGLIGIBLE = tiles.NEGLIGIBLE


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tile sizes of a kernel in plain Triton, and how Triton compiles it."""

    block: dict[str, int]
    num_warps: int
    num_stages: int = 2

    @property
    def kwargs(self) -> dict[str, Any]:
        """What a launch takes as keywords."""
        return {**self.block, "num_warps": self.num_warps, "num_stages": self.num_stages}


PREPARE = Config(block={"BLOCK_H": 16}, num_warps=4)
PREPARE_REGISTERS = 168  # of a thread at most: so an SM holds three programs of four warps
SEGMENT_STATES = Config(block={"BLOCK_C": 64}, num_warps=4, num_stages=3)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a sequence is shared between programs: segments, one a program; and pieces, whose states are found first."""

    segments: int = 1
    pieces_of_segment: int = 1

    @property
    def pieces(self) -> int:
        """Of all segments."""
        return self.segments * self.pieces_of_segment

    @property
    def pieces_before_last(self) -> int:
        """Those that the state of a later segment needs."""
        return self.pieces - self.pieces_of_segment


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How the scan is shared between programs and warpgroups.

    consumers: parts of heads that a program works on, sharing B, C and CB: each by one warpgroup, or two if d_state is
        beyond WIDTH.
    stages: chunks in shared memory at once.
    """

    consumers: int
    stages: int
    registers: int = 240  # of a thread of the second such warpgroup
    cut: Cut = Cut()

    @property
    def kwargs(self) -> dict[str, Any]:
        """What a launch takes as keywords."""
        return {
            "CONSUMERS": self.consumers, "STAGES": self.stages, "REGISTERS": self.registers, "num_warps": 4,
        }  # fmt: skip


# (d_state, consumers): as many stages as shared memory holds; at least two.
_STAGES = {(64, 1): 5, (64, 2): 4, (128, 1): 4, (128, 2): 3, (256, 1): 2}
D_STATES = tuple(sorted({d_state for d_state, _ in _STAGES}))

# Microseconds on an H200. A program of the scan: a chunk, by d_state and consumers; filling the stages. The states
# before segments: their launch, and what of it does not overlap; a chunk of the longest program, which waits for each.
_CHUNK_TIME = {(64, 1): 0.86, (64, 2): 1.42, (128, 1): 0.80, (128, 2): 1.42, (256, 1): 1.4}
_FILL_TIME, _STATE_CHUNK_TIME = 3.0, 1.0
_STATES_TIME = {64: 10.0, 128: 10.0, 256: 4.0}
# Chunks before a token that matter to it even in the slowest heads of a freshly initialised layer.
_REMEMBERED = 48
_WORTHWHILE = 0.97  # more segments have to gain three hundredths
# Several pieces a segment where each has so many chunks. The rule takes as many as it may: fewer are as fast where all
# heads forget soon, and far slower where one does not.
_MAX_SEGMENTS, _PIECES, _CHUNKS_OF_A_PIECE = 16, (1, 2, 4), 16


def prepare_config() -> Config:
    """The configuration of the preparation, whatever the call."""
    entry = pinned("hopper_prepare")
    return PREPARE if entry is None else Config(**entry)


def scan_config(sizes: Sizes, period: int | None, sms: int) -> ScanConfig:
    """The configuration for a call on a GPU of `sms` multiprocessors; `period`: chunks from restart to restart.

    The one that the table has; or the one that is estimated to be fastest, by constants measured once. The same sizes
    always give the same.
    """
    entry = pinned("hopper_scan", *size_class(sizes, period))
    return _fastest(sizes, period, sms) if entry is None else of_entry(entry)


def size_class(sizes: Sizes, period: int | None) -> tuple[int, ...]:
    """What decides a configuration: sequences, chunks of one, nheads, headdim, ngroups, d_state; period or 0."""
    heads = (sizes.nheads, sizes.headdim, sizes.ngroups, sizes.d_state)
    return (sizes.state_shape[0], _chunks(sizes), *heads, period or 0)


def of_entry(entry: Entry) -> ScanConfig:
    """The configuration that an entry of the table stands for."""
    block = entry["block"]
    cut = Cut(segments=block["SEGMENTS"], pieces_of_segment=block["PIECES"])
    return ScanConfig(consumers=block["CONSUMERS"], stages=entry["num_stages"], cut=cut)


def entry_of(config: ScanConfig) -> Entry:
    """As the table has it; the opposite of :func:`of_entry`."""
    cut = config.cut
    block = {"CONSUMERS": config.consumers, "SEGMENTS": cut.segments, "PIECES": cut.pieces_of_segment}
    return {"block": block, "num_warps": config.kwargs["num_warps"], "num_stages": config.stages}


def scan_candidates(sizes: Sizes, period: int | None) -> list[Entry]:
    """The configurations that a call may take, for a search: whatever the rule may choose is among them."""
    return [
        entry_of(dataclasses.replace(config, stages=config.stages - fewer))
        for config in _choices(sizes, period)
        for fewer in (0, 1)
        if config.stages - fewer > 1  # a stage is given back when the next is begun
    ]


def prepare_candidates() -> list[Entry]:
    """As :func:`scan_candidates`, of the preparation."""
    # Four warps, as the products are a warpgroup's.
    return [{**vars(PREPARE), "block": {**PREPARE.block, "BLOCK_H": heads}} for heads in (4, 8, 16, 32)]


@functools.lru_cache(maxsize=1024)
def _fastest(sizes: Sizes, period: int | None, sms: int) -> ScanConfig:
    """By the estimate; of those almost as fast, of the fewest segments."""
    choices = [config for config in _choices(sizes, period) if _at_once(sizes, period, sms, config)]
    most = {config.cut.segments: config.cut.pieces_of_segment for config in choices}  # of each, what comes last
    times = [
        (_estimate(sizes, period, sms, config), config)
        for config in choices
        if config.cut.pieces_of_segment == most[config.cut.segments]
    ]
    enough = min(time for time, _ in times) / _WORTHWHILE
    _, found = min((each for each in times if each[0] <= enough), key=lambda each: (each[1].cut.segments, each[0]))
    return found


def _choices(sizes: Sizes, period: int | None) -> list[ScanConfig]:
    """Whatever may be taken, by the rule or by a search, with as many stages as shared memory holds."""
    tiles = [
        (consumers, _STAGES[sizes.d_state, consumers])
        for consumers in (2, 1)
        if (sizes.d_state, consumers) in _STAGES and _parts(sizes) // sizes.ngroups % consumers == 0
    ]
    cuts = [
        Cut(segments=segments, pieces_of_segment=pieces)
        for segments in range(1, _MAX_SEGMENTS + 1)
        for pieces in _PIECES
        if _may_cut(sizes, period, segments, pieces)
    ]
    return [ScanConfig(consumers=consumers, stages=stages, cut=cut) for consumers, stages in tiles for cut in cuts]


def _at_once(sizes: Sizes, period: int | None, sms: int, config: ScanConfig) -> bool:
    """Whether the GPU holds all programs of segments that need states at once; no other such cut has been measured."""
    return config.cut.segments == 1 or period is not None or _turns(sizes, sms, config) == 1


def _turns(sizes: Sizes, sms: int, config: ScanConfig) -> int:
    """Programs that an SM takes one after another."""
    return -(-sizes.state_shape[0] * _parts(sizes) * config.cut.segments // (config.consumers * sms))


def _estimate(sizes: Sizes, period: int | None, sms: int, config: ScanConfig) -> float:
    """Beside the preparation, which is the same whatever the cut."""
    cut, step = config.cut, period or GROUP
    piece = -(-_chunks(sizes) // (cut.pieces * step)) * step  # as the kernels round it
    chunks = min(piece * cut.pieces_of_segment, _chunks(sizes))
    time = _turns(sizes, sms, config) * (_FILL_TIME + chunks * _CHUNK_TIME[sizes.d_state, config.consumers])
    if cut.segments > 1 and period is None:
        time += _STATES_TIME[sizes.d_state] + _STATE_CHUNK_TIME * min(piece, _REMEMBERED)
    return time


def _may_cut(sizes: Sizes, period: int | None, segments: int, pieces: int) -> bool:
    """Whether segments and their pieces are not too short; where the state restarts, segments are of whole periods."""
    chunks = _chunks(sizes)
    if pieces > 1:
        return segments > 1 and period is None and segments * pieces * _CHUNKS_OF_A_PIECE <= chunks
    return segments == 1 or segments * (2 * GROUP if period is None else period) <= chunks


def _parts(sizes: Sizes) -> int:
    return sizes.nheads * sizes.headdim // PART


def _chunks(sizes: Sizes) -> int:
    """Of a sequence; of packed ones, on average."""
    return -(-sizes.seqlen // (CHUNK * max(1, sizes.nseqs or 1)))
