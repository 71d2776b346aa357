"""The model under torch.compile: one graph for prompts of all lengths, one for the steps of all positions."""

import copy
import shutil
import warnings

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config, lowering
from torch._inductor.exc import OperatorIssue

from bamba import Bamba, BambaConfig
from ssd_kernels import get_op
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import randomise

pytestmark = pytest.mark.correctness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = BambaConfig.preset("tiny").replace(num_layers=2, attn_layers=(1,))
FEW = 16  # tokens, up to which a model on Triton has operators of its own
LENGTHS = (40, 33, 17, 64, 300)
ITS_OWN, WHOLE = "by the model's compile", "by torch.compile"
KINDS = [
    ("chunked", "all", ITS_OWN),
    ("chunked", "none", ITS_OWN),
    ("triton", "all", ITS_OWN),
    ("chunked", "all", WHOLE),
]

needs_cxx = pytest.mark.skipif(
    DEVICE == "cpu" and shutil.which("g++") is None, reason="inductor compiles C++ for a CPU, and there is no compiler"
)

# Inductor's advice at any compile of any model on a GPU, bf16 ones too: whether products are of TF32 is the caller's.
OF_TF32 = "TensorFloat32 tensor cores"
without_advice = pytest.mark.filterwarnings(f"ignore:{OF_TF32}:UserWarning")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small_model(ssm="chunked", carry="all", dtype=torch.float32, seed=3) -> Bamba:
    model = Bamba(CONFIG, ssm=ssm, carry=carry, device="cpu").eval()
    randomise(model, seed)
    return model.to(DEVICE, dtype)


def tokens(length: int, batch: int = 1, first: int = 0) -> Tensor:
    rows = torch.arange(first, first + length, device=DEVICE) * 5 + torch.arange(batch, device=DEVICE)[:, None]
    return rows % CONFIG.vocab_size


@torch.inference_mode()
def prefill_and_decode(model, length: int, steps: int = 2) -> list[Tensor]:
    """The logits of a prompt and of some steps after it."""
    cache = model.new_cache(batch=1, max_len=512)
    logits = [model(tokens(length + 1)[:, :length], cache)]  # a slice, as prompts often are
    logits += [model(tokens(1, first=length + step), cache) for step in range(steps)]
    assert cache.host_lengths == cache.lengths.tolist() == [length + steps]
    return logits


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("ssm", "carry", "how"), KINDS)
def test_all_prompts_take_one_graph_and_all_steps_another(ssm, carry, how):
    model = small_model(ssm, carry)
    lengths = LENGTHS[:2] if ssm == "triton" and DEVICE == "cpu" else LENGTHS  # in Triton's interpreter
    expected = {length: prefill_and_decode(model, length) for length in lengths}
    counter = CompileCounterWithBackend("eager")
    if how == ITS_OWN:
        model.compile(backend=counter, fullgraph=True)
    else:
        model.forward = torch.compile(model.forward, backend=counter, fullgraph=True, dynamic=True)
    assert_equal(prefill_and_decode(model, lengths[0]), expected[lengths[0]])
    assert counter.frame_count == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in lengths[1:]:
            assert_equal(prefill_and_decode(model, length), expected[length])
    assert not counters["graph_break"]


def test_torch_compile_left_to_itself_takes_two_lengths_to_see_that_they_vary():
    model = small_model()
    expected = {length: prefill_and_decode(model, length) for length in LENGTHS}
    counter = CompileCounterWithBackend("eager")
    model.forward = torch.compile(model.forward, backend=counter, fullgraph=True)
    frames = []
    for length in LENGTHS:
        assert_equal(prefill_and_decode(model, length), expected[length])
        frames.append(counter.frame_count)
    assert frames == [2, 3, 3, 3, 3], "a prompt and the steps, then prompts of any length"


@pytest.mark.parametrize("ssm", ["chunked", "triton"])
def test_few_tokens_take_a_graph_more_and_one_token_another(ssm):
    model = small_model(ssm)
    lengths = (20, FEW, 2, 1)
    expected = {length: prefill_and_decode(model, length, steps=1) for length in lengths}
    counter = CompileCounterWithBackend("eager")
    model.compile(backend=counter, fullgraph=True)
    frames = []
    for length in lengths:
        assert_equal(prefill_and_decode(model, length, steps=1), expected[length])
        frames.append(counter.frame_count)
    few = 1 if ssm == "triton" else 0
    assert frames == [2, *[2 + few] * 3], "a prompt of one token is a step"


@torch.inference_mode()
def test_uncached_and_continued_prompts_take_a_graph_each():
    model, counter = small_model(), CompileCounterWithBackend("eager")

    def calls(length):
        cache = model.new_cache(batch=2, max_len=512)
        yield model(tokens(length, 2), cache, logits_to_keep=1)
        for more in (length // 3, length // 4):
            yield model(tokens(more, 2, first=length), cache, logits_to_keep=1)
        yield model(tokens(length, 2))

    expected = {length: list(calls(length)) for length in LENGTHS}
    model.compile(backend=counter, fullgraph=True)
    assert_equal(list(calls(LENGTHS[0])), expected[LENGTHS[0]])
    assert counter.frame_count == 3
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in LENGTHS[1:]:
            assert_equal(list(calls(length)), expected[length])


@torch.inference_mode()
def test_padded_and_packed_calls_and_refusals_are_those_of_the_model_as_it_is():
    model = small_model()
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :7] = 0
    bounds = torch.tensor([0, 5, 20])
    expected = [model(tokens(20, 2), attention_mask=mask), model(tokens(20), cu_seqlens=bounds)]
    model.compile(backend="eager", fullgraph=True)
    assert_equal([model(tokens(20, 2), attention_mask=mask), model(tokens(20), cu_seqlens=bounds)], expected)
    cache = model.new_cache(batch=1, max_len=21)
    model(tokens(21), cache)
    with pytest.raises(ValueError, match="row 0 holds 21 of at most max_len 21 tokens, no room for 1 more"):
        model(tokens(1), cache)
    with pytest.raises(ValueError, match=r"cache: made for a batch of 1, got a batch of 2"):
        model(tokens(3, 2), cache)
    assert cache.host_lengths == [21]


@torch.inference_mode()
def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    model, counter = small_model(), CompileCounterWithBackend("eager")
    model.compile(backend=counter, fullgraph=True)
    model(tokens(20))
    other, expected = copy.deepcopy(model), small_model(seed=4)
    other.load_state_dict(expected.state_dict())
    assert torch.equal(other(tokens(20)), expected(tokens(20)))
    assert counter.frame_count > 0


@pytest.fixture
def spelt_out(monkeypatch) -> list[str]:
    """The operators whose arguments inductor writes out, nothing of which is kept or was known before."""
    for known in [each for each in lowering.lowerings if str(each).startswith("ssd_kernels.")]:
        monkeypatch.delitem(lowering.lowerings, known)
    found: list[str] = []

    def note(target, *_):
        found.append(str(target))
        return ""

    monkeypatch.setattr(OperatorIssue, "operator_str", staticmethod(note))
    with inductor_config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False):
        yield found


@without_advice
@pytest.mark.parametrize("name", ["causal_conv1d_in_blocks", "ssd_chunked", "rms_norm"])
@torch.inference_mode()
def test_inductor_knows_an_operator_that_it_first_meets_deep_in_a_graph(name, spelt_out):
    """Before torch 2.13 it would write out 2**30 products here, and never come to an end."""
    rms_norm = get_op("rms_norm", "triton")
    ssd, causal_conv1d = get_op("ssd", "chunked"), get_op("causal_conv1d", "torch")
    x, weight = torch.rand(16, 16, device=DEVICE), torch.rand(16, 16, device=DEVICE) / 16
    dt, A = torch.rand(1, 16, 4, device=DEVICE), -torch.rand(4, device=DEVICE)
    B = torch.rand(1, 16, 2, 4, device=DEVICE)
    calls = {
        "causal_conv1d_in_blocks": lambda hidden: causal_conv1d(hidden[None], weight[:, :4]),
        "ssd_chunked": lambda hidden: ssd(hidden.view(1, 16, 4, 4), dt, A, B, B, chunk_size=8),
        "rms_norm": lambda hidden: rms_norm(hidden, weight[0], eps=1e-5),
    }

    def deep(hidden):
        for _ in range(30):
            hidden = torch.addmm(hidden, hidden, weight)
        return calls[name](hidden)

    torch.testing.assert_close(torch.compile(deep, fullgraph=True)(x), deep(x))
    assert f"ssd_kernels.{name}.default" in map(str, lowering.lowerings)
    assert spelt_out == []


