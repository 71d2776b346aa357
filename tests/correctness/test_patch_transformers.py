import copy
import importlib
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast, pipeline

from ssd_kernels import patch_transformers
from ssd_kernels.transformers_family import FAMILIES
from ssd_kernels.transformers_family.packing import cu_seqlens_of
from tests.correctness.budget import assert_within_budget
from tests.correctness.families import VOCABULARY, drawn_sizes, small_model
from tests.correctness.problems import DEVICE

pytestmark = pytest.mark.correctness

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def prompt():
    """Two rows of tokens, of which none is padding or an end; nothing is on a GPU when a module is imported."""
    return torch.arange(3, 3 + 2 * 21, device=DEVICE).remainder(VOCABULARY - 3).add(3).view(2, 21)


every_family = pytest.mark.parametrize("family", FAMILIES)
both_implementations = pytest.mark.parametrize("implementation", ["torch", "triton"])


@pytest.fixture(autouse=True)
def unpatched():
    """Every test begins and ends with transformers as it was installed."""
    before = {family: vars(modeling(family)).copy() for family in FAMILIES}
    yield
    for family, names in before.items():
        assert {name for name, value in vars(modeling(family)).items() if names.get(name) is not value} == set()


def modeling(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def assert_logits_agree(model, run, implementation):
    """The patched and the unpatched model, both in fp32, against the patched one in fp64 by torch.

    transformers' own scan computes in fp32 whatever it is given, so it has no fp64 to compare with.
    """
    own = run(model)
    with patch_transformers(implementation=implementation):
        patched = run(model)
    with patch_transformers(implementation="torch"):
        exact = run(copy.deepcopy(model).double())
    # Ten roundings of the largest logit: the unpatched model computes the same function.
    assert (own.double() - exact).abs().max() <= 10 * 2**-23 * exact.abs().max() * len(model.base_model.layers)
    assert_within_budget(patched, exact, own, what="logits")


@every_family
@both_implementations
@torch.inference_mode()
def test_a_patched_model_computes_what_it_did(family, implementation):
    assert_logits_agree(small_model(family), lambda model: model(prompt()).logits, implementation)


@every_family
@both_implementations
@torch.inference_mode()
def test_padding_on_the_left_changes_nothing(family, implementation):
    mask = torch.ones_like(prompt())
    mask[0, :5] = 0

    def run(model):
        return model(prompt(), attention_mask=mask).logits[mask.bool()]

    assert_logits_agree(small_model(family), run, implementation)


@every_family
@both_implementations
@torch.inference_mode()
def test_decoding_continues_a_prefill(family, implementation):
    assert_logits_agree(small_model(family), by_parts(family), implementation)


@every_family
@both_implementations
@pytest.mark.parametrize("seed", [4, 9, 19])  # among which is every size that is drawn
@torch.inference_mode()
def test_mixers_of_other_sizes_compute_what_they_did(family, implementation, seed):
    assert_logits_agree(small_model(family, **drawn_sizes(family, seed)), by_parts(family), implementation)


def by_parts(family):
    """A prefill, two single tokens and a continuation of several, on one cache."""
    name = "cache_params" if family == "mamba2" else "past_key_values"

    def run(model):
        logits, cache = [], None
        for start, stop in ((0, 11), (11, 12), (12, 13), (13, 20), (20, 21)):
            out = model(prompt()[:, start:stop], **{name: cache}, use_cache=True)
            cache = out[name]
            logits.append(out.logits)
        return torch.cat(logits, dim=1)

    return run


@every_family
@both_implementations
@torch.inference_mode()
def test_packed_sequences_do_not_see_each_other(family, implementation):
    """Without mamba-ssm the unpatched functions refuse them; alone, each sequence says what is expected."""
    # Granite's attention tells packed sequences apart with flash-attention only, and Mamba2ForCausalLM does not hand on
    # what it is called with: the one has no attention here, the other's layers are called.
    model = small_model(family, **({"layer_types": ["mamba", "mamba"]} if family == "granitemoehybrid" else {}))
    lengths = (5, 1, 9, 6)
    row = prompt()[:1]
    seq_idx = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None].int().to(DEVICE)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(DEVICE)
    alone = torch.cat([model(part, use_cache=False).logits for part in row.split(lengths, dim=1)], dim=1)
    with patch_transformers(implementation="torch"):
        exact_model = copy.deepcopy(model).double()
        exact = torch.cat([exact_model(part, use_cache=False).logits for part in row.split(lengths, dim=1)], dim=1)
    with patch_transformers(implementation=implementation):
        if family == "mamba2":
            packed = model.lm_head(model.backbone(row, seq_idx=seq_idx, use_cache=False).last_hidden_state)
        else:
            packed = model(row, position_ids=positions, seq_idx=seq_idx, use_cache=False).logits
    assert_within_budget(packed, exact, alone, what="logits")


