import json
import pickle
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BambaForCausalLM

from bamba import Bamba, BambaConfig, checkpoint_files, load_checkpoint, save_checkpoint
from tests.correctness.model_strategies import Case, cases, randomise

pytestmark = pytest.mark.correctness

SMALL = BambaConfig.preset("tiny").replace(num_layers=2, attn_layers=(1,), vocab_size=32)
TIED = SMALL.replace(tie_embeddings=True)
EMBEDDING, HEAD, IN_PROJ = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mamba.in_proj.weight"


def saved(folder: Path, config: BambaConfig = SMALL, **options: object) -> Bamba:
    model = Bamba(config).eval()
    randomise(model, seed=1)
    save_checkpoint(model, folder, **options)
    return model


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def assert_same(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def change_json(file: Path, change: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def change_tensors(folder: Path, change: dict, drop: str | None = None) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items() if name != drop}
    save_file(tensors | change, file, metadata={"format": "pt"})


@torch.inference_mode()
@settings(max_examples=8)
@given(cases(), st.sampled_from(["5GB", "4KB"]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_transformers_saves_is_the_same_model_here(case: Case, max_shard_size: str, dtype: torch.dtype):
    reference = case.reference(dtype)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder, max_shard_size=max_shard_size)
        loaded = load_checkpoint(folder, ssm="chunked")
    expected = Bamba(BambaConfig.from_transformers(case.hf_config), dtype=dtype, ssm="chunked")
    expected.load_state_dict(reference.state_dict())
    assert loaded.config == expected.config
    assert_same(loaded, expected)
    assert torch.equal(loaded(case.token_ids()), expected(case.token_ids()))


@torch.inference_mode()
@settings(max_examples=8)
@given(cases(), st.sampled_from(["5GB", "4KB"]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_is_saved_here_is_the_same_model_in_transformers(case: Case, max_shard_size: str, dtype: torch.dtype):
    reference = case.reference(dtype)
    model = Bamba(BambaConfig.from_transformers(case.hf_config), dtype=dtype)
    model.load_state_dict(reference.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, folder, max_shard_size=max_shard_size)
        assert len(names(Path(folder))) == 2 or max_shard_size == "4KB"
        loaded = BambaForCausalLM.from_pretrained(folder)
    assert loaded.dtype == dtype
    assert BambaConfig.from_transformers(loaded.config) == model.config
    for name, tensor in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    if dtype == torch.float32:  # `reference.to(bfloat16)` rounded its rotary frequencies too, which no file holds
        for parameter in loaded.parameters():  # off the mapped file: there they are aligned worse and round otherwise
            parameter.data = parameter.data.clone()
        theirs, again = (model(case.token_ids(), use_cache=False).logits for model in (reference, loaded))
        assert torch.equal(again, theirs)


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB", 20_000])
@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied"])
def test_a_round_trip_changes_no_bit(tmp_path, config, max_shard_size):
    model = saved(tmp_path / "new" / "folder", config, max_shard_size=max_shard_size)
    loaded = load_checkpoint(tmp_path / "new" / "folder")
    assert loaded.config == config
    assert_same(loaded, model)
    assert not loaded.training
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == config.tie_embeddings


def test_small_shards_are_listed_in_an_index_and_no_temporary_file_stays(tmp_path):
    saved(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 5
    assert names(tmp_path) == shards | {"config.json", "model.safetensors.index.json"}
    for shard in shards:
        with safe_open(tmp_path / shard, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}, "some versions of transformers refuse a file without it"
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in Bamba(SMALL).parameters())


def test_weights_are_cast_on_the_way_and_what_a_head_needs_stays_in_fp32(tmp_path):
    model = saved(tmp_path)
    loaded = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    mixer = loaded.model.layers[0].mamba
    assert {mixer.A_log.dtype, mixer.D.dtype, mixer.dt_bias.dtype} == {torch.float32}
    assert torch.equal(mixer.in_proj.weight, model.model.layers[0].mamba.in_proj.weight.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_file_by_default(tmp_path, dtype):
    save_checkpoint(Bamba(SMALL, dtype=dtype), tmp_path)
    assert load_checkpoint(tmp_path).dtype == dtype


def test_options_of_the_model_are_passed_on(tmp_path):
    saved(tmp_path)
    loaded = load_checkpoint(tmp_path, ssm="recurrent", carry="none", device="cpu")
    assert (loaded.ssm_in_use, loaded.carry, loaded.device.type) == ("recurrent", "none", "cpu")


def test_every_tensor_is_read_once_and_let_go_before_the_next(tmp_path, monkeypatch):
    saved(tmp_path, max_shard_size="10KB")
    alive, most, read = Counter(), [], checkpoint_files.read_tensor

    class Watched:
        def __init__(self, name: str) -> None:
            self.name = name
            alive[name] += 1

        def __del__(self) -> None:
            alive[self.name] -= 1

    def watch(name, stored, cut=None):
        tensor = read(name, stored, cut)
        tensor.watched = Watched(name)
        most.append(alive.total())
        return tensor

    monkeypatch.setattr("bamba.checkpoint.read_tensor", watch)
    model = load_checkpoint(tmp_path)
    assert sorted(alive) == sorted(name for name, _ in model.named_parameters())
    assert max(most) <= 2, "the tensor that is being read, and the one before it until the name is bound anew"
    assert alive.total() == 0


def test_tied_weights_are_stored_once_and_either_name_is_read(tmp_path):
    model = saved(tmp_path, TIED)
    stored = load_file(tmp_path / "model.safetensors")
    assert HEAD not in stored
    change_tensors(tmp_path, {HEAD: stored[EMBEDDING].clone()})
    assert_same(load_checkpoint(tmp_path), model)
    change_tensors(tmp_path, {HEAD: stored[EMBEDDING].clone()}, drop=EMBEDDING)
    assert_same(load_checkpoint(tmp_path), model)


def test_tied_weights_that_differ_are_refused(tmp_path):
    model = saved(tmp_path, TIED)
    change_tensors(tmp_path, {HEAD: model.lm_head.weight + 1})
    with pytest.raises(ValueError, match=f"unequal: {HEAD} and {EMBEDDING}"):
        load_checkpoint(tmp_path)


def test_all_missing_unexpected_and_misshapen_tensors_stand_in_one_error(tmp_path):
    saved(tmp_path)
    change_tensors(tmp_path, {"model.extra": torch.zeros(2), IN_PROJ: torch.zeros(3, 5)}, drop=HEAD)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_checkpoint(tmp_path)
    d_in_proj = SMALL.ssm_d_in_proj
    assert str(caught.value).splitlines()[1:] == [
        f"  missing: {HEAD} (32, 64)",
        "  unexpected: model.extra in model.safetensors",
        f"  misshapen: {IN_PROJ} must be ({d_in_proj}, 64), got (3, 5) in model.safetensors",
    ]


def test_tensors_of_whole_numbers_are_refused_by_name(tmp_path):
    model = saved(tmp_path)
    change_tensors(tmp_path, {IN_PROJ: model.state_dict()[IN_PROJ].to(torch.int8)})
    with pytest.raises(TypeError, match=f"{IN_PROJ} is I8 in model.safetensors"):
        load_checkpoint(tmp_path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_never_read(tmp_path, name):
    saved(tmp_path)
    tmp_path.joinpath("model.safetensors").unlink()
    tmp_path.joinpath(name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileNotFoundError, match=f"only {name}: pickles are never read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "filename",
    ["../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.bin", 3, ""],
)
def test_an_index_that_points_outside_the_folder_or_at_other_files_is_refused(tmp_path, filename):
    saved(tmp_path, max_shard_size="10KB")
    file = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"]
    change_json(file, {"weight_map": weight_map | {IN_PROJ: filename}})
    with pytest.raises(ValueError, match=rf"{IN_PROJ} must lie in a .safetensors file of the same folder, got "):
        load_checkpoint(tmp_path)


def test_shards_that_are_not_there_are_listed(tmp_path):
    saved(tmp_path, max_shard_size="10KB")
    for i in (2, 4):
        next(tmp_path.glob(f"model-0000{i}-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"not there: model-00002-of-.*, model-00004-of"):
        load_checkpoint(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    saved(tmp_path, max_shard_size="10KB")
    file = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"]
    moved = "model.layers.0.mamba.D"
    other = next(name for name in weight_map.values() if name != weight_map[moved])
    change_json(file, {"weight_map": weight_map | {moved: other}})
    with pytest.raises(ValueError, match="disagrees") as caught:
        load_checkpoint(tmp_path)
    assert f"{moved} must be in {other}, which does not hold it" in str(caught.value)
    assert f"{moved} is in {weight_map[moved]}, and the index says {other}" in str(caught.value)
    change_json(file, {"weight_map": {name: shard for name, shard in weight_map.items() if name != moved}})
    with pytest.raises(ValueError, match=f"{moved} is in .*, and the index says nothing of it"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path, size):
    saved(tmp_path, max_shard_size="10KB")
    shard = next(tmp_path.glob("model-00003-of-*"))
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{shard.name} is no whole safetensors file"):
        load_checkpoint(tmp_path)


def test_a_folder_with_one_file_and_an_index_is_refused(tmp_path):
    saved(tmp_path)
    tmp_path.joinpath("model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="got both"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", ValueError, "config.json must hold JSON"),
        ("[]", ValueError, "config.json must hold a JSON object, got list"),
        ({"model_type": "llama"}, ValueError, r"model_type must be one of .*, got 'llama'"),
        ({"model_type": None}, ValueError, "model_type must be one of .*, got None"),
        ({"hidden_act": "gelu"}, NotImplementedError, "config.json: hidden_act must be 'silu', got 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, NotImplementedError, "quantised weights are not supported"),
        ({"hidden_size": "wide"}, ValueError, "config.json describes no Bamba model"),
        ({"mamba_n_heads": 7}, ValueError, "config.json describes no Bamba model"),
        ({"attn_layer_indices": [9]}, ValueError, "config.json describes no Bamba model: attn_layers must be"),
        ({"rope_parameters": 3}, ValueError, "config.json describes no Bamba model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, text, error, match):
    saved(tmp_path)
    file = tmp_path / "config.json"
    if isinstance(text, dict):
        change_json(file, text)
    else:
        file.write_text(text)
    with pytest.raises(error, match=match):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    saved(tmp_path, max_shard_size="10KB")
    change_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(ValueError, match="weight_map must be an object of tensor and file names"):
        load_checkpoint(tmp_path)


def test_folders_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a checkpoint folder, got '.*nowhere'"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_checkpoint(tmp_path)
    saved(tmp_path)
    tmp_path.joinpath("model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model.safetensors nor model.safetensors.index.json$"):
        load_checkpoint(tmp_path)


def test_links_to_files_elsewhere_are_followed_as_download_caches_need_it(tmp_path):
    model = saved(tmp_path / "blobs", max_shard_size="10KB")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert_same(load_checkpoint(tmp_path / "snapshot"), model)


def test_a_checkpoint_is_replaced_only_when_asked_and_other_files_stay(tmp_path):
    saved(tmp_path, max_shard_size="10KB")
    tmp_path.joinpath("tokenizer.json").write_text("{}")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"holds a checkpoint already .*; overwrite=True replaces it"):
        saved(tmp_path, TIED)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    model = saved(tmp_path, TIED, overwrite=True)
    assert names(tmp_path) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert_same(load_checkpoint(tmp_path), model)


def test_a_writing_that_fails_leaves_the_old_checkpoint_as_it_was(tmp_path, monkeypatch):
    saved(tmp_path, max_shard_size="10KB")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    written = []

    def full_disk(tensors, file, metadata):
        if written:
            raise OSError(28, "No space left on device")
        written.append(file)
        save_file(tensors, file, metadata)

    monkeypatch.setattr("bamba.checkpoint_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, TIED, max_shard_size="20KB", overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_replacing_that_breaks_off_leaves_nothing_that_loads_as_a_mixture(tmp_path, monkeypatch):
    saved(tmp_path, max_shard_size="10KB")
    replaced, replace = [], checkpoint_files.os.replace

    def break_off(source, target):
        if len(replaced) == 3:
            raise OSError("interrupted")
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr("bamba.checkpoint_files.os.replace", break_off)
    with pytest.raises(OSError, match="interrupted"):
        saved(tmp_path, TIED, max_shard_size="10KB", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_checkpoint(tmp_path)


def test_fields_of_the_text_side_are_written_along(tmp_path):
    saved(tmp_path, hf_fields={"eos_token_id": 3, "bos_token_id": 1})
    hf_config = BambaForCausalLM.from_pretrained(tmp_path).config
    assert (hf_config.eos_token_id, hf_config.bos_token_id, hf_config.pad_token_id) == (3, 1, None)


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({}, {"hf_fields": {"rms_norm_eps": 1.0}}, ValueError, r"hf_fields must be among .*, got \['rms_norm_eps'\]"),
        ({}, {"max_shard_size": "large"}, ValueError, "large"),
        ({"ssm_norm_groups": 1}, {}, NotImplementedError, "ssm_norm_groups must be ssm_ngroups 2, .* got 1"),
        ({"d_model": 48}, {}, NotImplementedError, "must be a multiple of d_model 48, .* got 128"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, change, options, error, match):
    with pytest.raises(error, match=match):
        save_checkpoint(Bamba(SMALL.replace(**change)), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_model_without_memory_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="meta device have no values"):
        save_checkpoint(Bamba(SMALL, device="meta"), tmp_path)


def test_a_tensor_that_cannot_be_read_any_more_is_named(tmp_path, monkeypatch):
    saved(tmp_path)
    find = checkpoint_files.find_tensors

    def find_then_lose(folder):
        found = find(folder)
        shutil.copy(tmp_path / "config.json", tmp_path / "model.safetensors")
        return found

    monkeypatch.setattr("bamba.checkpoint.find_tensors", find_then_lose)
    with pytest.raises(ValueError, match=r"model.safetensors: tensor .* cannot be read"):
        load_checkpoint(tmp_path)
