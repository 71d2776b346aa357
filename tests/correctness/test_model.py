from collections import Counter

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import BambaConfig as TransformersConfig, BambaForCausalLM

from bamba import Bamba, BambaConfig
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import Case, cases, own_error, true_logits

pytestmark = pytest.mark.correctness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = BambaConfig.preset("tiny")
STRUCTURE = {
    "attention",
    "grouped attention heads",
    "mamba",
    "several SSM groups",
    "several chunks",
    "ragged last chunk",
    "several sequences",
    "decode across a chunk",
    "clamped steps",
}


@torch.inference_mode()
def prefill_then_decode(model: Bamba, token_ids: Tensor, prompt: int) -> Tensor:
    """The logits of all tokens, the first `prompt` in one call and the others one at a time."""
    batch, seqlen = token_ids.shape
    cache = model.new_cache(batch=batch, max_len=seqlen)
    parts = [model(token_ids[:, :prompt], cache)]
    parts += [model(token_ids[:, t : t + 1], cache) for t in range(prompt, seqlen)]
    return torch.cat(parts, dim=1)


def transformers_error(reference: BambaForCausalLM, token_ids: Tensor) -> Tensor:
    return own_error(reference, lambda model: model(token_ids).logits, lambda model: true_logits(model, token_ids))


@torch.inference_mode()
def test_logits_are_those_of_transformers():
    seen = Counter()

    @given(cases())
    def check(case: Case):
        seen.update(case.features)
        token_ids = case.token_ids()
        reference = case.reference()
        truth = true_logits(reference, token_ids)
        by_torch = truth + transformers_error(reference, token_ids)
        model = case.ours(reference)
        assert_within_budget(model(token_ids), truth, by_torch, what="logits")
        assert_within_budget(prefill_then_decode(model, token_ids, case.prompt), truth, by_torch, what="cached logits")

    check()
    assert set(seen) >= STRUCTURE, "the drawn cases no longer cover what this test is for"


@torch.inference_mode()
@pytest.mark.parametrize("ssm", ["recurrent", "chunked"])
def test_logits_in_fp64_are_those_of_transformers_in_fp64(ssm):
    seen = Counter()

    @given(cases())
    def check(case: Case):
        seen.update(case.features)
        token_ids = case.token_ids()
        reference = case.reference()
        truth = true_logits(reference, token_ids)
        # Nothing shows what transformers loses in fp64; rounding scales with the last place, so fp32 tells.
        finer = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        by_torch = truth + finer * transformers_error(reference, token_ids)
        model = case.ours(reference, torch.float64, ssm=ssm)
        assert_within_budget(model(token_ids), truth, by_torch, what="logits")
        assert_within_budget(prefill_then_decode(model, token_ids, case.prompt), truth, by_torch, what="cached logits")

    check()
    assert set(seen) >= STRUCTURE, "the drawn cases no longer cover what this test is for"


@torch.inference_mode()
def test_in_bfloat16_logits_are_as_close_to_the_truth_as_those_of_transformers():
    seen = Counter()

    @given(cases())
    def check(case: Case):
        seen.update(case.features)
        token_ids = case.token_ids()
        reference = case.reference(torch.bfloat16)
        truth = true_logits(reference, token_ids)
        by_torch = truth + transformers_error(reference, token_ids)
        model = case.ours(reference, torch.bfloat16)
        assert_within_budget(model(token_ids), truth, by_torch, what="logits")
        assert_within_budget(prefill_then_decode(model, token_ids, case.prompt), truth, by_torch, what="cached logits")

    check()
    assert set(seen) >= STRUCTURE, "the drawn cases no longer cover what this test is for"


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
def test_prefill_and_decode_agree_with_the_whole_forward(carry):
    seen = Counter()

    @given(cases())
    def check(case: Case):
        seen.update(case.features)
        token_ids = case.token_ids()

        def exact(reference: BambaForCausalLM) -> Tensor:
            return case.ours(reference, torch.float64, ssm="recurrent", carry=carry)(token_ids)

        def whole(reference: BambaForCausalLM) -> Tensor:
            return case.ours(reference, carry=carry)(token_ids)

        reference = case.reference()
        truth = exact(reference)
        cached = prefill_then_decode(case.ours(reference, carry=carry), token_ids, case.prompt)
        assert_within_budget(cached, truth, truth + own_error(reference, whole, exact), what="cached logits")

    check()
    assert set(seen) >= STRUCTURE, "the drawn cases no longer cover what this test is for"


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies bfloat16 wrongly"),
        ),
    ],
)
def test_on_triton_kernels_the_model_is_as_exact_as_on_torch(dtype, carry):
    hf_config = TransformersConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_n_groups=2,
        mamba_d_state=16,
        mamba_chunk_size=16,
        pad_token_id=None,
    )
    case = Case(hf_config=hf_config, batch=2, seqlen=40, prompt=37, seed=0)
    token_ids = case.token_ids()

    def exact(reference: BambaForCausalLM) -> Tensor:
        return case.ours(reference, torch.float64, ssm="recurrent", carry=carry)(token_ids)

    def on_torch(reference: BambaForCausalLM) -> Tensor:
        return case.ours(reference, dtype, ssm="chunked", carry=carry)(token_ids)

    reference = case.reference(dtype)
    truth = exact(reference)
    model = case.ours(reference, dtype, ssm="triton", carry=carry).to(DEVICE)
    logits = prefill_then_decode(model, token_ids.to(DEVICE), case.prompt).cpu()
    assert_within_budget(logits, truth, truth + own_error(reference, on_torch, exact), what="logits")


