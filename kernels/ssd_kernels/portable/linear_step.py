"""A projection of a few tokens, with norm, gate, activation and residual in the same launch: weights are read once.

    out = residual + f(v weightᵀ),  v = norm_weight · u / √(mean(u²) + eps),  u = x · silu(gate)

The root is one number a token, so it is taken of what the loop over the inputs sums, and multiplied at its end: the
loop needs no statistics before it begins. Contract: :class:`ssd_kernels.linear_interface.LinearStep`. Reference:
:func:`ssd_kernels.linear_interface.linear_step`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.launching import launch
from ssd_kernels.library import call, define, device_of, expect_runnable
from ssd_kernels.linear_interface import check_linear_step
from ssd_kernels.portable.activations import silu
from ssd_kernels.portable.configs import linear_step_config

MOST = 64  # tokens that a program holds the products of


def linear_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    up_weight: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The projection in one Triton kernel, forward only; see :class:`ssd_kernels.linear_interface.LinearStep`.

    Raises:
        TypeError: fp64 inputs.
        RuntimeError: tensors on a CPU, and Triton's interpreter is off.
        NotImplementedError: more than 64 tokens; weights whose inputs are not adjacent; a norm of several fp16 tokens,
            whose weighed inputs may not fit fp16 before they are divided; on `backward`.
    """
    check_linear_step(x, weight, bias, gate, norm_weight, eps, up_weight, residual)
    expect_runnable("x", x)
    if x.shape[0] > MOST:
        raise NotImplementedError(f"x: batch must be at most {MOST} for 'triton', got {x.shape[0]}; 'torch' takes any")
    if norm_weight is not None and x.shape[0] > 1 and x.dtype == torch.float16:
        raise NotImplementedError("norm_weight: must be None for several tokens in float16 for 'triton'; 'torch' norms")
    for name, tensor in (("weight", weight), ("up_weight", up_weight)):
        if tensor is not None and tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise NotImplementedError(f"{name}: stride of in_features must be 1 for 'triton', got {tensor.stride(1)}")
    out: Tensor = call("linear_step", x, weight, bias, gate, norm_weight, eps, up_weight, residual)
    return out


def _linear_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None, norm_weight: Tensor | None, eps: float,
    up_weight: Tensor | None, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    out = _fake_linear_step(x, weight)
    if out.numel() == 0:
        return out
    (batch, features), outputs = x.shape, weight.shape[0]
    config = linear_step_config(x.dtype, batch, up_weight is not None)
    with device_of(x):
        launch(
            _linear_step_kernel, (triton.cdiv(outputs, config.block["BLOCK_O"]),),
            x, gate, norm_weight, weight, up_weight, bias, residual, out,
            (x.stride(), _strides(gate, 2), _strides(norm_weight, 1)),
            (weight.stride(), _strides(up_weight, 2), _strides(bias, 1), _strides(residual, 2)),
            batch, outputs, eps, FEATURES=features, **config.kwargs,
        )  # fmt: skip
    return out


def _strides(tensor: Tensor | None, ndim: int) -> tuple[int, ...]:
    """Those of a tensor, ones where there is none: a one is a constant and costs nothing."""
    return (1,) * ndim if tensor is None else tensor.stride()


def _fake_linear_step(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)


define(
    "linear_step(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? norm_weight, float eps, "
    "Tensor? up_weight, Tensor? residual) -> Tensor",
    _linear_step,
    _fake_linear_step,
)


