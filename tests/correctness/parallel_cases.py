"""What a group of gloo processes computes for `test_parallel`: each case by heads among ranks, and by tokens.

A process computes all cases, so that it is started once; the first one's results are what the tests look at.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import linear, silu

from bamba import Bamba, BambaConfig, load_checkpoint, save_checkpoint, slices
from bamba.parallel.part import Part
from bamba.parallel.ranks import Ranks, gather
from bamba.parallel.sequence import part_of, prefill
from bamba.parallel.tensor import tensor_parallel
from tests.correctness.model_strategies import randomise

CASES = 4
SEEDS = range(2, 2 + CASES)  # among which is all that may go wrong, see test_parallel
DECODED = 3


@dataclass(frozen=True)
class Case:
    """One problem; the whole model is that of `config` with the weights of `seed`."""

    config: BambaConfig
    carry: str
    batch: int
    prompt: int
    seed: int

    def model(self, dtype=torch.float32):
        model = Bamba(self.config, ssm="chunked", carry=self.carry, dtype=torch.float32).eval()
        randomise(model, self.seed)
        return model.to(dtype)

    def token_ids(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.config.vocab_size, (self.batch, self.prompt + DECODED), generator=generator)

    def logits(self, model):
        """Of all tokens: of the prompt at once, then of one token after the other."""
        token_ids, cache = self.token_ids(), model.new_cache(batch=self.batch, max_len=self.prompt + DECODED)
        with torch.inference_mode():
            return torch.cat([model(token_ids[:, : self.prompt], cache), *self.decoded(model, cache)], dim=1)

    def decoded(self, model, cache):
        return [model(token_ids, cache) for token_ids in self.token_ids()[:, self.prompt :].split(1, dim=1)]


def draw(seed, size):
    """A small model whose heads divide among `size` ranks, and nothing else needs to."""
    choose = random.Random(seed).choice
    nheads, attn_nheads = size * choose([1, 2, 3]), size * choose([1, 2, 3])
    norm_groups = [groups for groups in divisors(nheads) if groups % size == 0 or size % groups == 0]
    chunk_size = choose([4, 8])
    config = BambaConfig(
        vocab_size=choose([61, 64]), num_layers=3, d_model=nheads * 8, d_mlp=choose([18, 32]), attn_layers=(1,),
        attn_nheads=attn_nheads, attn_nheads_kv=choose(divisors(attn_nheads)), attn_headdim=8, attn_rotary_dim=4,
        attn_rope_theta=100.0, ssm_nheads=nheads, ssm_headdim=8, ssm_ngroups=choose(divisors(nheads)), ssm_d_state=8,
        ssm_d_conv=choose([2, 4]), ssm_chunk_size=chunk_size, ssm_norm_groups=choose(norm_groups),
        attn_bias=choose([True, False]), mlp_bias=choose([True, False]), ssm_conv_bias=choose([True, False]),
        ssm_proj_bias=choose([True, False]), tie_embeddings=choose([True, False]),
    )  # fmt: skip
    return Case(
        config=config, carry=choose(["all", "none"]), batch=choose([1, 2]),
        prompt=choose([(size - 1) * chunk_size + 1, size * chunk_size, 37]), seed=seed,
    )  # fmt: skip


def divisors(n):
    return [divisor for divisor in range(1, n + 1) if n % divisor == 0]


def cases(size):
    """Drawn ones, and what must be among them."""
    drawn = [draw(seed, size) for seed in SEEDS]
    first = drawn[0]
    spanning = first.config.replace(ssm_norm_groups=1, ssm_ngroups=1, ssm_proj_bias=False, attn_nheads_kv=1)
    yield from drawn
    yield replace(first, config=spanning, carry="all")
    yield replace(first, config=spanning, carry="none", prompt=37)
    yield replace(first, config=spanning.replace(ssm_proj_bias=True, tie_embeddings=True), carry="all", prompt=size)


def run(rank, folder):
    """One process of four: results of all cases to `folder`, by the first rank; those of two ranks by the first two."""
    torch.set_num_threads(1)
    slices.SLICE = 16  # so that the prompts are several
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    meshes = {
        2: init_device_mesh("cpu", (2, 2), mesh_dim_names=("pair", "rank"))["rank"],
        4: init_device_mesh("cpu", (4,)),
    }
    results = {
        size: [compute(case, mesh, Path(folder)) for case in cases(size)]
        for size, mesh in meshes.items()
        if rank < size
    }
    if rank == 0:
        torch.save(results, Path(folder, "results"))
    dist.barrier()
    dist.destroy_process_group()


def compute(case, mesh, folder):
    whole = case.model()
    part = case.model()
    tensor_parallel(part, mesh)
    result = {"tensor": case.logits(part)}
    result["same on all ranks"] = same(result["tensor"], mesh)
    with adding_directly():
        result["tensor, added directly"] = case.logits(part)
    result |= by_tokens(case, whole, mesh)
    if case.config.ssm_norm_groups == case.config.ssm_ngroups:  # which a checkpoint has one field for
        result["loaded"] = loads(whole, part, mesh, folder)
    result["refusals"] = list(refusals(part, mesh, folder))
    return result


def by_tokens(case, whole, mesh):
    """The logits of all tokens of the prompt, each by its rank, of those after it by each rank, and the last alone."""
    prompt = case.token_ids()[:, : case.prompt]
    cache = whole.new_cache(batch=case.batch, max_len=case.prompt + DECODED)
    with listening() as told:
        own = prefill(whole, prompt, cache, mesh=mesh, own_logits=True)
    everyones = [None] * mesh.size()
    dist.all_gather_object(everyones, own, group=mesh.get_group())
    with torch.inference_mode():
        after = torch.cat(case.decoded(whole, cache), dim=1)
    return {
        "sequence": torch.cat([*everyones, after], dim=1),
        "same after": same(after, mesh),
        "last": prefill(whole, prompt, mesh=mesh),
        "bounds": part_of(whole, case.prompt, mesh).bounds,
        "told": told,
    }


@contextmanager
def listening() -> Iterator[list[torch.Size]]:
    """The shapes of what this rank tells the next one meanwhile."""
    told, send = [], Part.send

    def noted(self, message):
        told.append(message.shape)
        send(self, message)

    with patch.object(Part, "send", noted):
        yield told


def same(tensor, mesh):
    """Whether all ranks have the same bits."""
    return all(torch.equal(each, tensor) for each in gather(tensor, mesh.get_group()))


def loads(whole, part, mesh, folder):
    """Whether a checkpoint of the whole, read by this rank, is the part that it holds."""
    if dist.get_rank() == 0:
        save_checkpoint(whole, folder, overwrite=True)
    dist.barrier(mesh.get_group())
    loaded = load_checkpoint(folder, ssm=whole.ssm, carry=whole.carry, mesh=mesh)
    dist.barrier(mesh.get_group())
    pairs = zip(loaded.named_parameters(), part.named_parameters(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def refusals(part, mesh, folder):
    for call in (
        lambda: tensor_parallel(part, mesh),
        lambda: save_checkpoint(part, folder, overwrite=True),
        lambda: prefill(part, torch.ones(1, 8, dtype=torch.int64), mesh=mesh),
        part.compile,
    ):
        try:
            call()
        except (ValueError, NotImplementedError) as error:
            yield str(error)


@contextmanager
def adding_directly() -> Iterator[None]:
    """Let ranks do what they do on GPUs that write into each other's memory, by gloo."""

    def add(self, partial, residual, *, gated=None, eps=0.0):
        total = gather(partial, self.group)
        if gated is not None and self.norm_span > 1:
            y, z = gated
            squares, shared = means(self, y * silu(z))
            total = total * (squares + eps).sqrt() / (shared + eps).sqrt()
        return residual + total.sum(0)

    def project(self, x, weight, residual, *, gate=None, norm_weight=None, eps=0.0):
        u = x if gate is None else x * silu(gate)
        if norm_weight is None:
            return residual + gather(linear(u, weight), self.group).sum(0)
        _, shared = means(self, u)
        return residual + (gather(linear(u * norm_weight, weight), self.group) / (shared + eps).sqrt()).sum(0)

    def means(ranks, u):
        squares = gather(u.square().mean(-1, keepdim=True), ranks.group)
        return squares, squares.unflatten(0, (-1, ranks.norm_span)).mean(1).repeat_interleave(ranks.norm_span, 0)

    with patch.multiple(Ranks, add=add, project=project, adds_directly=lambda *_: True):
        yield
