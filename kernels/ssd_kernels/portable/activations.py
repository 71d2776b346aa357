"""Elementwise functions of several kernels, fp32, right for any argument and with a NaN kept."""

import triton
import triton.language as tl


@triton.jit
def silu(x):
    """The gate x / (1 + e^−x), as x · (1 / √(1 + e^−x))²: two special functions and no division.

    A division takes as many instructions as all the rest. Where e^−x overflows the gate is zero, as it has to be; the
    interpreter warns of it.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return x * root * root


@triton.jit
def softplus(x):
    """log(1 + e^x), the identity above 20, to full relative precision in fp32 however negative x is.

    e^x with the argument reduced to half an octave, since the hardware's exponential loses a bit for every one of its
    argument's; log(1 + e) = 2 artanh(e / (2 + e)) by its series, since the hardware's logarithm is coarse near 1.
    """
    small = tl.where(x > 20.0, 0.0, tl.where(x < -104.0, -104.0, x))  # beyond, e^x is no fp32 number
    octaves = tl.floor(small * 1.4426950408889634 + 0.5)
    rest = (small - octaves * 0.693145751953125) - octaves * 1.4286068203094172e-06  # log 2 in two parts
    e = tl.exp(rest) * tl.exp2(octaves)
    # Above 1 as x + log(1 + e^-x), so that the series' argument stays below 1/3.
    big = e > 1.0
    e = tl.where(big, 1.0 / tl.where(big, e, 1.0), e)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 13.0 + q * (1.0 / 15.0)
    series = 1.0 / 11.0 + q * series
    series = 1.0 / 9.0 + q * series
    series = 1.0 / 7.0 + q * series
    series = 1.0 / 5.0 + q * series
    series = 1.0 / 3.0 + q * series
    log1p = 2.0 * (s + s * q * series)
    return tl.where(x > 20.0, x, tl.where(big, small + log1p, log1p))
