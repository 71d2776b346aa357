import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, BambaForCausalLM, PreTrainedTokenizerFast, pipeline

from bamba import Bamba, BambaConfig, generate, load_checkpoint, register_with_transformers, save_checkpoint
from bamba.transformers_model import BambaHarnessConfig, BambaHarnessForCausalLM, GrowingCache
from tests.correctness.budget import assert_within_budget
from tests.correctness.model_strategies import randomise, true_logits

pytestmark = pytest.mark.correctness

# One group, as transformers 5.17 normalises over all of them at once.
SMALL = BambaConfig.preset("tiny").replace(
    num_layers=3, attn_layers=(1,), vocab_size=64, ssm_ngroups=1, ssm_norm_groups=1, ssm_chunk_size=8
)
PROMPT = torch.arange(2 * 11).view(2, 11)
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_with_transformers()


@pytest.fixture
def bamba():
    model = Bamba(SMALL).eval()
    randomise(model, seed=1)
    return model


@pytest.fixture
def model(bamba):
    return BambaHarnessForCausalLM.from_bamba(bamba).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    return tmp_path / "model"


@torch.inference_mode()
def test_a_saved_model_comes_back_from_the_auto_class_and_from_ours(folder, bamba):
    loaded = AutoModelForCausalLM.from_pretrained(folder, ssm="chunked")
    assert isinstance(loaded, BambaHarnessForCausalLM)
    assert loaded.to_bamba().ssm_in_use == "chunked"
    assert len(list(folder.glob("*.safetensors"))) > 1
    for again in (loaded.to_bamba(), load_checkpoint(folder)):
        assert again.config == SMALL
        for name, tensor in bamba.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


@torch.inference_mode()
def test_a_folder_differs_from_one_of_transformers_in_its_model_type_alone(folder, bamba):
    theirs = BambaForCausalLM.from_pretrained(folder)
    truth = true_logits(theirs, PROMPT)
    assert_within_budget(bamba(PROMPT), truth, theirs(PROMPT).logits)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bamba"}))
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is BambaForCausalLM


@torch.inference_mode()
def test_a_checkpoint_of_ours_is_read_by_the_class_itself(tmp_path, bamba):
    save_checkpoint(bamba, tmp_path)
    loaded = BambaHarnessForCausalLM.from_pretrained(tmp_path)
    again = Bamba(SMALL)
    again.load_state_dict(loaded.state_dict())
    assert torch.equal(again(PROMPT), bamba(PROMPT))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_are_one_tensor_after_saving_and_loading(tmp_path, tied):
    model = BambaHarnessForCausalLM.from_bamba(Bamba(SMALL.replace(tie_embeddings=tied)))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_in_bfloat16_what_a_head_needs_stays_in_fp32(folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    mixer = loaded.model.layers[0].mamba
    assert loaded.dtype == mixer.in_proj.weight.dtype == torch.bfloat16
    assert {mixer.A_log.dtype, mixer.D.dtype, mixer.dt_bias.dtype} == {torch.float32}
    assert loaded.generate(PROMPT, **GREEDY).shape == (2, 23)


def test_a_fresh_model_holds_the_random_weights_of_ours():
    hf_config = BambaHarnessConfig(**{**SMALL.to_transformers().to_dict(), "model_type": "bamba_harness"})
    fresh = AutoModelForCausalLM.from_config(hf_config)
    for name, tensor in Bamba(SMALL).state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_checkpoint_that_lacks_weights_is_refused(model, tmp_path):
    weights = model.state_dict()
    del weights["model.layers.0.mamba.A_log"], weights["model.layers.1.self_attn.q_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks model.layers.0.mamba.A_log, model.layers.1.self_attn.q_proj.weight$"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@torch.inference_mode()
def test_logits_with_and_without_a_cache_are_those_of_ours(model, bamba):
    whole = bamba(PROMPT)
    assert torch.equal(model(PROMPT, use_cache=False).logits, whole)
    assert torch.equal(model(PROMPT, logits_to_keep=2).logits, bamba(PROMPT, logits_to_keep=2))
    assert torch.equal(model(PROMPT, return_dict=False)[0], whole)
    cache, own = None, bamba.new_cache(batch=2, max_len=11)
    for t in range(0, 11, 4):
        out = model(PROMPT[:, t : t + 4], past_key_values=cache, attention_mask=torch.ones(2, min(t + 4, 11)).long())
        cache = out.past_key_values
        assert torch.equal(out.logits, bamba(PROMPT[:, t : t + 4], own))
    assert cache.get_seq_length() == 11


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_are_those_of_generate(model, bamba, use_cache):
    expected = generate(bamba, PROMPT, max_new_tokens=12)
    assert torch.equal(model.generate(PROMPT, **GREEDY, use_cache=use_cache), expected)
    assert len(expected[:, 11:].unique()) > 5, "the model repeats itself, so this shows little"


def test_sampling_repeats_with_its_seed(model):
    def draw(seed):
        torch.manual_seed(seed)
        return model.generate(PROMPT, max_new_tokens=12, do_sample=True, top_k=0, num_return_sequences=2)

    with torch.random.fork_rng():
        first, again, other = draw(0), draw(0), draw(1)
    assert first.shape == (4, 23)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_beam_search_with_a_cache_finds_what_it_finds_without(model):
    options = GREEDY | {"num_beams": 3, "num_return_sequences": 3}
    cached = model.generate(PROMPT, **options)
    assert torch.equal(cached, model.generate(PROMPT, **options, use_cache=False))
    assert not torch.equal(cached[[0, 3]], model.generate(PROMPT, **GREEDY)), "no beam was ever reordered"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_generates_what_each_prompt_gets_alone(model, side):
    prompts = [PROMPT[0], PROMPT[1, :4], PROMPT[1, 3:4]]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=0, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(p) for p in prompts], batch_first=True, padding_value=0, padding_side=side
    )
    together = model.generate(ids, attention_mask=mask, **GREEDY)[:, ids.shape[1] :]
    for prompt, new_ids in zip(prompts, together, strict=True):
        assert torch.equal(new_ids, model.generate(prompt[None], **GREEDY)[0, len(prompt) :])


