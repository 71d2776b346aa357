"""What a Bamba model remembers between calls: allocated once, written in place, passed explicitly."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bamba.config import BambaConfig


class SSMCache(NamedTuple):
    """The memory of one Mamba-2 layer; its size does not depend on the number of tokens."""

    conv_window: Tensor  # (batch, conv_dim, d_conv - 1), the convolution's last inputs
    state: Tensor  # (batch, nheads, headdim, d_state), fp32 (fp64 for an fp64 model)

    @classmethod
    def empty(
        cls, config: BambaConfig, batch: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> "SSMCache":
        """That of sequences without tokens."""
        window = (batch, config.ssm_conv_dim, config.ssm_d_conv - 1)
        state = (batch, config.ssm_nheads, config.ssm_headdim, config.ssm_d_state)
        return cls(
            conv_window=torch.zeros(window, device=device, dtype=dtype),
            state=torch.zeros(state, device=device, dtype=torch.promote_types(dtype, torch.float32)),
        )


class AttentionCache(NamedTuple):
    """The memory of one attention layer."""

    keys: Tensor  # (batch, nheads_kv, max_len, headdim), rotated; token t of a sequence is at t
    values: Tensor  # as keys


LayerCache = SSMCache | AttentionCache


class Cache:
    """The memory of a whole model for `batch` sequences of up to `max_len` tokens each.

    A call to the model appends its tokens to what the cache holds, as many as there is room for; sequences may be of
    different lengths.

    Args:
        config: the model's configuration.
        batch: sequences.
        max_len: the most tokens a sequence can reach, prompt included.
        device: where the tensors live; the default device by default.
        dtype: the model's dtype; the default dtype by default.

    Attributes:
        layers: the memory of each layer.
        lengths: (batch,) int64, the tokens held of each sequence, on the device, so that a decode step never waits for
            the host.
        host_lengths: the same counts on the host. A step that is captured in a CUDA graph and replayed counts in
            `lengths` alone; whoever replays it sets `length` before the next ordinary call.

    Raises:
        ValueError: batch or max_len below 1.
    """

    def __init__(
        self,
        config: BambaConfig,
        *,
        batch: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("batch", batch), ("max_len", max_len)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.batch = batch
        self.max_len = max_len
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.host_lengths = [0] * batch
        dtype = dtype or torch.get_default_dtype()
        kv_shape = (batch, config.attn_nheads_kv, max_len, config.attn_headdim)
        # Zeros, not empty: attention reads all of max_len and masks, and a masked NaN would still be a NaN.
        self.layers: list[LayerCache] = [
            AttentionCache(
                keys=torch.zeros(kv_shape, device=device, dtype=dtype),
                values=torch.zeros(kv_shape, device=device, dtype=dtype),
            )
            if layer in config.attn_layers
            else SSMCache.empty(config, batch, device, dtype)
            for layer in range(config.num_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence held, as counted on the host; setting it says so of every sequence."""
        return max(self.host_lengths)

    @length.setter
    def length(self, length: int) -> None:
        self.host_lengths = [length] * self.batch

    @property
    def position(self) -> Tensor:
        """Where the next token of each sequence goes: `lengths`, the tensor itself."""
        return self.lengths

    def expect_room(self, counts: Sequence[int]) -> None:
        """Check that `counts` more tokens, one count a sequence, can be taken.

        Raises:
            ValueError: another number of sequences than the cache was made for, or more tokens than fit.
        """
        if len(counts) != self.batch:
            raise ValueError(f"cache: made for a batch of {self.batch}, got a batch of {len(counts)}")
        for row, (held, count) in enumerate(zip(self.host_lengths, counts, strict=True)):
            if held + count > self.max_len:
                raise ValueError(
                    f"cache: row {row} holds {held} of at most max_len {self.max_len} tokens, no room for {count} more"
                )

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that a call has written, one count a sequence."""
        equal = min(counts) == max(counts)
        self.lengths.add_(counts[0] if equal else torch.tensor(counts, device=self.lengths.device))
        self.count(counts)

    def count(self, counts: Sequence[int]) -> None:
        """Count tokens on the host, of a call that has counted them in `lengths`."""
        self.host_lengths = [held + count for held, count in zip(self.host_lengths, counts, strict=True)]

    def stay(self) -> None:
        """Tell torch.compile that the tensors stay where they are: a CUDA graph of its may then write to them."""
        for tensor in (self.lengths, *(tensor for layer in self.layers for tensor in layer)):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def reset(self) -> None:
        """Forget all tokens and keep the memory."""
        self.length = 0
        self.lengths.zero_()
        for layer in self.layers:
            for tensor in layer:
                tensor.zero_()
