"""What a Bamba model remembers between calls: allocated once, written in place, passed explicitly."""

from typing import NamedTuple

import torch
from torch import Tensor

from bamba.config import BambaConfig


class SSMCache(NamedTuple):
    """The memory of one Mamba-2 layer; its size does not depend on the number of tokens."""

    conv_window: Tensor  # (batch, conv_dim, d_conv - 1), the convolution's last inputs
    state: Tensor  # (batch, nheads, headdim, d_state), fp32 (fp64 for an fp64 model)


class AttentionCache(NamedTuple):
    """The memory of one attention layer."""

    keys: Tensor  # (batch, nheads_kv, max_len, headdim), rotated
    values: Tensor  # as keys


LayerCache = SSMCache | AttentionCache


class Cache:
    """The memory of a whole model for `batch` sequences of up to `max_len` tokens each.

    One call to the model fills an empty cache with any number of tokens; every later call appends one token.

    Args:
        config: the model's configuration.
        batch: sequences, all of the same length.
        max_len: the most tokens a sequence can reach, prompt included.
        device: where the tensors live; the default device by default.
        dtype: the model's dtype; the default dtype by default.

    Attributes:
        layers: the memory of each layer.
        length: tokens held so far, counted on the host.
        position: (1,) int64, the same count on the device, so that a decode step never waits for the host.

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
        self.length = 0
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        dtype = dtype or torch.get_default_dtype()
        state_dtype = torch.promote_types(dtype, torch.float32)
        window_shape = (batch, config.ssm_conv_dim, config.ssm_d_conv - 1)
        state_shape = (batch, config.ssm_nheads, config.ssm_headdim, config.ssm_d_state)
        kv_shape = (batch, config.attn_nheads_kv, max_len, config.attn_headdim)
        # Zeros, not empty: attention reads all of max_len and masks, and a masked NaN would still be a NaN.
        self.layers: list[LayerCache] = [
            AttentionCache(
                keys=torch.zeros(kv_shape, device=device, dtype=dtype),
                values=torch.zeros(kv_shape, device=device, dtype=dtype),
            )
            if layer in config.attn_layers
            else SSMCache(
                conv_window=torch.zeros(window_shape, device=device, dtype=dtype),
                state=torch.zeros(state_shape, device=device, dtype=state_dtype),
            )
            for layer in range(config.num_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def expect_room(self, batch: int, seqlen: int) -> None:
        """Check that `seqlen` more tokens of `batch` sequences can be taken.

        Raises:
            ValueError: another batch than the cache was made for, or more tokens than fit.
            NotImplementedError: several tokens on top of a cache that already holds some.
        """
        if batch != self.batch:
            raise ValueError(f"cache: made for a batch of {self.batch}, got a batch of {batch}")
        if self.length + seqlen > self.max_len:
            raise ValueError(
                f"cache: holds {self.length} of at most max_len {self.max_len} tokens, no room for {seqlen} more"
            )
        if self.length and seqlen > 1:
            raise NotImplementedError(
                f"cache: a cache that holds tokens ({self.length}) takes one token a call, got {seqlen}"
            )

    def reset(self) -> None:
        """Forget all tokens and keep the memory."""
        self.length = 0
        self.position.zero_()
        for layer in self.layers:
            for tensor in layer:
                tensor.zero_()
