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
    restart, but a long chunk of the caller's may be several of ours, which then do pass their states on.
    """

    sizes: Sizes
    asked_chunk_size: int
    carry: str

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk of the kernels' (the last before a restart may be shorter)."""
        return min(self.asked_chunk_size, MAX_CHUNK)

    @property
    def period(self) -> int:
        """Tokens between two restarts of the state."""
        return self.asked_chunk_size if self.carry == "none" else max(self.sizes.seqlen, 1)

    @property
    def chunks_per_period(self) -> int:
        """Chunks between two restarts of the state."""
        return -(-self.period // self.chunk_size)

    @property
    def nchunks(self) -> int:
        """Chunks in the sequence."""
        whole, rest = divmod(self.sizes.seqlen, self.period)
        return whole * self.chunks_per_period + -(-rest // self.chunk_size)

    @property
    def cut(self) -> tuple[int, int, int, int]:
        """What the kernels read of a plan, in the order of :data:`CUT`."""
        return (self.sizes.seqlen, self.period, self.chunks_per_period, self.nchunks)

    @property
    def independent(self) -> bool:
        """Whether no chunk needs the state of another, so that only the last chunk's state is computed at all."""
        return self.carry == "none" and self.chunks_per_period == 1
