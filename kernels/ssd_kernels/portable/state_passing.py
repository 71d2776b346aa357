"""Stage 4, states from chunk to chunk: h_c = e^{a_last} h_{c−1} + S_c.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060), section 6. Reference: :mod:`ssd_kernels.chunked`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.portable.chunk_table import ChunkTable
from ssd_kernels.portable.configs import STATE_PASSING
from ssd_kernels.portable.plan import Plan


def state_passing(
    states: Tensor, steps: Tensor, initial_state: Tensor | None, chunk_states: Tensor | None, plan: Plan,
    table: ChunkTable | None,
) -> Tensor:  # fmt: skip
    """Turn the states that chunks add into the states that enter them, in place, and return the final state.

    Args:
        states: (batch, nstates, nheads, headdim, d_state) fp32, of the last nstates chunks; or, where only they are
            there, of the last chunks of the packed sequences.
        steps: (batch, nchunks, nheads, 3, chunk_size) fp32, from stage 1.
        initial_state: (batch or nseqs, nheads, headdim, d_state) fp32, any strides; or None.
        chunk_states: (batch, periods, nheads, headdim, d_state) fp32 contiguous, to be filled with the states after
            every period; or None.
        plan: how the call is cut.
        table: where packed sequences are cut.
    """
    sizes = plan.sizes
    final_state = torch.empty(sizes.state_shape, dtype=torch.float32, device=states.device)
    config = STATE_PASSING
    blocks = triton.cdiv(sizes.headdim * sizes.d_state, config.block["BLOCK"])
    _state_passing_kernel[(sizes.state_shape[0] * sizes.nheads * blocks,)](
        states, steps, initial_state, final_state, chunk_states,
        None if table is None else table.sequences,
        (0, 0, 0, 0) if initial_state is None else initial_state.stride(),
        None if chunk_states is None else chunk_states.shape[1],
        plan.nchunks, plan.nstates, plan.chunks_per_period, sizes.nheads,
        RESTART=plan.carry == "none", LAST_ONLY=plan.last_only,
        CHUNK=plan.chunk_size, HEADDIM=sizes.headdim, D_STATE=sizes.d_state, **config.kwargs,
    )  # fmt: skip
    return final_state


@triton.jit(do_not_specialize=["nperiods", "nchunks", "nstates", "chunks_per_period", "nheads"])
def _state_passing_kernel(
    state_ptr, steps_ptr, initial_ptr, final_ptr, chunk_states_ptr, sequences_ptr, initial_strides,
    nperiods, nchunks, nstates, chunks_per_period, nheads,
    RESTART: tl.constexpr, LAST_ONLY: tl.constexpr,
    CHUNK: tl.constexpr, HEADDIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK elements of one head's state, over all chunks. Grid: (batch or nseqs · nheads · blocks,).

    Of a sequence's chunks the first `skipped` have no state here.
    """
    BLOCKS: tl.constexpr = (HEADDIM * D_STATE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    row = (pid // BLOCKS).to(tl.int64)  # sequence · nheads
    sequence = row // nheads
    head = row % nheads
    offs = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    in_state = offs < HEADDIM * D_STATE
    skipped, count = nchunks - nstates, nstates
    first_chunk, first_state = sequence * nchunks, sequence * nstates
    if sequences_ptr is not None:
        first_chunk = tl.load(sequences_ptr + 2 * sequence)
        count = tl.load(sequences_ptr + 2 * sequence + 2) - first_chunk
        first_state, skipped = first_chunk, tl.zeros_like(count)
        if LAST_ONLY:
            skipped = tl.maximum(count - 1, 0)
            first_state, count = sequence, count - skipped

    state = tl.zeros((BLOCK,), dtype=tl.float32)
    if initial_ptr is not None:
        offs_p = (offs // D_STATE).to(tl.int64) * initial_strides[2]
        offs_n = (offs % D_STATE).to(tl.int64) * initial_strides[3]
        base = sequence * initial_strides[0] + head * initial_strides[1]
        # The state enters the first chunk only; where just the last of several independent chunks is here, it does not.
        state = tl.load(initial_ptr + base + offs_p + offs_n, mask=in_state & (skipped == 0), other=0.0)
    for i in range(count):
        chunk = skipped + i
        if RESTART and chunk % chunks_per_period == 0 and chunk > 0:
            state = tl.zeros_like(state)
        state_ptrs = state_ptr + ((first_state + i) * nheads + head) * (HEADDIM * D_STATE) + offs
        added = tl.load(state_ptrs, mask=in_state, other=0.0)
        tl.store(state_ptrs, state, mask=in_state)
        decay = tl.exp(tl.load(steps_ptr + ((first_chunk + chunk) * nheads + head) * (3 * CHUNK) + 2 * CHUNK - 1))
        state = decay * state + added
        if chunk_states_ptr is not None:
            period = chunk // chunks_per_period
            ends = ((chunk + 1) % chunks_per_period == 0) | (i == count - 1)
            if sequences_ptr is not None:
                period += tl.load(sequences_ptr + 2 * sequence + 1)
                ends &= period < nperiods
            else:
                period += sequence * nperiods
            chunk_state_ptrs = chunk_states_ptr + (period * nheads + head) * (HEADDIM * D_STATE) + offs
            tl.store(chunk_state_ptrs, state, mask=in_state & ends)
    tl.store(final_ptr + row * (HEADDIM * D_STATE) + offs, state, mask=in_state)
