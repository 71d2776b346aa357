"""The table of chunks of packed sequences: what it holds, and that nothing in it points outside."""

import itertools

import pytest
import torch
from hypothesis import given, strategies as st

from ssd_kernels.interface import Sizes
from ssd_kernels.portable.chunk_table import chunk_table
from ssd_kernels.portable.plan import MAX_CHUNK, Plan
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness

chunk_sizes = st.sampled_from([1, 4, 7, MAX_CHUNK, MAX_CHUNK + 50])
restarts = st.sampled_from([{"carry": "all"}, {"carry": "none"}, {"carry": "all", "every_state": True}])


def table_of(cu_seqlens, seqlen, chunk_size, options):
    """The plan and the table, the latter as lists."""
    sizes = Sizes(batch=1, seqlen=seqlen, nheads=1, headdim=1, ngroups=1, d_state=1, nseqs=len(cu_seqlens) - 1)
    plan = Plan(sizes=sizes, asked_chunk_size=chunk_size, **options)
    table = chunk_table(torch.tensor(cu_seqlens, device=DEVICE), plan)
    return plan, table.chunks.tolist(), table.sequences.tolist()


@given(
    lengths=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 700)), min_size=1, max_size=6).filter(any),
    chunk_size=chunk_sizes, options=restarts,
)  # fmt: skip
def test_the_chunks_are_the_sequences_cut_one_by_one(lengths, chunk_size, options):
    plan, chunks, sequences = table_of([0, *itertools.accumulate(lengths)], sum(lengths), chunk_size, options)
    expected, before, start = [], [[0, 0]], 0
    for sequence, length in enumerate(lengths):
        opened = sequence
        periods = range(0, length, plan.period)
        for period in periods:
            stop = min(period + plan.period, length)
            for first in range(period, stop, plan.chunk_size):
                expected.append([start + first, start + min(first + plan.chunk_size, stop), opened])
                opened = -1
        start += length
        before.append([len(expected), before[-1][1] + len(periods)])
    assert chunks[: len(expected)] == expected
    assert sequences == before
    assert all(first >= stop and opened == -1 for first, stop, opened in chunks[len(expected) :])


@given(
    bounds=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 60), min_size=2, max_size=6),
    seqlen=st.integers(1, 60), chunk_size=chunk_sizes, options=restarts,
)  # fmt: skip
def test_whatever_the_bounds_the_table_stays_within_tokens_and_room(bounds, seqlen, chunk_size, options):
    plan, chunks, sequences = table_of(bounds, seqlen, chunk_size, options)
    assert len(chunks) == plan.nchunks
    for first, stop, opened in chunks:
        assert first >= stop or (first >= 0 and stop <= seqlen and stop - first <= plan.chunk_size)
        assert -1 <= opened < len(bounds) - 1
    numbers = [before for before, _ in sequences]
    assert numbers == sorted(numbers)
    assert 0 <= numbers[0] <= numbers[-1] <= plan.nchunks


@pytest.mark.parametrize("nseqs", [1, 2, 300])
def test_sequences_of_one_token_take_all_the_room_there_is(nseqs):
    _, chunks, sequences = table_of(list(range(nseqs + 1)), nseqs, 16, {"carry": "all"})
    assert len(chunks) == nseqs
    assert [opened for _, _, opened in chunks] == list(range(nseqs))
    assert sequences[-1] == [nseqs, nseqs]
