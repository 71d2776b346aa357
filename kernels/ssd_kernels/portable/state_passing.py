"""States from segment to segment: h_s = 2^{a_s} h_{s−1} + S_s, where one program does not walk a whole sequence.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.launching import launch
from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import STATE_PASSING
from ssd_kernels.portable.plan import Plan


def state_passing(
    states: Tensor, decays: Tensor, initial_state: Tensor | None, plan: Plan, table: ChunkTable | None
) -> None:
    """Turn the states that segments add into the states that enter them, in place; but for each sequence's first.

    Args:
        states: (segments, nheads, headdim, d_state) fp32 contiguous.
        decays: (segments, nheads) fp32 contiguous: a_s, in octaves.
        initial_state: (batch or nseqs, nheads, headdim, d_state) fp32, any strides; or None.
        plan: how the call is cut.
        table: where packed sequences are cut.
    """
    sizes = plan.sizes
    config = STATE_PASSING
    blocks = triton.cdiv(sizes.headdim * sizes.d_state, config.block["BLOCK"])
    launch(
        _state_passing_kernel, (sizes.state_shape[0] * sizes.nheads * blocks,),
        states, decays, initial_state, (0, 0, 0, 0) if initial_state is None else initial_state.stride(),
        None if table is None else table.sequences, plan.nsegments, sizes.nheads,
        HEADDIM=sizes.headdim, D_STATE=sizes.d_state, **config.kwargs,
    )  # fmt: skip


@triton.jit(do_not_specialize=["nsegments", "nheads"])
def _state_passing_kernel(
    states_ptr, decays_ptr, initial_ptr, initial_strides, sequences_ptr, nsegments, nheads,
    HEADDIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK elements of one head's state, over a sequence. Grid: (batch or nseqs · nheads · blocks,).

    What segments add is read up to AHEAD segments before it is needed, and their decay one.
    """
    BLOCKS: tl.constexpr = (HEADDIM * D_STATE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    sequence = (pid // BLOCKS // nheads).to(tl.int64)
    head = (pid // BLOCKS % nheads).to(tl.int64)
    offs = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    in_state = offs < HEADDIM * D_STATE
    first_row, count = sequence * nsegments, nsegments
    if sequences_ptr is not None:
        first_row = tl.load(sequences_ptr + sequence)
        count = tl.load(sequences_ptr + sequence + 1) - first_row

    state = tl.zeros((BLOCK,), dtype=tl.float32)
    if initial_ptr is not None:
        initial_ptrs = initial_ptr + sequence * initial_strides[0] + head * initial_strides[1]
        initial_ptrs += (offs // D_STATE).to(tl.int64) * initial_strides[2]
        initial_ptrs += (offs % D_STATE).to(tl.int64) * initial_strides[3]
        state = tl.load(initial_ptrs, mask=in_state, other=0.0)
    state_ptrs = states_ptr + (first_row * nheads + head) * (HEADDIM * D_STATE) + offs
    decay_ptr = decays_ptr + first_row * nheads + head
    octaves = tl.load(decay_ptr, mask=count > 1, other=0.0)
    row = nheads.to(tl.int64) * (HEADDIM * D_STATE)
    for index in tl.range(count - 1, num_stages=AHEAD):
        of_next = tl.load(decay_ptr + (index + 1) * nheads, mask=index + 2 < count, other=0.0)
        added = tl.load(state_ptrs + index * row, mask=in_state, other=0.0)
        # What is stored is what entered this segment; of the first, which needs none, the same.
        tl.store(state_ptrs + index * row, state, mask=in_state)
        state = tl.exp2(octaves) * state + added
        octaves = of_next
    tl.store(state_ptrs + (count - 1) * row, state, mask=in_state & (count > 0))
