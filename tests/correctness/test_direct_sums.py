"""The kernel that sums over ranks, as one rank runs it; what the others write is written before it starts."""

import pytest
import torch
import torch.distributed as dist
import triton

from bamba.parallel import direct, direct_step
from bamba.parallel.direct import BLOCK, HEAD, add_kernel
from bamba.parallel.ranks import Ranks
from tests.correctness.budget import assert_within_budget
from tests.correctness.words import as_words, values_of

pytestmark = pytest.mark.correctness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32]
WIDTH, EPS = 2100, 1e-5


class Rank:
    """One of several ranks, with the memory that they all write to; the kernel runs on this one alone."""

    def __init__(self, rank, size, rows, columns):
        self.rank, self.size, self.rows, self.columns = rank, size, rows, columns
        self.blocks = triton.cdiv(columns, BLOCK)
        self.channels = rows * self.blocks + 3  # more than a call needs
        shape = (2, size, self.channels, HEAD + BLOCK)
        self.words = [torch.zeros(shape, dtype=torch.int64, device=DEVICE) for _ in range(size)]
        self.addresses = tuple(words.data_ptr() for words in self.words)
        self.calls = torch.zeros(self.channels, dtype=torch.int32, device=DEVICE)

    def others_write(self, call, partials, squares):
        """What the other ranks write to this one's memory, partials (size, rows, columns), squares (size, rows)."""
        padded = torch.zeros(self.size, self.rows, self.blocks * BLOCK, device=DEVICE)
        padded[..., : self.columns] = partials
        written = torch.cat(
            [torch.zeros(self.size, self.rows * self.blocks, HEAD, device=DEVICE), padded.view(self.size, -1, BLOCK)],
            -1,
        )
        written[..., 0] = squares.repeat_interleave(self.blocks, 1)
        for rank in set(range(self.size)) - {self.rank}:
            self.words[self.rank][call % 2, rank, : self.rows * self.blocks] = as_words(written[rank], call)

    def add(self, partial, residual, gated, span):
        out = torch.full_like(residual, torch.nan)
        y, z = (None, None) if gated is None else gated
        add_kernel[(self.rows * self.blocks,)](
            partial, residual, out, y, z, self.addresses, self.addresses[self.rank], self.calls,
            1 if y is None else y.stride(0), 1 if z is None else z.stride(0), self.rank, self.columns, EPS,
            WIDTH=1 if y is None else WIDTH, SPAN=span, RANKS=self.size, RANKS_2=triton.next_power_of_2(self.size),
            CHANNELS=self.channels, BLOCKS=self.blocks, BLOCK=BLOCK, HEAD=HEAD,
        )  # fmt: skip
        return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [None, 1, 2, 4])
@pytest.mark.parametrize(("size", "rows", "columns"), [(4, 3, BLOCK + 476), (3, 1, 96), (1, 2, BLOCK)])
def test_a_sum_is_that_of_all_ranks_in_every_call(size, rows, columns, span, dtype):
    if span is not None and size % span:
        span = size
    rank = Rank(size - 1, size, rows, columns)
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

    for call in (1, 2, 3):  # the first half of the words again
        partials, residual = draw(size, rows, columns), draw(rows, columns)
        ys, zs = draw(size, rows, 2 * WIDTH)[..., :WIDTH], draw(size, rows, WIDTH)
        u = ys.double() * torch.nn.functional.silu(zs.double())
        squares = u.square().mean(-1)
        rank.others_write(call, partials.float(), squares.float())
        gated = None if span is None else (ys[rank.rank], zs[rank.rank])
        out = rank.add(partials[rank.rank], residual, gated, span or 1)
        scaled = {}
        for kind in (torch.float64, torch.float32):
            scale = torch.ones(size, rows, dtype=kind, device=DEVICE)
            if span is not None:
                own = squares.to(kind)
                scale = (own + EPS).sqrt() / (
                    own.unflatten(0, (-1, span)).mean(1).repeat_interleave(span, 0) + EPS
                ).sqrt()
            scaled[kind] = residual.to(kind) + (scale[..., None] * partials.to(kind)).sum(0)
        assert_within_budget(out, scaled[torch.float64], scaled[torch.float32].to(dtype))
        assert rank.calls.tolist() == [call] * (rows * rank.blocks) + [0] * 3


def test_a_rank_writes_its_part_into_every_ranks_memory_and_nothing_beside():
    rank = Rank(1, 3, 2, 40)
    partial, y, z = (torch.randn(2, columns, device=DEVICE) for columns in (40, WIDTH, WIDTH))
    everyones = partial.expand(3, 2, 40)
    squares = (y * torch.nn.functional.silu(z)).square().mean(-1)
    rank.others_write(1, everyones, squares.expand(3, 2))
    rank.add(partial, torch.zeros(2, 40, device=DEVICE), (y, z), 3)
    for words in rank.words:
        mine = words[1, 1, :2]
        assert torch.equal(mine[:, HEAD : HEAD + 40], as_words(partial, 1))
        values = values_of(mine[:, 0])
        torch.testing.assert_close(values, squares, rtol=16 * torch.finfo(torch.float32).eps, atol=0)
        assert torch.equal(mine[:, 0] >> 32, torch.ones(2, dtype=torch.int64, device=DEVICE))
        assert not words[0].any()
        assert not words[1, 1, 2:].any()


@pytest.fixture
def alone():
    """A group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_gpus_that_do_not_see_each_other_add_by_nccl_and_say_so_once(alone, monkeypatch, recwarn):
    def refuse(*_, **__):
        raise RuntimeError("no peer access")

    monkeypatch.setattr(direct, "DirectSums", refuse)
    ranks = Ranks(alone, vocab_size=8, norm_groups=1, d_model=8)
    for _ in range(2):
        assert ranks.connect(torch.device("cpu")) is None
    assert [str(warning.message) for warning in recwarn] == [
        "ranks add by NCCL: GPUs must see each other's memory, got: no peer access"
    ]


def test_ranks_connect_once(alone, monkeypatch):
    made = []

    def make(group, **sizes):
        made.append(sizes)
        return object()

    monkeypatch.setattr(direct, "DirectSums", make)
    monkeypatch.setattr(direct_step, "DirectStep", make)
    ranks = Ranks(alone, vocab_size=8, norm_groups=1, d_model=96)
    assert ranks.connect(torch.device("cpu")) is ranks.connect(torch.device("cpu")) is not None
    device = torch.device("cpu")
    assert made == [{"rows": 64, "columns": 96, "device": device}, {"columns": 96, "device": device}]
