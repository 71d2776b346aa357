"""The table of chunks and segments of packed sequences: what it holds, and that nothing in it points outside."""

import itertools

import pytest
import torch
from hypothesis import given, strategies as st

from ssd_kernels.interface import Sizes
from ssd_kernels.portable import plan as plan_module
from ssd_kernels.portable.chunk_table import chunk_table
from ssd_kernels.portable.configs import MAX_CHUNK, SegmentSizes
from ssd_kernels.portable.plan import Plan
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness

SEGMENT = 150  # tokens; so that a sequence has several

chunk_sizes = st.sampled_from([1, 4, 7, MAX_CHUNK, MAX_CHUNK + 50])
restarts = st.sampled_from([{"carry": "all"}, {"carry": "none"}, {"carry": "all", "every_state": True}])


CUTS = {
    "all short": SegmentSizes((), (SEGMENT,)),
    "of long ones short": SegmentSizes((400,), (1000, SEGMENT)),
    "by length": SegmentSizes((80, 400), (1000, 2 * SEGMENT, SEGMENT)),
}


@pytest.fixture(autouse=True, params=CUTS.values(), ids=CUTS)
def short_segments(request, monkeypatch):
    """Sequences of several segments: all; or those of some length, while others are walked whole."""
    monkeypatch.setattr(plan_module, "segment_sizes", lambda *_: request.param)


def table_of(cu_seqlens, seqlen, chunk_size, options):
    """The plan and the table, the latter as lists."""
    sizes = Sizes(batch=1, seqlen=seqlen, nheads=1, headdim=1, ngroups=1, d_state=1, nseqs=len(cu_seqlens) - 1)
    plan = Plan(sizes=sizes, asked_chunk_size=chunk_size, **options)
    table = chunk_table(torch.tensor(cu_seqlens, device=DEVICE), plan)
    return plan, *(entries.tolist() for entries in table)


def cut(start, stop, size):
    """The pieces of a range, of `size` each but for the last."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


@given(
    lengths=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 700)), min_size=1, max_size=6).filter(any),
    chunk_size=chunk_sizes, options=restarts,
)  # fmt: skip
def test_the_chunks_and_segments_are_the_sequences_cut_one_by_one(lengths, chunk_size, options):
    cu_seqlens = [0, *itertools.accumulate(lengths)]
    plan, chunks, segments, sequences = table_of(cu_seqlens, sum(lengths), chunk_size, options)
    expected_chunks, expected_segments, before, periods = [], [], [0], 0
    for sequence, (start, stop) in enumerate(itertools.pairwise(cu_seqlens)):
        chunks_before, of_sequence = len(expected_chunks), cut(start, stop, plan.period)
        for period in of_sequence:
            expected_chunks += cut(*period, plan.chunk_size)
        for first, end in cut(start, stop, plan.segment_sizes.of(stop - start)) or [(start, start)]:
            edges = (first == start) + 2 * (end == stop)
            chunk = chunks_before + sum(chunk_stop <= first for _, chunk_stop in expected_chunks[chunks_before:])
            at = [sequence, first, end, chunk, periods + sum(period_stop <= first for _, period_stop in of_sequence)]
            expected_segments.append([*at, edges])
        periods += len(of_sequence)
        before.append(len(expected_segments))
    assert chunks[: len(expected_chunks)] == [list(chunk) for chunk in expected_chunks]
    assert all(first >= stop for first, stop in chunks[len(expected_chunks) :])
    assert segments[: len(expected_segments)] == expected_segments
    assert all(segment[0] == -1 for segment in segments[len(expected_segments) :])
    assert sequences == before


@given(
    bounds=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 60), min_size=2, max_size=6),
    seqlen=st.integers(1, 60), chunk_size=chunk_sizes, options=restarts,
)  # fmt: skip
def test_whatever_the_bounds_the_table_stays_within_tokens_and_room(bounds, seqlen, chunk_size, options):
    plan, chunks, segments, sequences = table_of(bounds, seqlen, chunk_size, options)
    assert len(chunks) == plan.nchunks
    assert all(first >= stop or (first >= 0 and stop <= seqlen) for first, stop in chunks)
    assert all(stop - first <= plan.chunk_size for first, stop in chunks)
    assert len(segments) == plan.nsegments
    for sequence, first, stop, chunk, period, _ in segments:
        assert -1 <= sequence < len(bounds) - 1
        if sequence >= 0:
            assert 0 <= first <= stop <= seqlen
            assert stop - first <= plan.segment
            needed = sum(len(cut(*each, plan.chunk_size)) for each in cut(first, stop, plan.period))
            assert 0 <= chunk <= chunk + needed <= plan.nchunks
            assert period >= 0
    assert sequences == sorted(sequences)
    assert 0 <= sequences[0] <= sequences[-1] <= plan.nsegments


@pytest.mark.parametrize("nseqs", [1, 2, 300])
def test_sequences_of_one_token_take_all_the_room_there_is(nseqs):
    _, chunks, segments, sequences = table_of(list(range(nseqs + 1)), nseqs, 16, {"carry": "all"})
    assert len(chunks) == nseqs
    assert [segment[0] for segment in segments[:nseqs]] == list(range(nseqs))
    assert sequences == list(range(nseqs + 1))
