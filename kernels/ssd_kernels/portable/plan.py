"""How one call is cut: into segments that a program walks, and these into chunks. Decided once on the host."""

import math
from dataclasses import dataclass

from ssd_kernels.interface import Sizes
from ssd_kernels.portable.configs import LONG, MAX_CHUNK, segment_size

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
    def segment(self) -> int:
        """Tokens in a segment (the last of a sequence may be shorter): a multiple of the caller's chunk_size.

        Of packed sequences, in a segment of one that is not long.
        """
        return self.usual_segment if self.sizes.nseqs is not None else self.shortest_segment

    @property
    def long_segment(self) -> int:
        """Tokens in a segment of a long sequence: also a multiple of the kernels' chunk_size, where it is not a period.

        So a period need not end with it, and is the same for packed sequences that are long and those that are not.
        """
        of = self.sizes.nheads, self.sizes.headdim
        if self.independent or segment_size(*of, long=True) == segment_size(*of):
            return self.usual_segment
        return _multiple(segment_size(*of, long=True), math.lcm(self.asked_chunk_size, self.chunk_size))

    @property
    def usual_segment(self) -> int:
        """Of a sequence that is not long."""
        if self.independent:
            return self.asked_chunk_size
        return _multiple(segment_size(self.sizes.nheads, self.sizes.headdim), self.asked_chunk_size)

    @property
    def shortest_segment(self) -> int:
        """Of a sequence as long as all of the call's tokens, or of which that is the most."""
        return self.long_segment if self.sizes.seqlen > LONG else self.usual_segment

    @property
    def nsegments(self) -> int:
        """Segments of a sequence; or room for those of all packed sequences, of which an empty one has one too."""
        if self.sizes.nseqs is None:
            return -(-self.sizes.seqlen // self.segment)
        return self.sizes.nseqs + max(self.sizes.seqlen - 1, 0) // self.shortest_segment

    @property
    def several_segments(self) -> bool:
        """Whether a sequence may have more than one."""
        return self.sizes.seqlen > self.shortest_segment

    @property
    def period(self) -> int:
        """Tokens between two places where the state is wanted: a segment, or a chunk of the caller's."""
        return self.asked_chunk_size if self.every_state else self.segment

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


def _multiple(size: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit
