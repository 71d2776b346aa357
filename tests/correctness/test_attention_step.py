"""One token of attention to a cache, against torch's attention over the tokens held."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, strategies as st

from ssd_kernels import get_op
from ssd_kernels.portable.configs import attention_step_config
from tests.correctness.operator_problems import Filler, assert_right, implementations, in_fp32, poisoned_memory
from tests.correctness.problems import DEVICE, covering

pytestmark = [pytest.mark.correctness, pytest.mark.usefixtures(poisoned_memory.__name__)]


@dataclass(frozen=True, kw_only=True)
class AttentionProblem:
    """The structure of one call of attention_step; each sequence holds as many tokens as `lengths` says."""

    lengths: tuple[int, ...]
    max_len: int
    nheads_kv: int
    group: int
    headdim: int
    half: int  # of the elements that are rotated
    strided: bool = False
    index_dtype: torch.dtype = torch.int64
    seed: int = 0

    def traits(self):
        yield "one_part" if self.max_len <= self.span else "several_parts"
        yield "full" if self.max_len - 1 in self.lengths else "room"
        if 0 in self.lengths:
            yield "empty"
        if self.group > 1:
            yield "grouped"
        if 2 * self.half < self.headdim:
            yield "partly_rotated"
        if self.strided:
            yield "strided"

    @property
    def span(self):
        return attention_step_config(torch.float32, self.max_len, len(self.lengths) * self.nheads_kv).block["SPAN"]

    def inputs(self, dtype=torch.float32):
        fill, batch = Filler(self.seed, dtype, self.strided), len(self.lengths)
        lengths = torch.tensor(self.lengths, dtype=self.index_dtype, device=DEVICE)
        angles = fill.normal(batch, self.half, dtype=torch.promote_types(dtype, torch.float32)) * 3
        cache = Filler(self.seed + 1, dtype)
        keys, values = (cache.normal(batch, self.nheads_kv, self.max_len, self.headdim) for _ in range(2))
        held = torch.arange(self.max_len, device=DEVICE) < lengths[:, None]
        for memory in (keys, values):  # nobody has written there
            memory.masked_fill_(~held[:, None, :, None], float("nan"))
        return {
            "q": fill.normal(batch, self.nheads_kv * self.group, self.headdim),
            "k": fill.normal(batch, self.nheads_kv, self.headdim),
            "v": fill.normal(batch, self.nheads_kv, self.headdim),
            "cos": angles.cos(),
            "sin": angles.sin(),
            "keys": keys,
            "values": values,
            "lengths": lengths,
        }

    def but(self, **changes):
        return replace(self, **changes)


@st.composite
def attention_problems(draw):
    max_len = draw(st.one_of(st.sampled_from([1, 128, 129]), st.integers(1, 300)))
    headdim = draw(st.sampled_from([8, 16, 24, 64]))
    return AttentionProblem(
        lengths=tuple(draw(st.lists(st.integers(0, max_len - 1), min_size=1, max_size=3))),
        max_len=max_len,
        nheads_kv=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 2, 4])),
        headdim=headdim,
        half=draw(st.integers(0, headdim // 2)),
        strided=draw(st.booleans()),
        index_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 2**16)),
    )


def attended(inputs, dtype):
    """Row by row, of the tokens held and the new one: out, and the new key."""
    outs, keys = [], []
    for row, length in enumerate(inputs["lengths"].tolist()):
        q, k, v = (inputs[name][row].to(dtype) for name in ("q", "k", "v"))
        cos, sin = (inputs[name][row].to(dtype) for name in ("cos", "sin"))
        q, k = turned(q, cos, sin).to(inputs["q"].dtype).to(dtype), turned(k, cos, sin).to(inputs["q"].dtype).to(dtype)
        held = [inputs[name][row, :, :length].to(dtype) for name in ("keys", "values")]
        all_keys, all_values = (torch.cat([old, new[:, None]], dim=1) for old, new in zip(held, (k, v), strict=True))
        outs.append(F.scaled_dot_product_attention(q[:, None], all_keys, all_values, enable_gqa=True)[:, 0])
        keys.append(k)
    return torch.stack(outs), torch.stack(keys)


def turned(x, cos, sin):
    """As complex numbers: the first half the real, the second the imaginary parts."""
    half = cos.shape[-1]
    z = torch.complex(x[:, :half].double(), x[:, half : 2 * half].double()) * torch.complex(cos.double(), sin.double())
    return torch.cat([z.real.to(x.dtype), z.imag.to(x.dtype), x[:, 2 * half :]], dim=-1)


PROBLEM = AttentionProblem(lengths=(130, 0, 299), max_len=300, nheads_kv=2, group=2, headdim=16, half=4)


@implementations
@covering("one_part", "several_parts", "full", "room", "empty", "grouped", "partly_rotated", "strided")
@given(problem=attention_problems())
@example(problem=PROBLEM)
@example(problem=PROBLEM.but(strided=True, half=8, group=1))
@example(problem=PROBLEM.but(max_len=1, lengths=(0,), half=0))
def test_equals_attention_over_the_tokens_held(name, dtype, problem):
    inputs = problem.inputs(dtype)
    before = {memory: inputs[memory].clone() for memory in ("keys", "values")}
    exact, new_keys = attended(inputs, torch.float64)
    by_torch, _ = attended(inputs, dtype)
    out = get_op("attention_step", name)(**inputs)
    assert (out.dtype, out.shape) == (dtype, inputs["q"].shape)
    assert out.is_contiguous()
    assert_right(out, exact, by_torch, what="out")
    for row, length in enumerate(problem.lengths):
        assert_right(inputs["keys"][row, :, length], new_keys[row], new_keys[row].to(dtype), what="key")
        assert torch.equal(inputs["values"][row, :, length], inputs["v"][row])
        for memory, old in before.items():
            others = torch.arange(problem.max_len, device=DEVICE) != length
            assert torch.equal(inputs[memory][row][:, others].nan_to_num(7.0), old[row][:, others].nan_to_num(7.0))


def test_of_a_sequence_without_room_nothing_is_written_and_its_output_is_nan():
    inputs = PROBLEM.inputs()
    inputs["lengths"][1] = 300
    before = inputs["keys"].clone()
    out = get_op("attention_step", "triton")(**inputs)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()
    assert torch.equal(inputs["keys"][1].nan_to_num(7.0), before[1].nan_to_num(7.0))


def test_torch_names_a_sequence_without_room():
    inputs = PROBLEM.inputs()
    inputs["lengths"][1] = 300
    with pytest.raises(ValueError, match=r"lengths must be in \[0, max_len 300\), got \[130, 300, 299\]"):
        get_op("attention_step", "torch")(**inputs)


@in_fp32
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (3, 3, 16)}, r"k must have shape .* = \(3, 2, 16\), got \(3, 3, 16\)"),
        ({"keys": (3, 3, 300, 16)}, "keys: nheads_kv must divide nheads 4, got 3"),
        ({"values": (3, 2, 299, 16)}, r"values must have shape .* = \(3, 2, 300, 16\), got \(3, 2, 299, 16\)"),
        ({"cos": (3, 9), "sin": (3, 9)}, "cos: rotary_dim must be at most headdim 16, got 18"),
        ({"sin": (3, 3)}, r"sin must have shape .* = \(3, 4\), got \(3, 3\)"),
        ({"q": (3, 64)}, r"q must have 3 dimensions \(batch, nheads, headdim\), got shape \(3, 64\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, change, message):
    made = {argument: torch.zeros(shape, device=DEVICE) for argument, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        get_op("attention_step", name)(**{**PROBLEM.inputs(), **made})


@pytest.mark.parametrize(
    ("max_len", "heads", "span"),
    [(1280, 128, 256), (1280, 8, 64), (32800, 8, 512), (1280, 512, 2048), (640, 2048, 1024), (1, 8, 64)],
)
def test_parts_fill_a_gpu_and_none_is_much_longer_than_another(max_len, heads, span):
    assert attention_step_config(torch.bfloat16, max_len, heads).block["SPAN"] == span
