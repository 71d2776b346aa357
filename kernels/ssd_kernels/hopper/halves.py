"""What a chunk needs between its halves, where it decays by more than its factors can hold, but neither half does.

With r = 2^BETWEEN, from the scale of the first half to that of the second, at most 2^-NEGLIGIBLE,

    y_i = u_i [S' C_i + Σ_{j≤i} CB_ij (w_j x_j)]                                      for i in the first half
    y_i = u_i [r S' C_i + Σ_first CB_ij (r w_j x_j) + Σ_{j≤i, second} CB_ij (w_j x_j)]       in the second
    S' ← r S' + Σ_first (r w_j x_j) B_jᵀ + Σ_second (w_j x_j) B_jᵀ
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_init, warpgroup_mma_wait

from ssd_kernels.hopper.registers import multiplied


@gluon.jit
def first_half(y, S, xw, CB_tile, between, P: gl.constexpr, Q: gl.constexpr, LY: gl.constexpr):
    """The same three with the first half brought to the scale of the second, but in y of its own tokens: those whole.

    y (P, Q) has S' C only, and is waited for; what of the first half is added to its own tokens again is negligible.
    """
    H: gl.constexpr = Q // 2
    AY: gl.constexpr = gl.DotOperandLayout(0, LY, 2)
    # In two steps, as one may be no number of fp32 or bf16; each a whole power of two, by which nothing is rounded.
    step = gl.exp2(between * 0.5)
    in_first = gl.arange(0, Q, layout=gl.SliceLayout(0, AY)) < H
    first, _ = xw.reshape([P, 2, H]).permute((0, 2, 1)).split()
    zero = gl.full([P, Q], 0.0, gl.float32, LY)
    of_first = warpgroup_mma(
        gl.convert_layout(first, AY), CB_tile.slice(0, H, dim=1).permute((1, 0)), zero, use_acc=False, is_async=True
    )
    y, of_first = warpgroup_mma_wait(0, deps=[y, of_first])
    y = gl.where(gl.arange(0, Q, layout=gl.SliceLayout(0, LY))[None, :] < H, y + of_first, y * step * step)
    steps = gl.where(in_first, step, 1.0).to(gl.bfloat16)[None, :]
    return warpgroup_mma_init(y), S * step * step, multiplied(multiplied(xw, steps), steps)


@gluon.jit
def first_half_of_partner(y, S, xw, between, Q: gl.constexpr, LY: gl.constexpr, AS: gl.constexpr):
    """The same of a warpgroup whose y has S' C only, all that it is to have."""
    step = gl.exp2(between * 0.5)
    y = gl.where(gl.arange(0, Q, layout=gl.SliceLayout(0, LY))[None, :] < Q // 2, y, y * step * step)
    steps = gl.where(gl.arange(0, Q, layout=gl.SliceLayout(0, AS)) < Q // 2, step, 1.0).to(gl.bfloat16)[None, :]
    return y, S * step * step, multiplied(multiplied(xw, steps), steps)