@triton.jit(do_not_specialize=["batch", "outputs", "eps"])
def _linear_step_kernel(
    x_ptr, gate_ptr, norm_ptr, weight_ptr, up_ptr, bias_ptr, residual_ptr, out_ptr, in_strides, out_strides,
    batch, outputs, eps,
    FEATURES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_O outputs of all tokens. Grid: (blocks of outputs,).

    `in_strides` are those of x, gate and norm_weight; `out_strides` of weight, up_weight, bias and residual. One token
    is multiplied element by element, in fp32; several by the tensor cores.
    """
    offs_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_b = tl.arange(0, BLOCK_B)
    in_o = offs_o < outputs
    in_b = offs_b < batch
    weight_rows = weight_ptr + offs_o.to(tl.int64)[:, None] * out_strides[0][0]
    up_rows = None
    if up_ptr is not None:
        up_rows = up_ptr + offs_o.to(tl.int64)[:, None] * out_strides[1][0]
    acc, up, squares = products(
        x_ptr, gate_ptr, norm_ptr, in_strides, weight_rows, up_rows, in_o, offs_b, in_b,
        FEATURES, BLOCK_B, BLOCK_O, BLOCK_I, STAGES,
    )  # fmt: skip
    if BLOCK_B == 1:
        acc, up = tl.sum(acc, 1)[:, None], tl.sum(up, 1)[:, None]
    if norm_ptr is not None:
        scale = tl.rsqrt(tl.where(in_b, tl.sum(squares, 1) / FEATURES + eps, 1.0))
        acc, up = acc * scale[None, :], up * scale[None, :]
    if up_ptr is not None:
        acc = silu(acc) * up
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_o.to(tl.int64) * out_strides[2][0], mask=in_o, other=0.0).to(tl.float32)[:, None]
    in_out = in_o[:, None] & in_b[None, :]
    rows = offs_b.to(tl.int64)[None, :]
    if residual_ptr is not None:
        offs = rows * out_strides[3][0] + offs_o.to(tl.int64)[:, None] * out_strides[3][1]
        acc += tl.load(residual_ptr + offs, mask=in_out, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * outputs + offs_o[:, None], acc.to(out_ptr.dtype.element_ty), mask=in_out)


@triton.jit
def products(
    x_ptr, gate_ptr, norm_ptr, in_strides, weight_rows, up_rows, in_o, offs_b, in_b,
    FEATURES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """V weightᵀ and v up_weightᵀ, (O, B) in fp32, and the squares of u, (B, I), to be added up.

    Of one token the products are (O, I), to be added up too.
    """
    offs_i = tl.arange(0, BLOCK_I)
    WIDE: tl.constexpr = BLOCK_I if BLOCK_B == 1 else BLOCK_B
    acc = tl.zeros((BLOCK_O, WIDE), dtype=tl.float32)
    up = tl.zeros((BLOCK_O, WIDE), dtype=tl.float32)
    squares = tl.zeros((BLOCK_B, BLOCK_I), dtype=tl.float32)
    for start in tl.range(0, FEATURES, BLOCK_I, num_stages=STAGES):
        i = start + offs_i
        in_i = i < FEATURES
        in_weight = in_o[:, None] & in_i[None, :]
        weight = tl.load(weight_rows + i[None, :], mask=in_weight, other=0.0)  # (O, I)
        v, squares = _weighed(
            x_ptr, in_strides[0], gate_ptr, in_strides[1], norm_ptr, in_strides[2], i, offs_b, in_i, in_b, squares
        )
        acc = _add(acc, weight, v, BLOCK_B)
        if up_rows is not None:
            up = _add(up, tl.load(up_rows + i[None, :], mask=in_weight, other=0.0), v, BLOCK_B)
    return acc, up, squares


@triton.jit
def _weighed(x_ptr, x_strides, gate_ptr, gate_strides, norm_ptr, norm_strides, i, offs_b, in_i, in_b, squares):
    """norm_weight · u of some inputs, (B, I) in fp32, and the squares of u added up."""
    mask = in_b[:, None] & in_i[None, :]
    i, rows = i.to(tl.int64)[None, :], offs_b.to(tl.int64)[:, None]
    u = tl.load(x_ptr + rows * x_strides[0] + i * x_strides[1], mask=mask, other=0.0).to(tl.float32)
    if gate_ptr is not None:
        u *= silu(tl.load(gate_ptr + rows * gate_strides[0] + i * gate_strides[1], mask=mask, other=0.0).to(tl.float32))
    if norm_ptr is not None:
        squares += u * u
        u *= tl.load(norm_ptr + i * norm_strides[0], mask=in_i[None, :], other=0.0).to(tl.float32)
    return u, squares


@triton.jit
def _add(acc, weight, v, BLOCK_B: tl.constexpr):
    """The products of a tile of weights (O, I) with v (B, I), added to (O, B), or one by one to (O, I)."""
    if BLOCK_B == 1:
        acc += weight.to(tl.float32) * v
    else:
        acc = tl.dot(weight, tl.trans(v.to(weight.dtype)), acc, input_precision="ieee")
    return acc
