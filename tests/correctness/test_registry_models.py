import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BambaConfig as TransformersConfig

from bamba import (
    PRESETS,
    Bamba,
    BambaConfig,
    get_model,
    model_names,
    register_model,
    register_with_transformers,
    save_checkpoint,
)

pytestmark = pytest.mark.correctness

SMALL = BambaConfig.preset("tiny").replace(num_layers=2, attn_layers=(1,), vocab_size=32)


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    monkeypatch.setattr("bamba.registry._REGISTERED", {})


def test_a_preset_is_built_with_the_options_given():
    model = get_model("tiny", ssm="recurrent", carry="none", device="meta", dtype=torch.bfloat16)
    assert model.config == PRESETS["tiny"]
    assert (model.ssm, model.carry, model.device.type, model.dtype) == ("recurrent", "none", "meta", torch.bfloat16)
    assert not model.training


def test_a_registered_configuration_is_built_by_its_name():
    register_model("small", SMALL)
    assert get_model("small").config == SMALL
    assert model_names() == (*PRESETS, "small")


def test_a_registered_factory_is_called_with_all_options():
    asked = {}

    def factory(**options):
        asked.update(options)
        return Bamba(SMALL, **options)

    register_model("small", factory)
    assert get_model("small", carry="none", dtype=torch.float64).dtype == torch.float64
    assert asked == {"ssm": "auto", "carry": "none", "device": None, "dtype": torch.float64}


def test_a_factory_that_makes_something_else_is_an_error():
    register_model("small", lambda **options: SMALL)
    with pytest.raises(TypeError, match="the factory of 'small' must return a Bamba, got BambaConfig"):
        get_model("small")


@pytest.mark.parametrize("as_path", [Path, str])
def test_a_checkpoint_folder_is_loaded(tmp_path, as_path):
    model = Bamba(SMALL, dtype=torch.bfloat16)
    model.init_weights(seed=3)
    save_checkpoint(model, tmp_path)
    loaded = get_model(as_path(tmp_path), carry="none")
    assert (loaded.config, loaded.dtype, loaded.carry) == (SMALL, torch.bfloat16, "none")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_name_goes_before_a_folder_of_that_name_and_a_path_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Bamba(SMALL), "tiny")
    assert get_model("tiny").config == PRESETS["tiny"]
    assert get_model("./tiny").config == get_model(Path("tiny")).config == SMALL


@pytest.mark.parametrize("name", ["huge", "./tiny", Path("tiny"), ""])
def test_what_is_unknown_is_set_against_what_there_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    register_model("small", SMALL)
    if name == "":
        monkeypatch.setattr(Path, "is_dir", lambda path: False)  # "" is the current folder to pathlib
    with pytest.raises(ValueError, match=r"or one of \('tiny', .*, 'small'\), got "):
        get_model(name)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_name_is_registered_once(name):
    register_model("small", SMALL)
    with pytest.raises(ValueError, match=f"name must not be taken, got '{name}'; taken are .*'small'"):
        register_model(name, SMALL)


@pytest.mark.parametrize(
    ("name", "made", "error", "match"),
    [
        ("", SMALL, ValueError, "name must be a word without '/', got ''"),
        ("./x", SMALL, ValueError, "name must be a word without '/', got './x'"),
        ("x", {"d_model": 64}, TypeError, "must be a BambaConfig or a function, got {'d_model': 64}"),
    ],
)
def test_what_cannot_be_registered_is_named(name, made, error, match):
    with pytest.raises(error, match=match):
        register_model(name, made)


def test_importing_the_package_imports_no_transformers():
    code = "import sys, bamba; sys.exit('transformers' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)


def test_registering_twice_is_harmless_and_the_model_type_of_transformers_stays_with_transformers():
    for _ in range(2):
        register_with_transformers()
    assert type(AutoConfig.for_model("bamba_harness")).__name__ == "BambaHarnessConfig"
    assert type(AutoConfig.for_model("bamba")) is TransformersConfig