@every_family
def test_generate_says_the_same(family):
    model = small_model(family)
    expected = model.generate(prompt(), **GREEDY)
    with patch_transformers():
        assert torch.equal(model.generate(prompt(), **GREEDY), expected)


@every_family
def test_gradients_are_those_of_the_unpatched_model(family):
    """Where a gradient is wanted the differentiable forms are taken, though Triton was asked for."""
    model = small_model(family).train()

    def gradients():
        model.zero_grad()
        model(prompt(), labels=prompt()).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    expected = gradients()
    with patch_transformers(implementation="triton"):
        actual = gradients()
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-7 * largest, name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 asks for it
def test_an_adapter_learns_on_a_patched_model_and_generates():
    model = small_model("bamba")
    config = LoraConfig(r=4, target_modules=["in_proj", "out_proj"], init_lora_weights=False)
    with patch_transformers():
        tuned = get_peft_model(model, config)
        optimizer = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=0.1)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = tuned(prompt(), labels=prompt()).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        patched = tuned.eval().generate(input_ids=prompt(), **GREEDY)
    assert torch.equal(patched, tuned.generate(input_ids=prompt(), **GREEDY))


def test_a_pipeline_runs_on_a_patched_model():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    special = {"unk_token": "w0", "pad_token": "w0", "eos_token": "w2"}
    tokenizer = Tokenizer(WordLevel(words, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)
    speak = pipeline("text-generation", model=small_model("falcon_h1"), tokenizer=fast, device=DEVICE)
    prompts, options = ["w5 w6 w7", "w8"], {"max_new_tokens": 5, "do_sample": False, "batch_size": 2}
    expected = speak(prompts, **options)
    with patch_transformers("falcon_h1"):
        assert speak(prompts, **options) == expected


def test_the_operators_are_what_runs(monkeypatch):
    from ssd_kernels.transformers_family import functions

    asked, real = [], functions.get_op

    def recorded(operator, name):
        asked.append((operator, name))
        return real(operator, name)

    monkeypatch.setattr(functions, "get_op", recorded)
    model = small_model("bamba")
    with patch_transformers("bamba", implementation="triton"), torch.inference_mode():
        cache = model(prompt(), use_cache=True).past_key_values
        assert set(asked) == {("causal_conv1d", "triton"), ("ssd", "triton"), ("gated_rms_norm", "triton")}
        asked.clear()
        model(prompt()[:, :1], past_key_values=cache)
        assert set(asked) == {("causal_conv1d_step", "triton"), ("ssd_step", "triton"), ("gated_rms_norm", "triton")}
        asked.clear()
        small_model("mamba2")(prompt())
        assert asked == []


def test_a_cache_after_a_step_holds_what_transformers_would(monkeypatch):
    model = small_model("bamba")

    def states(implementation=None):
        if implementation:
            with patch_transformers("bamba", implementation=implementation), torch.inference_mode():
                return states()
        with torch.inference_mode():
            cache = model(prompt(), use_cache=True).past_key_values
            model(prompt()[:, :1], past_key_values=cache)
        layer = cache.layers[0]
        return layer.conv_states[0], layer.recurrent_states[0]

    (window, state), (expected_window, expected_state) = states("torch"), states()
    torch.testing.assert_close(window, expected_window)
    torch.testing.assert_close(state, expected_state)


def test_a_patch_is_taken_back_by_name_or_by_block():
    before = modeling("zamba2").mamba2_chunk_scan
    patch = patch_transformers("zamba2")
    assert modeling("zamba2").mamba2_chunk_scan is not before
    assert inspect.signature(modeling("zamba2").mamba2_chunk_scan) == inspect.signature(before)
    with pytest.raises(RuntimeError, match="'zamba2' is patched already"):
        patch_transformers("bamba", "zamba2")
    with patch_transformers("bamba"):
        pass
    patch.undo()
    patch.undo()  # once more changes nothing
    with pytest.raises(KeyError), patch_transformers("zamba2"):
        raise KeyError
    assert modeling("zamba2").mamba2_chunk_scan is before


def test_what_was_replaced_since_is_not_overwritten(monkeypatch):
    patch = patch_transformers("mamba2")
    with monkeypatch.context() as patched:
        patched.setattr(modeling("mamba2"), "mamba2_chunk_scan", print)
        with pytest.raises(RuntimeError, match=r"modeling_mamba2\.mamba2_chunk_scan was replaced again"):
            patch.undo()
    patch.undo()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: delattr(module, "Zamba2MambaMixer"), "no class Zamba2MambaMixer"),
        (lambda module: delattr(module, "causal_conv1d_fn"), "no function causal_conv1d_fn"),
        (
            lambda module: setattr(module, "mamba2_chunk_scan", lambda hidden_states, dt, A, B, C: None),
            "mamba2_chunk_scan without the argument 'chunk_size'",
        ),
        (
            lambda module: setattr(module.Zamba2MambaMixer, "forward", lambda self: None),
            "a Zamba2MambaMixer that does not call causal_conv1d_fn",
        ),
        (
            lambda module: setattr(module.Zamba2RMSNormGated, "forward", lambda self, x: x),
            "Zamba2RMSNormGated.forward without the argument 'hidden_states'",
        ),
        (lambda module: delattr(module, "Zamba2RMSNormGated"), "no class named …RMSNormGated"),
    ],
)
def test_a_version_that_does_not_fit_is_told_and_left_alone(change, message):
    module = modeling("zamba2")
    names, mixer, norm = vars(module).copy(), module.Zamba2MambaMixer.forward, module.Zamba2RMSNormGated.forward
    try:
        change(module)
        with pytest.raises(RuntimeError, match=message):
            patch_transformers("bamba", "zamba2")
        assert modeling("bamba").mamba2_chunk_scan.__module__ == "transformers.models.bamba.modeling_bamba"
        patch_transformers("bamba").undo()
    finally:
        vars(module).update(names)
        module.Zamba2MambaMixer.forward, module.Zamba2RMSNormGated.forward = mixer, norm


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"families must be of .*'bamba'.*got 'mamba3'"):
        patch_transformers("mamba3")
    with pytest.raises(ValueError, match=r"implementation must be one of .* got 'cuda'"):
        patch_transformers(implementation="cuda")


