"""The scan itself, in Gluon for Hopper: one TMA warp feeds warpgroups of which each carries a part of a head.

In a chunk, with the state S' (P, N) scaled and the factors u and w of :mod:`ssd_kernels.hopper.prepare`,

    y_i = u_i [S' C_i + Σ_{j≤i} CB_ij (w_j x_j)] + D x_i        S' ← S' + Σ_j (w_j x_j) B_jᵀ

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ssd_kernels.hopper import configs
from ssd_kernels.hopper.configs import CHUNK, GROUP, PART, WIDTH, ScanConfig
from ssd_kernels.hopper.consumer import consumer
from ssd_kernels.hopper.decays import EXPONENTS
from ssd_kernels.hopper.descriptors import common_rank, flat, tiled
from ssd_kernels.hopper.partner import allocate_handed, partner
from ssd_kernels.hopper.prepare import Prepared
from ssd_kernels.hopper.producer import producer
from ssd_kernels.hopper.segment_states import Pieces
from ssd_kernels.hopper.slots import CUT, piece_bounds, row_bounds
from ssd_kernels.hopper.transfers import tiles_shape
from ssd_kernels.interface import Sizes
from ssd_kernels.launching import launch


def scan(
    x: Tensor, B: Tensor, C: Tensor, D: Tensor | None, prepared: Prepared, pieces: Pieces | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, period: int | None, sizes: Sizes, nslots: int,
    config: ScanConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y, like x but contiguous, and the final state; arguments as of :class:`ssd_kernels.interface.SSD`.

    `period`: the chunks after which the state restarts; never where it is None. `nslots`: of a row of the workspace.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = torch.empty(sizes.state_shape, dtype=torch.float32, device=x.device)
    parts, rows = sizes.headdim // PART, sizes.state_shape[0]
    blocks = sizes.nheads * parts // config.consumers
    D_strides = (0, 0) if D is None else (D.stride(0), D.stride(1) if D.ndim == 2 else 0)
    rank = common_rank(sizes.seqlen, x, B, C)
    width = min(sizes.d_state, WIDTH)
    launch(
        _scan_kernel, (rows * config.cut.segments * blocks,),
        tiled(x, PART, rank), tiled(B, width, rank), tiled(C, width, rank),
        flat(prepared.CB, CHUNK, CHUNK), flat(prepared.factors, 4 * CHUNK), flat(prepared.exponents, 32),
        tiled(y, PART, rank), None if prepared.tails is None else tiled(prepared.tails, width, rank),
        (
            y, D, initial_state, None if pieces is None else pieces.states, None if pieces is None else pieces.decays,
            final_state, prepared.steps,
        ),
        (D_strides, (0, 0, 0, 0) if initial_state is None else initial_state.stride()),
        cu_seqlens, 0 if cu_seqlens is None else cu_seqlens.stride(0),
        sizes.seqlen, nslots, sizes.nheads, sizes.ngroups, config.cut.segments, config.cut.pieces_of_segment,
        period or 1,
        RESTART=period is not None, PARTS=parts, D_STATE=sizes.d_state, CHUNK=CHUNK, PART=PART, GROUP=GROUP,
        EXPONENTS=EXPONENTS, RANK=rank, SPLIT=sizes.d_state // width,
        EARLY_START=configs.EARLY_START, launch_pdl=configs.EARLY_START, **config.kwargs,
    )  # fmt: skip
    return y, final_state


@gluon.jit(do_not_specialize=[*CUT[:2], "nheads", "ngroups", "segments", "pieces_of_segment", "period"])
def _scan_kernel(
    x_desc, B_desc, C_desc, CB_desc, factors_desc, exponents_desc, y_desc, tails_desc, pointers, strides,
    cu_seqlens_ptr, cu_stride, seqlen, nslots, nheads, ngroups, segments, pieces_of_segment, period,
    RESTART: gl.constexpr, PARTS: gl.constexpr, D_STATE: gl.constexpr, CHUNK: gl.constexpr, PART: gl.constexpr,
    GROUP: gl.constexpr, EXPONENTS: gl.constexpr, RANK: gl.constexpr, SPLIT: gl.constexpr,
    EARLY_START: gl.constexpr, CONSUMERS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One program: CONSUMERS parts of heads of one group, over one segment of a sequence; SPLIT warpgroups a part.

    Grid: (rows · segments · nheads · PARTS / CONSUMERS,), parts fastest. `pointers`: y, D, the initial state, states
    and decays of pieces, the final state, steps. `strides`: of D and the initial state.
    """
    PACKED: gl.constexpr = cu_seqlens_ptr is not None
    blocks = nheads * PARTS // CONSUMERS
    first_part = gl.program_id(0) % blocks * CONSUMERS
    segment = gl.program_id(0) // blocks % segments
    row = gl.program_id(0) // blocks // segments
    start, stop, first, last = row_bounds(row.to(gl.int64), cu_seqlens_ptr, cu_stride, seqlen, CHUNK)
    pieces = segments * pieces_of_segment
    piece = segment * pieces_of_segment
    begin, _ = piece_bounds(piece, pieces, first, last, period, RESTART, GROUP)
    _, end = piece_bounds(piece + pieces_of_segment - 1, pieces, first, last, period, RESTART, GROUP)
    bounds = (
        start.to(gl.int32), stop.to(gl.int32), first.to(gl.int32), last.to(gl.int32), begin.to(gl.int32),
        end.to(gl.int32),
    )  # fmt: skip
    batch = row
    if PACKED:
        batch = row * 0
    group = first_part // PARTS // (nheads // ngroups)
    place = (batch, row, group, first_part, nheads, ngroups, nslots, batch * seqlen)
    cut = (segment, segments, pieces_of_segment, period)

    DTYPE: gl.constexpr = x_desc.dtype
    x_tiles = gl.allocate_shared_memory(DTYPE, tiles_shape(STAGES * CONSUMERS, CHUNK, PART, RANK), x_desc.layout)
    HALVES: gl.constexpr = tiles_shape(STAGES * SPLIT, CHUNK, D_STATE // SPLIT, RANK)
    B_tiles = gl.allocate_shared_memory(DTYPE, HALVES, B_desc.layout)
    C_tiles = gl.allocate_shared_memory(DTYPE, HALVES, C_desc.layout)
    CB_tiles = gl.allocate_shared_memory(DTYPE, [STAGES, CHUNK, CHUNK], CB_desc.layout)
    factors_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES * CONSUMERS, 4 * CHUNK], factors_desc.layout)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    factors_fp32_tiles = factors_tiles._reinterpret(gl.float32, [STAGES * CONSUMERS, 2 * CHUNK], PLAIN)
    exponents_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * CONSUMERS, 32], exponents_desc.layout)
    y_tiles = gl.allocate_shared_memory(DTYPE, tiles_shape(CONSUMERS, CHUNK, PART, RANK), y_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=CONSUMERS * SPLIT)
    handed_tiles, handed = y_tiles, full  # nothing is handed over
    if SPLIT > 1:
        handed_tiles, handed = allocate_handed(STAGES, PART, CHUNK)
    tiles = (
        x_tiles, B_tiles, C_tiles, CB_tiles, factors_tiles, factors_fp32_tiles, exponents_tiles, y_tiles, handed_tiles,
    )  # fmt: skip
    barriers = (full, empty, handed)
    descriptors = (x_desc, B_desc, C_desc, CB_desc, factors_desc, exponents_desc, tails_desc)
    # The arguments stand here in full: a constant that is assigned first would become a value of the device.
    if SPLIT > 1:
        gl.warp_specialize(
            [
                (consumer, (
                    y_desc, tiles, barriers, pointers, strides, place, bounds, cut, 0, 1, 2, PARTS, PART, D_STATE,
                    CHUNK, STAGES, PACKED, RESTART, RANK, EARLY_START,
                )),
                (partner, (
                    tiles, barriers, pointers, strides, place, bounds, cut, PARTS, PART, D_STATE,
                    CHUNK, STAGES, PACKED, RESTART, EARLY_START,
                )),
                (producer, (
                    descriptors, tiles, barriers, place, bounds, 1, 2, PARTS, PART, D_STATE, CHUNK, EXPONENTS,
                    STAGES, PACKED, RANK, EARLY_START,
                )),
            ],
            [4, 1], [REGISTERS, 24],
        )  # fmt: skip
    elif CONSUMERS == 1:
        gl.warp_specialize(
            [
                (consumer, (
                    y_desc, tiles, barriers, pointers, strides, place, bounds, cut, 0, 1, 1, PARTS, PART, D_STATE,
                    CHUNK, STAGES, PACKED, RESTART, RANK, EARLY_START,
                )),
                (producer, (
                    descriptors, tiles, barriers, place, bounds, 1, 1, PARTS, PART, D_STATE, CHUNK, EXPONENTS,
                    STAGES, PACKED, RANK, EARLY_START,
                )),
            ],
            [1], [24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consumer, (
                    y_desc, tiles, barriers, pointers, strides, place, bounds, cut, 0, 2, 1, PARTS, PART, D_STATE,
                    CHUNK, STAGES, PACKED, RESTART, RANK, EARLY_START,
                )),
                (consumer, (
                    y_desc, tiles, barriers, pointers, strides, place, bounds, cut, 1, 2, 1, PARTS, PART, D_STATE,
                    CHUNK, STAGES, PACKED, RESTART, RANK, EARLY_START,
                )),
                (producer, (
                    descriptors, tiles, barriers, place, bounds, 2, 1, PARTS, PART, D_STATE, CHUNK, EXPONENTS,
                    STAGES, PACKED, RANK, EARLY_START,
                )),
            ],
            [4, 1], [REGISTERS, 24],
        )  # fmt: skip
