"""transformers' torch scan behind the SSD signature, to be measured beside ours."""

from typing import Any

from torch import Tensor
from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, carry: str = "all", **options: Any) -> Tensor:
    """The scan that transformers runs where no CUDA extension is installed; it knows `carry="all"` only."""
    if carry != "all":
        raise NotImplementedError(f"carry must be 'all' for transformers' scan, got {carry!r}")
    return mamba2_chunk_scan(x, dt, A, B, C, **options)
