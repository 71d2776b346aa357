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
    """log(1 + e^x), to full relative precision in fp32 however negative x is: max(x, 0) + log(1 + e) with e = e^−|x|.

    log(1 + e) / e by a minimax polynomial, off by 2^-27 at the most, so that nothing is lost as e vanishes; e with the
    argument reduced to half an octave, since the hardware's exponential loses a bit for every one of its argument's.
    """
    size = tl.minimum(tl.abs(x), 128.0)  # beyond, e is no fp32 number
    octaves = (size * 1.4426950408889634 + 12582912.0) - 12582912.0  # to the nearest whole number
    rest = (size - octaves * 0.693145751953125) - octaves * 1.4286068203094172e-06  # log 2 in two parts
    e = tl.exp(-rest) * tl.exp2(-octaves)
    series = -0.0032440251 * e + 0.0198514623
    series = series * e - 0.0569595342
    series = series * e + 0.1060365488
    series = series * e - 0.1530559257
    series = series * e + 0.1967593926
    series = series * e - 0.2495413366
    series = series * e + 0.3332996242
    series = series * e - 0.4999990242
    series = series * e + 0.9999999952
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + e * series