@needs_cxx
@without_advice
def test_what_inductor_makes_of_the_model_is_as_exact_as_the_model(spelt_out):
    model = small_model("triton" if DEVICE == "cuda" else "chunked")
    exact = small_model("recurrent", dtype=torch.float64)
    truth = {length: prefill_and_decode(exact, length) for length in LENGTHS[:2]}
    eager = {length: prefill_and_decode(model, length) for length in LENGTHS[:2]}
    model.compile(fullgraph=True)
    for length in LENGTHS[:2]:
        for actual, true, own in zip(prefill_and_decode(model, length), truth[length], eager[length], strict=True):
            assert_within_budget(actual, true, own, what=f"logits after {length} tokens")
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    assert spelt_out == [], "torch's operators are known, attention's too"


@pytest.mark.skipif(DEVICE == "cpu", reason="replays CUDA graphs")
def test_with_cuda_graphs_a_step_is_recorded_once_and_stays_right():
    model = small_model("triton", dtype=torch.bfloat16)
    expected = prefill_and_decode(model, 40, steps=12)
    exact = small_model("recurrent", dtype=torch.float64)
    truth = prefill_and_decode(exact, 40, steps=12)
    # Not as errors: torch records an empty graph of its own, and catches the warning of it unless it is raised.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.compile(fullgraph=True, mode="reduce-overhead")
        for _ in range(2):  # and with another cache
            with torch.inference_mode():
                cache = model.new_cache(batch=1, max_len=512)
                actual = [model(tokens(40), cache).clone()]
                actual += [model(tokens(1, first=40 + step), cache).clone() for step in range(12)]
            for one, true, own in zip(actual, truth, expected, strict=True):
                assert_within_budget(one, true, own, what="logits")
    assert [str(each.message) for each in told if not str(each.message).startswith(OF_TF32)] == []
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert counters["inductor"]["cudagraph_recorded_non_static_inputs"] <= 8


def test_a_gradient_through_the_compiled_model_is_that_of_the_model():
    model = small_model()
    model(tokens(20)).logsumexp(dim=-1).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.compile(backend="aot_eager", fullgraph=True)
    model(tokens(20)).logsumexp(dim=-1).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("packed", [False, True])
def test_the_operators_that_hide_loops_are_what_they_say(packed):
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE)

    nseqs, bounds = (2, torch.tensor([0, 3, 20], device=DEVICE)) if packed else (1, None)
    x, dt, A, B, C = normal(1, 20, 4, 8), normal(1, 20, 4), -normal(4).exp(), normal(1, 20, 2, 4), normal(1, 20, 2, 4)
    ssd, causal_conv1d = get_op("ssd", "chunked"), get_op("causal_conv1d", "torch")  # which define the operators
    scan = (x, dt, A, B, C, normal(4), None, normal(nseqs, 4, 8, 4), 8, True, 0.0, 1.0, bounds, "all")
    torch.library.opcheck(torch.ops.ssd_kernels.ssd_chunked, scan)
    y, state = torch.ops.ssd_kernels.ssd_chunked(*scan)
    options = {"D": scan[5], "initial_state": scan[7], "cu_seqlens": bounds, "dt_limit": (0.0, 1.0)}
    expected = ssd(x, dt, A, B, C, chunk_size=8, dt_softplus=True, return_final_state=True, **options)
    assert_equal([y, state], list(expected))

    conv = (normal(1, 20, 6), normal(6, 4), normal(6), normal(nseqs, 6, 3), bounds, "silu")
    torch.library.opcheck(torch.ops.ssd_kernels.causal_conv1d_in_blocks, conv)
    expected = causal_conv1d(
        *conv[:3], initial_window=conv[3], cu_seqlens=bounds, activation="silu", return_final_window=True
    )
    assert_equal(list(torch.ops.ssd_kernels.causal_conv1d_in_blocks(*conv)), list(expected))
