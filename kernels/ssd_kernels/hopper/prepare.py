"""What the scan needs of each chunk beside x, B and C: products that all heads share, and decays in factors.

In a chunk, with a_i the running sum of dt · A in units of log 2 and m the middle of its range,

    CB_ij = C_i · B_j for j ≤ i        u_i = 2^(a_i − m)        w_j = dt_j 2^(m − a_j)

so that the scan computes y_i = u_i [S' C_i + Σ_j CB_ij (w_j x_j)] with S' the state scaled by 2^m, and adds the same
w_j x_j to the state: nothing is computed for each pair of tokens and each head. Where the decay of a group of chunks
spans at most 2^GROUP_RANGE, they share an m and the state is scaled once for all. Where that of one chunk spans more
than 2^RANGE, its factors would leave the range of fp32: its halves have an m each. Where one of these spans more, too,
the scan takes the running sums themselves ("steep" chunks).

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: tests/correctness/hopper_model.py.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.language.extra.cuda import gdc_launch_dependents

from ssd_kernels.hopper import configs
from ssd_kernels.hopper.configs import CHUNK, GROUP, prepare_config
from ssd_kernels.hopper.decays import EXPONENTS, store_decays
from ssd_kernels.hopper.products import store_products
from ssd_kernels.hopper.slots import CUT
from ssd_kernels.interface import Sizes
from ssd_kernels.launching import launch


class Prepared(NamedTuple):
    """What :func:`prepare` makes; rows are those of (batch, nheads, nslots).

    CB: (batch, nslots, ngroups, CHUNK, CHUNK) in the dtype of B.
    factors: (batch, nheads, nslots, 4 · CHUNK) bf16: w rounded, what that rounding left, and u, in fp32. Of a steep
        chunk w_j is dt_j 2^(a_last − a_j), and in place of u stands a as an integer, in units of STEEP_UNIT.
    exponents: (batch, nheads, nslots, EXPONENTS) fp32: TOTAL, a of the last token; OPENING and CLOSING, by which the
        state is scaled before and after the chunk; TO_END, by which w is, so that it decays to the end of the chunk;
        STEEP, 1 of a steep chunk and else 0; BETWEEN, by which the state is scaled between the halves of a chunk that
        have an m each, else 0: of such a chunk, OPENING is that of the first half, CLOSING and TO_END of the second.
    steps: (batch, nheads, nslots, CHUNK) fp32, dt of steep chunks; of others it is not written.
    tails: (1, nseqs · CHUNK, ngroups, d_state) in the dtype of B, the last chunk of each packed sequence, if not whole,
        with zeros after it; or None.
    """

    CB: Tensor
    factors: Tensor
    exponents: Tensor
    steps: Tensor
    tails: Tensor | None


def prepare(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor | None, dt_softplus: bool,
    dt_limit: tuple[float, float], cu_seqlens: Tensor | None, sizes: Sizes, nslots: int,
) -> Prepared:  # fmt: skip
    """Fill what :class:`Prepared` says; arguments as of :class:`ssd_kernels.interface.SSD`, any strides."""
    rows = (sizes.batch, sizes.nheads, nslots)
    CB = torch.empty((sizes.batch, nslots, sizes.ngroups, CHUNK, CHUNK), dtype=B.dtype, device=B.device)
    factors = torch.empty((*rows, 4 * CHUNK), dtype=torch.bfloat16, device=B.device)
    exponents = torch.empty((*rows, EXPONENTS), dtype=torch.float32, device=B.device)
    steps = torch.empty((*rows, CHUNK), dtype=torch.float32, device=B.device)
    tails = None
    if sizes.nseqs is not None:
        tails = torch.empty((1, sizes.nseqs * CHUNK, sizes.ngroups, sizes.d_state), dtype=B.dtype, device=B.device)
    config = prepare_config()
    programs = GROUP * sizes.ngroups + -(-sizes.nheads // config.block["BLOCK_H"])
    launch(
        _prepare_kernel, (sizes.batch * -(-nslots // GROUP) * programs,),
        dt, A, dt_bias, B, C, CB, (factors, factors.view(torch.float32), exponents, steps), tails,
        (dt.stride(), A.stride(0), 0 if dt_bias is None else dt_bias.stride(0), B.stride(), C.stride()), *dt_limit,
        cu_seqlens, 0 if cu_seqlens is None else cu_seqlens.stride(0),
        sizes.seqlen, nslots, sizes.nseqs or 0, sizes.nheads, sizes.ngroups,
        SOFTPLUS=dt_softplus, D_STATE=sizes.d_state, CHUNK=CHUNK, GROUP=GROUP,
        GROUP_RANGE=configs.GROUP_RANGE, EARLY_START=configs.EARLY_START, WARPS=config.num_warps,
        maxnreg=configs.PREPARE_REGISTERS, **config.kwargs,
    )  # fmt: skip
    return Prepared(CB, factors, exponents, steps, tails)


@gluon.jit(do_not_specialize=[*CUT, "ngroups", "dt_low", "dt_high"])
def _prepare_kernel(
    dt_ptr, A_ptr, dt_bias_ptr, B_ptr, C_ptr, CB_ptr, outputs, tails_ptr, strides, dt_low, dt_high,
    cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs, nheads, ngroups,
    SOFTPLUS: tl.constexpr, D_STATE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    GROUP_RANGE: tl.constexpr, EARLY_START: tl.constexpr, BLOCK_H: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """One program: CB of one chunk and group; or the decays of GROUP chunks and BLOCK_H heads.

    Grid: (batch · groups of slots · (GROUP · ngroups + blocks of heads),): both kinds side by side, as the one waits
    for memory and the other computes. `outputs`: factors as bf16 and as fp32, exponents, steps. `strides` are those of
    dt, A, dt_bias, B and C. WARPS: of the program; 0 in the interpreter, which knows no layouts.
    """
    if EARLY_START:
        gdc_launch_dependents()
    products = GROUP * ngroups
    each = products + tl.cdiv(nheads, BLOCK_H)
    groups = tl.cdiv(nslots, GROUP)
    role = tl.program_id(0) % each
    slot = tl.program_id(0) // each % groups * GROUP
    batch = (tl.program_id(0) // each // groups).to(tl.int64)
    cut = (cu_seqlens_ptr, cu_stride, seqlen, nslots, nseqs)
    if role < products:
        slot += role // ngroups
        if slot < nslots:
            store_products(
                batch, slot, role % ngroups, cut, B_ptr, C_ptr, CB_ptr, tails_ptr, strides[3], strides[4], ngroups,
                D_STATE, CHUNK, WARPS,
            )  # fmt: skip
    else:
        store_decays(
            role - products, batch, slot, cut, dt_ptr, A_ptr, dt_bias_ptr, strides, dt_low, dt_high, outputs, nheads,
            SOFTPLUS, CHUNK, GROUP, GROUP_RANGE, BLOCK_H, WARPS,
        )  # fmt: skip