@torch.inference_mode()
def test_independent_chunks_are_the_exact_model_in_the_first_chunk_and_not_after_it():
    chunk_size = TINY.ssm_chunk_size
    token_ids = torch.arange(3 * chunk_size)[None] * 7 % TINY.vocab_size
    exact = Bamba(TINY)(token_ids)
    independent = Bamba(TINY, carry="none")(token_ids)
    assert torch.equal(independent[:, :chunk_size], exact[:, :chunk_size])
    assert (independent != exact)[:, chunk_size:].any(dim=-1).all()


@torch.inference_mode()
def test_of_independent_chunks_one_layer_passes_on_no_more_than_its_convolution_reaches():
    chunk_size, reach = TINY.ssm_chunk_size, TINY.ssm_d_conv - 1
    model = Bamba(TINY.replace(num_layers=1, attn_layers=()), carry="none")
    token_ids = torch.arange(2 * chunk_size)[None]
    changed = token_ids.clone()
    changed[:, : chunk_size - reach] += 1
    assert torch.equal(model(token_ids)[:, chunk_size:], model(changed)[:, chunk_size:])
    changed[:, chunk_size - reach] += 1
    assert not torch.equal(model(token_ids)[:, chunk_size], model(changed)[:, chunk_size])


@torch.inference_mode()
@pytest.mark.parametrize("carry", ["all", "none"])
def test_no_token_sees_a_later_one(carry):
    @given(cases())
    def check(case: Case):
        token_ids = case.token_ids()
        changed = token_ids.clone()
        changed[:, case.prompt :] = (changed[:, case.prompt :] + 1) % case.config.vocab_size
        model = case.ours(case.reference(), carry=carry)
        assert torch.equal(model(token_ids)[:, : case.prompt], model(changed)[:, : case.prompt])

    check()


@torch.inference_mode()
def test_every_token_sees_all_earlier_ones():
    token_ids = torch.arange(3 * TINY.ssm_chunk_size)[None]
    changed = token_ids.clone()
    changed[:, 0] += 1
    model = Bamba(TINY)
    assert (model(token_ids) != model(changed)).any(dim=-1).all()


@torch.inference_mode()
def test_sequences_of_a_batch_do_not_touch_each_other():
    model = Bamba(TINY)
    token_ids = torch.arange(60).view(2, 30)
    changed = token_ids.clone()
    changed[1] += 1
    assert torch.equal(model(token_ids)[0], model(changed)[0])


def test_gradients_reach_every_parameter():
    model = Bamba(TINY)
    model(torch.arange(40).view(2, 20)).logsumexp(dim=-1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.inference_mode()
def test_the_backbone_compiles_without_breaks_and_decoding_compiles_once():
    compiled = CompileCounter()
    model = Bamba(TINY, carry="none")
    token_ids = torch.arange(24)[None] * 5 % TINY.vocab_size
    expected = prefill_then_decode(model, token_ids, prompt=14)
    torch._dynamo.reset()
    model.model.compile(backend=compiled, fullgraph=True)
    assert torch.equal(prefill_then_decode(model, token_ids, prompt=14), expected)
    assert compiled.frame_count == 2, "one graph for the prompt, one for all single tokens"