def test_beams_of_a_padded_batch_are_those_of_each_prompt_alone(model):
    ids, mask = PROMPT.clone(), torch.ones_like(PROMPT)
    mask[1, :6] = 0
    options = GREEDY | {"num_beams": 2}
    together = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(together[1, 11:], model.generate(ids[1:, 6:], **options)[0, 5:])


def test_a_conversation_continues_from_its_cache(model):
    first = model.generate(PROMPT, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, PROMPT[:, :3]], dim=1)
    continued = model.generate(longer, **GREEDY, past_key_values=first.past_key_values)
    assert torch.equal(continued, model.generate(longer, **GREEDY))


@torch.inference_mode()
def test_a_cache_grows_and_keeps_what_it_held(model):
    cache = GrowingCache(max_len=4)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    model(PROMPT[:, :3], attention_mask=mask, past_key_values=cache)
    held = copy.deepcopy(cache)
    logits = model(PROMPT[:, 3:8], past_key_values=cache).logits
    assert (held.cache.max_len, cache.cache.max_len) == (4, 8)
    assert cache.cache.host_lengths == cache.cache.lengths.tolist() == [8, 7]
    large = GrowingCache(max_len=8)
    model(PROMPT[:, :3], attention_mask=mask, past_key_values=large)
    assert torch.equal(logits, model(PROMPT[:, 3:8], past_key_values=large).logits)


@torch.inference_mode()
def test_a_reordered_cache_continues_the_rows_that_were_asked_for(model):
    mask = torch.ones_like(PROMPT)
    mask[0, :6] = 0
    cache = model(PROMPT, attention_mask=mask).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache.cache.host_lengths == cache.cache.lengths.tolist() == [11, 5]
    swapped = model(PROMPT.flip(0), attention_mask=mask.flip(0)).past_key_values
    ahead = PROMPT[:, :2]
    assert torch.equal(*(model(ahead, past_key_values=c).logits for c in (cache, swapped)))


def test_the_loss_is_that_of_transformers(folder):
    theirs = BambaForCausalLM.from_pretrained(folder, z_loss_coefficient=0.1)
    ours = AutoModelForCausalLM.from_pretrained(folder, z_loss_coefficient=0.1)
    labels = PROMPT.clone()
    labels[0, :4] = -100
    expected = theirs(PROMPT, labels=labels).loss
    loss = ours(PROMPT, labels=labels, logits_to_keep=1).loss
    assert_within_budget(loss[None], theirs.double()(PROMPT, labels=labels).loss[None], expected[None])
    assert not torch.equal(loss, ours(PROMPT, labels=PROMPT).loss)


