"""The contracts of the causal convolution, of whole sequences and of one token, and their checks."""

from typing import Protocol

from torch import Tensor

from ssd_kernels.checks import (
    expect_cu_seqlens,
    expect_device,
    expect_dtype,
    expect_ndim,
    expect_same_dtype,
    expect_shape,
    expect_slots,
)

ACTIVATIONS = (None, "silu")


class CausalConv1d(Protocol):
    """A convolution along tokens, of each channel with its own taps.

        y_t = activation(bias + Σ_{k<width} weight[width − 1 − k] x_{t−k})        silu(u) = u / (1 + e^−u)

    where what comes before a sequence's first token is its initial window, x_{−k} = initial_window[width − 1 − k].
    Sums are fp32 (fp64 for fp64 inputs), rounded once. Source: torch.nn.Conv1d with `groups=channels` and padding on
    the left.

    Args:
        x: (batch, seqlen, channels), any strides; fastest where a token's channels are adjacent.
        weight: (channels, width), any floating dtype; the last tap is the token's own.
        bias: (channels,); none by default.
        activation: None or "silu".
        initial_window: (batch, channels, width - 1), the inputs before the first token, the latest last, in the dtype
            of x; zero by default. Of packed sequences (nseqs, channels, width - 1).
        cu_seqlens: (nseqs + 1,), int32 or int64, bounds of packed sequences: as of
            :class:`ssd_kernels.interface.SSD`.
        return_final_window: return the window after the last token too. Where a sequence is shorter than width - 1,
            the latest entries of its initial window are still in it.

    Returns:
        y, contiguous (batch, seqlen, channels) in the dtype of x; or (y, final_window), of the shape of
        `initial_window`, contiguous.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not fit.
        NotImplementedError: legal, but not supported by this implementation.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str | None = None,
        initial_window: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_final_window: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the convolution."""


class CausalConv1dStep(Protocol):
    """One token of :class:`CausalConv1d` for each row of a batch.

    Args:
        x: (batch, channels), any strides.
        window: (nslots, channels, width - 1), the last inputs of each sequence, in the dtype of x; updated in place.
        weight: (channels, width).
        bias: (channels,); none by default.
        activation: None or "silu".
        slots: (batch,), int32 or int64, each row's index into `window`, no index twice; row i takes slot i by default.
            Checked on a CPU. On a GPU the host does not read them: a row whose index is out of range touches no slot,
            and its y is NaN.

    Returns:
        y, contiguous (batch, channels) in the dtype of x.

    Raises:
        ValueError, TypeError, NotImplementedError: as :class:`CausalConv1d`.
    """

    def __call__(
        self,
        x: Tensor,
        window: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Take one token."""


def check_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_window: Tensor | None,
    cu_seqlens: Tensor | None,
) -> int:
    """Check the arguments of :class:`CausalConv1d` and return its number of sequences."""
    expect_ndim("x", x, "(batch, seqlen, channels)")
    width = _check_taps("x", x, weight, bias, activation)
    nseqs = x.shape[0] if cu_seqlens is None else expect_cu_seqlens(cu_seqlens, x)
    meaning = f"({'batch' if cu_seqlens is None else 'nseqs'}, channels, width - 1)"
    expect_shape("initial_window", initial_window, meaning, (nseqs, x.shape[2], width - 1), optional=True)
    expect_same_dtype("initial_window", initial_window, "x", x)
    expect_device("x", x, weight=weight, bias=bias, initial_window=initial_window, cu_seqlens=cu_seqlens)
    return nseqs


def check_conv_step(
    x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, slots: Tensor | None
) -> None:
    """Check the arguments of :class:`CausalConv1dStep`, but for the values of slots."""
    check_conv_step_of("x", x, window, weight, bias, activation, slots)


def check_conv_step_of(
    name: str, x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None,
    slots: Tensor | None,
) -> None:  # fmt: skip
    """As :func:`check_conv_step`, of an x that the caller knows by another name."""
    expect_ndim(name, x, "(batch, channels)")
    expect_ndim("window", window, "(nslots, channels, width - 1)")
    width = _check_taps(name, x, weight, bias, activation)
    nslots = window.shape[0]
    expect_shape("window", window, "(nslots, channels, width - 1)", (nslots, x.shape[1], width - 1))
    expect_same_dtype("window", window, name, x)
    expect_slots(slots, x.shape[0], nslots, "window")
    expect_device(name, x, window=window, weight=weight, bias=bias, slots=slots)


def _check_taps(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> int:
    channels = x.shape[-1]
    expect_ndim("weight", weight, "(channels, width)")
    width = weight.shape[1]
    expect_shape("weight", weight, "(channels, width)", (channels, width))
    expect_shape("bias", bias, "(channels,)", (channels,), optional=True)
    if width < 1:
        raise ValueError(f"weight: width must be at least 1, got {width}")
    expect_dtype(name, x)
    expect_dtype("weight", weight)
    expect_dtype("bias", bias)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    return width
