"""The y of a chunk that decays by more than its factors can hold: exact, with an exponential for each pair of tokens.

    y_i = 2^{a_i} S C_i + Σ_{j≤i} CB_ij 2^{a_i − a_j} dt_j x_j + D x_i

The running sums a are integers, in units of STEEP_UNIT, so that two large ones cancel exactly.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ssd_kernels.hopper.configs import STEEP_UNIT
from ssd_kernels.hopper.registers import unpacked
from ssd_kernels.hopper.versions import barrier


@gluon.jit
def steep_chunk(
    y, x_tile, CB_tile, factors_tile, steps_ptr, D, D_ptr, y_tile, P: gl.constexpr, Q: gl.constexpr, LY: gl.constexpr
):  # fmt: skip
    """Fill y_tile; all TMA stores from it have been issued. y (P, Q) is S C, of the state that enters the chunk."""
    AY: gl.constexpr = gl.DotOperandLayout(0, LY, 2)
    i = gl.arange(0, Q, layout=gl.SliceLayout(1, LY))
    j = gl.arange(0, Q, layout=gl.SliceLayout(0, LY))
    a_i = factors_tile.slice(Q, Q).load(gl.SliceLayout(1, LY)).to(gl.int32, bitcast=True)
    a_j = factors_tile.slice(Q, Q).load(gl.SliceLayout(0, LY)).to(gl.int32, bitcast=True)
    dt_j = gl.load(steps_ptr + j)
    # Masked before the exponential: above the diagonal it would overflow.
    exponent = gl.where(i[:, None] >= j[None, :], a_i[:, None] - a_j[None, :], 0).to(gl.float32) * STEEP_UNIT
    weights = CB_tile.load(LY).to(gl.float32) * gl.exp2(exponent) * dt_j[None, :]  # (i, j)
    y_square = y_tile.reshape([Q, P])
    tma.store_wait(0)
    y_square.store(weights.to(gl.bfloat16))
    fence_async_shared()

    y = y * gl.exp2(a_j.to(gl.float32) * STEEP_UNIT)[None, :]  # (P, i)
    x = x_tile.reshape([Q, P]).permute((1, 0)).load(AY)
    y = warpgroup_mma(x, y_square.permute((1, 0)), y, is_async=True)
    y = warpgroup_mma_wait(0, deps=[y])
    if D_ptr is not None:
        y += unpacked(gl.convert_layout(x, LY)) * D[:, None]
    y_square.permute((1, 0)).store(y.to(gl.bfloat16))
    fence_async_shared()
    # Here, so that the compiler puts none where chunks that are not steep pass.
    barrier()
