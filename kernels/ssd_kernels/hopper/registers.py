"""What the warpgroups compute on values in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def scalar(tile, i: gl.constexpr):
    """Element i of a tile in shared memory, in a register of every thread."""
    return gl.max(tile.slice(i, 1).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@gluon.jit
def scaled(S, exponent):
    """S · 2^exponent, also where 2^exponent alone is no fp32 number."""
    part = gl.minimum(gl.maximum(exponent, -100.0), 100.0)
    S = S * gl.exp2(part)
    if exponent != part:
        S = S * gl.exp2(exponent - part)
    return S


@gluon.jit
def times(x, high, low):
    """The product x (high + low), rounded once to bf16: two instructions for two elements."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 t; mul.rn.bf16x2 t, $1, $3; fma.rn.bf16x2 $0, $1, $2, t; }", "=r,r,r,r", [x, high, low],
        dtype=gl.bfloat16, is_pure=True, pack=2,
    )  # fmt: skip


@gluon.jit
def multiplied(x, y):
    """The product in bf16: one instruction for two elements."""
    return gl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=gl.bfloat16, is_pure=True, pack=2
    )  # fmt: skip


@gluon.jit
def unpacked(x):
    """Bf16 as fp32, by bits: one instruction for an element."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 a, b; shl.b32 a, $2, 16; and.b32 b, $2, 0xffff0000; mov.b32 $0, a; mov.b32 $1, b; }", "=f,=f,r",
        [x], dtype=gl.float32, is_pure=True, pack=2,
    )  # fmt: skip
