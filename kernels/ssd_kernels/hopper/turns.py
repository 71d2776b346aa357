"""A chunk's turn of a warpgroup's loop: at which scale the state enters it, and in which stage the next chunk is."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ssd_kernels.hopper.decays import BETWEEN, CLOSING, OPENING, STEEP
from ssd_kernels.hopper.registers import scalar


@gluon.jit
def entry(exponents, closing):
    """The exponent by which the state is scaled at first; opening, whether the chunk is steep, closing and between.

    `exponents`: of this chunk. `closing`: of the chunk before. The state of a steep chunk enters at no scale.
    """
    opening = scalar(exponents, OPENING)
    scale = closing + opening
    steep = scalar(exponents, STEEP) != 0.0
    if steep:
        scale = closing
    return scale, opening, steep, scalar(exponents, CLOSING), scalar(exponents, BETWEEN)


@gluon.jit
def following(stage, phase, STAGES: gl.constexpr):
    """The next stage and its phase."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase
