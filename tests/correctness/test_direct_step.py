"""The kernel that projects one token and sums over ranks, as one rank runs it; the others have written before."""

import pytest
import torch
from torch.nn.functional import silu

from bamba.parallel.direct_step import LEAST, SLOT, DirectStep
from bamba.parallel.words import Words
from ssd_kernels.portable.configs import linear_step_config
from ssd_kernels.portable.pinned import imposed
from tests.correctness.budget import assert_within_budget
from tests.correctness.words import as_words, values_of

pytestmark = pytest.mark.correctness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
EPS = 1e-5
GATED, NORMED = (True, False), (True, False)


class Rank:
    """One of several ranks, with the memory that they all write to; the kernel runs on this one alone."""

    def __init__(self, rank, size, columns, dtype=torch.float32):
        self.tile = linear_step_config(dtype, 1, False).block["BLOCK_O"]
        channels = -(-columns // LEAST)
        self.words = [torch.zeros(2, size, channels, SLOT, dtype=torch.int64, device=DEVICE) for _ in range(size)]
        words = object.__new__(Words)  # without a group
        words.channels, words.width = channels, SLOT
        words.addresses = tuple(words.data_ptr() for words in self.words)
        words.calls = torch.zeros(channels, dtype=torch.int32, device=DEVICE)
        self.step = object.__new__(DirectStep)
        self.step.rank, self.step.size, self.step._words = rank, size, words

    def others_write(self, call, products, squares):
        """What the other ranks write to this one's memory: products (size, columns), squares (size,)."""
        size, columns = products.shape
        tiles = -(-columns // self.tile)
        written = torch.zeros(size, tiles, SLOT, device=DEVICE)
        padded = torch.nn.functional.pad(products.float(), (0, tiles * self.tile - columns))
        written[..., : self.tile] = padded.view(size, tiles, self.tile)
        written[..., -1] = squares.float()[:, None]
        for rank in set(range(size)) - {self.step.rank}:
            self.words[self.step.rank][call % 2, rank, :tiles] = as_words(written[rank], call)


def draw(size, features, columns, dtype, seed=0):
    """x, weights, a residual, gates and weights of a norm, those of all ranks."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = [(size, features), (size, columns, features), (1, columns), (size, 2 * features), (size, features)]
    x, weight, residual, gate, norm = (
        torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for shape in shapes
    )
    return x, weight, residual, gate[:, features:], norm


def parts(x, weight, gate, norm, kind):
    """Each rank's products (size, columns) and its mean of squares (size,)."""
    u = x.to(kind) if gate is None else x.to(kind) * silu(gate.to(kind))
    v = u if norm is None else u * norm.to(kind)
    return (weight.to(kind) @ v[..., None])[..., 0], u.square().mean(-1)


def summed(products, squares, residual, span, *, is_normed):
    if is_normed:
        shared = squares.unflatten(0, (-1, span)).mean(1).repeat_interleave(span, 0)
        products = products * (shared + EPS).rsqrt()[:, None]
    return residual.to(products.dtype) + products.sum(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_gated", GATED)
@pytest.mark.parametrize("is_normed", NORMED)
@pytest.mark.parametrize(
    ("size", "span", "features", "columns"), [(4, 2, 1100, 44), (3, 3, 40, 96), (2, 1, 1024, 8), (1, 1, 300, 20)]
)
def test_a_sum_is_that_of_all_ranks_projections_in_every_call(
    size, span, features, columns, is_normed, is_gated, dtype
):
    rank = Rank(size - 1, size, columns, dtype)
    mine = rank.step.rank
    for call in (1, 2, 3):  # the first half of the words again
        x, weight, residual, gate, norm = draw(size, features, columns, dtype, call)
        gate, norm = gate if is_gated else None, norm if is_normed else None
        true = parts(x, weight, gate, norm, torch.float64)
        rank.others_write(call, *true)
        out = rank.step.project(
            x[mine : mine + 1], weight[mine], residual, gate=None if gate is None else gate[mine : mine + 1],
            norm_weight=None if norm is None else norm[mine], eps=EPS, span=span,
        )  # fmt: skip
        exact = summed(*true, residual, span, is_normed=is_normed)
        plain = summed(*parts(x, weight, gate, norm, torch.float32), residual, span, is_normed=is_normed)
        assert_within_budget(out, exact, plain.to(dtype))
        tiles = -(-columns // rank.tile)
        assert rank.step._words.calls.tolist() == [call] * tiles + [0] * (rank.step._words.channels - tiles)


def test_a_rank_writes_its_outputs_into_every_ranks_memory_and_nothing_beside():
    size, features, columns = 3, 50, 12  # of the second tile a half
    rank = Rank(1, size, columns)
    x, weight, residual, gate, norm = draw(size, features, columns, torch.float32)
    products, squares = parts(x, weight, gate, norm, torch.float64)
    rank.others_write(1, products, squares)
    rank.step.project(x[1:2], weight[1], residual, gate=gate[1:2], norm_weight=norm[1], eps=EPS, span=size)
    tile, tiles = rank.tile, -(-columns // rank.tile)
    for words in rank.words:
        mine = words[1, 1, :tiles]
        values = values_of(mine)
        torch.testing.assert_close(values[:, :tile].flatten()[:columns].double(), products[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values[:, -1].double(), squares[1].expand(tiles), rtol=1e-6, atol=0)
        assert not mine[:, tile:-1].any()
        assert not words[0].any()
        assert not words[1, 1, tiles:].any()


def test_what_the_kernel_cannot_read_is_refused():
    x, weight, residual, gate, norm = draw(1, 64, 16, torch.float32)
    step = Rank(0, 1, 16).step
    for name, given in {
        "x": (x.repeat_interleave(2, 1)[:, ::2], weight[0], residual, gate),
        "weight": (x, weight[0].t().contiguous().t(), residual, gate),
        "residual": (x, weight[0], residual.repeat_interleave(2, 1)[:, ::2], gate),
        "gate": (x, weight[0], residual, gate.repeat_interleave(2, 1)[:, ::2]),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: elements of a row must be adjacent, got a stride of"):
            step.project(*given[:3], gate=given[3], norm_weight=norm[0])
    block = {"BLOCK_B": 1, "BLOCK_O": SLOT, "BLOCK_I": 64, "STAGES": 1}
    with (
        imposed("linear_step", {"block": block, "num_warps": 4}),
        pytest.raises(NotImplementedError, match=rf"BLOCK_O must be in \[{LEAST}, {SLOT}\), got {SLOT}"),
    ):
        step.project(x, weight[0], residual)