def test_bounds_come_from_either_form():
    seq_idx = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]], dtype=torch.int32)
    assert cu_seqlens_of({"seq_idx": seq_idx}, 2, 5).tolist() == [0, 2, 4, 5, 6, 10]
    seq_idx[1, 1] = 0
    assert cu_seqlens_of({"seq_idx": seq_idx}, 2, 5).tolist() == [0, 2, 4, 5, 7, 10]
    bounds = torch.tensor([0, 2, 5])
    assert cu_seqlens_of({"cu_seq_lens_q": bounds}, 1, 5) is bounds
    assert cu_seqlens_of({"seq_idx": None}, 2, 5) is None
    with torch.inference_mode():
        made = torch.zeros(1, 4, dtype=torch.int32)
        assert cu_seqlens_of({"seq_idx": made}, 1, 4).tolist() == [0, 4]
        made[0, 2:] = 1
        assert cu_seqlens_of({"seq_idx": made}, 1, 4).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"seq_idx must be \(batch, seqlen\) \(2, 5\), got \(1, 4\)"):
        cu_seqlens_of({"seq_idx": made}, 2, 5)
    with pytest.raises(ValueError, match="tells of one row, got a batch of 2"):
        cu_seqlens_of({"cu_seq_lens_q": bounds}, 2, 5)


@torch.inference_mode()
def test_packed_rows_of_a_batch_go_on_from_their_states():
    """The scan itself: the first sequence of each row starts from the row's state, and the last one's is returned."""
    module = modeling("mamba2")
    torch.manual_seed(1)
    x, dt, A = torch.randn(2, 12, 4, 8), torch.rand(2, 12, 4), -torch.rand(4)
    B, C, states = torch.randn(2, 12, 1, 16), torch.randn(2, 12, 1, 16), torch.randn(2, 4, 8, 16)
    seq_idx = torch.tensor([[0] * 5 + [1] * 7, [0] * 12], dtype=torch.int32)
    x, dt, A, B, C, states, seq_idx = (each.to(DEVICE) for each in (x, dt, A, B, C, states, seq_idx))
    options = {"chunk_size": 4, "return_final_states": True}

    def alone(row, tokens, state=None) -> tuple[Tensor, Tensor]:
        parts = (each[row : row + 1, tokens] for each in (x, dt))
        x_part, dt_part = parts
        B_part, C_part = B[row : row + 1, tokens], C[row : row + 1, tokens]
        return module.mamba2_chunk_scan(x_part, dt_part, A, B_part, C_part, initial_states=state, **options)

    first, _ = alone(0, slice(0, 5), states[:1])
    second, end = alone(0, slice(5, 12))
    other, other_end = alone(1, slice(0, 12), states[1:])
    with patch_transformers("mamba2", implementation="torch"):
        y, final = module.mamba2_chunk_scan(x, dt, A, B, C, initial_states=states, seq_idx=seq_idx, **options)
    torch.testing.assert_close(y, torch.cat([torch.cat([first, second], dim=1), other]))
    torch.testing.assert_close(final, torch.cat([end, other_end]))