def word_tokenizer() -> PreTrainedTokenizerFast:
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"w{i}" for i in range(3, 64))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def test_the_text_generation_pipeline_takes_the_model_one_text_at_a_time_and_in_batches(folder, bamba):
    word_tokenizer().save_pretrained(folder)
    writer = pipeline("text-generation", model=str(folder), device="cpu")
    texts = ["w3 w14 w15 w9 w26", "w53", "w27 w18 w28"]
    alone = [writer(text, **GREEDY, return_full_text=False)[0]["generated_text"] for text in texts]
    together = [out[0]["generated_text"] for out in writer(texts, batch_size=3, **GREEDY, return_full_text=False)]
    assert together == alone
    ids = torch.tensor([word_tokenizer()(texts[0])["input_ids"]])
    new_ids = generate(bamba, ids, max_new_tokens=12, stop_ids=[1])[0, 5:]
    assert alone[0].split() == word_tokenizer().decode(new_ids, skip_special_tokens=True).split()


LORA = {"r": 4, "target_modules": ["in_proj", "out_proj", "q_proj"], "task_type": "CAUSAL_LM"}


# PEFT 0.21 asks transformers 5.23 for a property by its former name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_training_step_of_lora_lowers_the_loss_and_the_adapter_is_saved_and_loaded(folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folder, ssm="chunked")
    adapted = get_peft_model(base, LoraConfig(**LORA)).train()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {name.rsplit(".", 4)[1] for name in trained} == set(LORA["target_modules"])
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=PROMPT, labels=PROMPT).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    # Every second matrix of LoRA starts at zero, so it has moved only if a gradient reached it.
    moved = {name for name, p in adapted.named_parameters() if "lora_B" in name and p.any()}
    assert moved == {name for name in trained if "lora_B" in name}
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(folder, ssm="chunked")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    tokens = adapted.eval().generate(input_ids=PROMPT, **GREEDY)
    assert torch.equal(again.generate(input_ids=PROMPT, **GREEDY), tokens)
    with torch.inference_mode():
        assert torch.equal(again(input_ids=PROMPT).logits, adapted(input_ids=PROMPT).logits)
        with adapted.disable_adapter():
            assert not torch.equal(again(input_ids=PROMPT).logits, adapted(input_ids=PROMPT).logits)


@torch.inference_mode()
def test_a_layer_that_is_replaced_is_the_one_that_computes(model):
    logits = model(PROMPT).logits
    model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Tanh())
    assert torch.equal(model(PROMPT).logits, logits.tanh())


def test_a_cache_is_returned_by_default_only_where_no_gradient_is_recorded(model):
    assert model(PROMPT).past_key_values is None
    with torch.no_grad():
        assert model(PROMPT).past_key_values.get_seq_length() == 11
    model.requires_grad_(False)
    assert model(PROMPT).past_key_values is not None


def test_moving_and_casting_reaches_the_model_inside(model):
    model.to(torch.float64)
    assert model.to_bamba().dtype == torch.float64
    assert model.generate(PROMPT, **GREEDY).shape == (2, 23)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"inputs_embeds": torch.zeros(2, 11, 64)}, NotImplementedError, "inputs_embeds must be None"),
        ({"input_ids": None}, NotImplementedError, "the model takes input_ids"),
        ({"output_attentions": True}, NotImplementedError, "output_attentions must be unset"),
        ({"output_hidden_states": True}, NotImplementedError, "output_hidden_states must be unset"),
        ({"logits_to_keep": torch.tensor([1])}, NotImplementedError, "logits_to_keep must be a number"),
        ({"use_cache": True}, ValueError, "use_cache must be False where gradients are recorded"),
        ({"attention_mask": torch.ones(2, 5)}, ValueError, "attention_mask must have the shape of token_ids"),
    ],
)
def test_arguments_that_are_not_served_are_named(model, arguments, error, match):
    with pytest.raises(error, match=match):
        model(**{"input_ids": PROMPT} | arguments)


def test_what_is_not_supported_is_refused(model):
    with pytest.raises(NotImplementedError, match="cache_implementation must be None, got 'static'"):
        model.generate(PROMPT, **GREEDY, cache_implementation="static")
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(PROMPT[:1], **GREEDY, assistant_model=model)
    with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with pytest.raises(NotImplementedError, match="the vocabulary cannot be resized"):
        model.resize_token_embeddings(70)
    with pytest.raises(TypeError, match="position_ids"):
        model.generate(PROMPT, **GREEDY, position_ids=PROMPT)
