"""How one call is cut into chunks: decided once on the host, read by every stage."""

from dataclasses import dataclass

from ssd_kernels.interface import Sizes

# A longer chunk is worked on in pieces of this many tokens: the (chunk, chunk) products grow with its square.
MAX_CHUNK = 256

# The arguments by which a kernel learns the cut. Not specialised, or every new length would compile anew.
CUT = ("seqlen", "period", "chunks_per_period", "nchunks")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cut of a (batch, seqlen) call into chunks that the kernels work on.

    With `carry="none"` the state restarts at every multiple of the caller's chunk_size. A chunk never crosses such a
    restart, but a long chunk of the caller's may be several of ours, which then do pass their states on. Where the
    states after the caller's chunks are wanted, the cut is the same, and only the restarts are not.

    Packed sequences are each cut from their own start. Where, stands in a table made on the device, with as many
    entries as sequences of any lengths could need; see :mod:`ssd_kernels.portable.chunk_table`.
    """

    sizes: Sizes
    asked_chunk_size: int
    carry: str
    every_state: bool = False  # whether the states after the caller's chunks are wanted

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk of the kernels' (the last before a restart may be shorter)."""
        return min(self.asked_chunk_size, MAX_CHUNK)

    @property
    def period(self) -> int:
        """Tokens between two places where the state restarts or is wanted."""
        return self.asked_chunk_size if self.carry == "none" or self.every_state else max(self.sizes.seqlen, 1)

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
        not_empty = min(self.sizes.nseqs, seqlen)
        periods = (seqlen + not_empty * (self.period - 1)) // self.period  # of each, one may not be whole
        return (seqlen + periods * (self.chunk_size - 1)) // self.chunk_size

    @property
    def nstates(self) -> int:
        """States that are computed of each batch row: of all chunks, or of the last of each sequence."""
        if self.last_only:
            return 1 if self.sizes.nseqs is None else self.sizes.nseqs
        return self.nchunks

    @property
    def cut(self) -> tuple[int, int, int, int]:
        """What the kernels read of a plan, in the order of :data:`CUT`."""
        return (self.sizes.seqlen, self.period, self.chunks_per_period, self.nchunks)

    @property
    def independent(self) -> bool:
        """Whether no chunk needs the state of another."""
        return self.carry == "none" and self.chunks_per_period == 1

    @property
    def last_only(self) -> bool:
        """Whether only the last chunk's state is computed at all."""
        return self.independent and not self.every_state
