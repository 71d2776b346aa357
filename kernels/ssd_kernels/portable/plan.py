"""How one call is cut: into segments that a program walks, and these into chunks. Decided once on the host."""

import math
from dataclasses import dataclass
from functools import cached_property

from ssd_kernels.interface import Sizes
from ssd_kernels.portable.configs import MAX_CHUNK, SegmentSizes, segment_sizes

# The arguments by which a kernel learns the cut. Not specialised, or every new length would compile anew.
CUT = ("seqlen", "period", "chunks_per_period", "nchunks")
SEGMENTS = ("segment", "nsegments")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cut of a (batch, seqlen) call into what the kernels work on.

    A segment is what one program walks from its first token to its last, the state in registers. With `carry="none"` it
    is a chunk of the caller's, and starts from zero. Otherwise it is as long as the model's shape and the sequence's
    own length say, and nothing else, so that a sequence is cut alike alone, in a batch and packed; its state comes from
    the segment before.

    A segment is cut into periods, where states are wanted, and a period into chunks of at most `max_chunk` tokens.

    Packed sequences are each cut from their own start. Where, stands in a table made on the device, with as many
    entries as sequences of any lengths could need; see :mod:`ssd_kernels.portable.chunk_table`.
    """

    sizes: Sizes
    asked_chunk_size: int
    carry: str
    every_state: bool = False  # whether the states after the caller's chunks are wanted
    max_chunk: int = MAX_CHUNK

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk of the kernels' (the last of a period may be shorter)."""
        return min(self.asked_chunk_size, self.max_chunk)

    @property
    def independent(self) -> bool:
        """Whether no segment needs the state of another."""
        return self.carry == "none"

    @property
    def period(self) -> int:
        """Tokens from where the state is wanted or restarts to the next such place; a chunk where there is none."""
        return self.asked_chunk_size if self.independent or self.every_state else self.chunk_size

    @cached_property
    def segment_sizes(self) -> SegmentSizes:
        """Tokens in a segment (the last of a sequence may be shorter), by the length of its sequence.

        Whole chunks, of the caller's and of the kernels', so that the cut is the same whether states are wanted.
        """
        if self.independent:
            return SegmentSizes((), (self.asked_chunk_size,))
        bounds, sizes = segment_sizes(self.sizes.nheads, self.sizes.headdim, self.sizes.d_state)
        unit = math.lcm(self.asked_chunk_size, self.chunk_size)
        return SegmentSizes(bounds, tuple(-(-size // unit) * unit for size in sizes))

    @property
    def segment(self) -> int:
        """Of a sequence of all of the call's tokens; where they are those of packed ones, the shortest of any."""
        sizes, seqlen = self.segment_sizes, self.sizes.seqlen
        if self.sizes.nseqs is None:
            return sizes.of(seqlen)
        return min(sizes.of(min(bound, seqlen)) for bound in (*sizes.bounds, seqlen))

    @property
    def nsegments(self) -> int:
        """Segments of a sequence; or room for those of all packed sequences, of which an empty one has one too."""
        if self.sizes.nseqs is None:
            return -(-self.sizes.seqlen // self.segment)
        return self.sizes.nseqs + max(self.sizes.seqlen - 1, 0) // self.segment

    @property
    def passes_states(self) -> bool:
        """Whether a segment may need the state of the one before, which is found before any is walked."""
        return not self.independent and self.sizes.seqlen > self.segment

    @property
    def chunks_per_period(self) -> int:
        """Chunks in a period."""
        return -(-self.period // self.chunk_size)

    @property
    def nchunks(self) -> int:
        """Chunks in a sequence; or room for the chunks of all packed sequences, as no length is known on the host."""
        seqlen = self.sizes.seqlen
        if self.sizes.nseqs is None:
            whole, rest = divmod(seqlen, self.period)
            return whole * self.chunks_per_period + -(-rest // self.chunk_size)
        # Of each sequence, and of each period, one chunk may not be whole.
        not_empty = min(self.sizes.nseqs, seqlen)
        whole = (seqlen // self.period) * (self.period % self.chunk_size > 0)
        return (seqlen + (not_empty + whole) * (self.chunk_size - 1)) // self.chunk_size

    @property
    def cut(self) -> tuple[int, int, int, int]:
        """What the kernels read of a plan, in the order of :data:`CUT`."""
        return (self.sizes.seqlen, self.period, self.chunks_per_period, self.nchunks)

    @property
    def segments(self) -> tuple[int, int]:
        """What the kernels that walk segments read besides, in the order of :data:`SEGMENTS`."""
        return (self.segment, self.nsegments)
