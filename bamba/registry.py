"""Models by name: presets, names that a user registers, and checkpoint folders; and our model among transformers'."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from bamba.checkpoint import load_checkpoint
from bamba.config import PRESETS, BambaConfig
from bamba.model import Bamba

_REGISTERED: dict[str, BambaConfig | Callable[..., Bamba]] = {}


def get_model(
    name_or_path: str | os.PathLike[str],
    *,
    ssm: str = "auto",
    carry: str = "all",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Bamba:
    """Build the model of a name or of a checkpoint folder, in evaluation mode.

    Args:
        name_or_path: a preset or registered name (random weights for a configuration), else a folder as
            :func:`load_checkpoint` reads it. A name goes before a folder of that name; "./name" is the folder.
        ssm: as for :class:`Bamba`.
        carry: as for :class:`Bamba`.
        device: where to build; the default device by default.
        dtype: of the model; by default the default dtype, or that of a checkpoint.

    Raises:
        ValueError: neither a name nor a folder; what there is stands in the message.
        TypeError: a registered factory that returned no :class:`Bamba`.
        Exception: whatever building or loading raises.
    """
    if not isinstance(name_or_path, str) or name_or_path not in model_names():
        if not Path(name_or_path).is_dir():
            raise ValueError(
                f"name_or_path must be a checkpoint folder or one of {model_names()}, got {os.fspath(name_or_path)!r}"
            )
        return load_checkpoint(name_or_path, ssm=ssm, carry=carry, device=device, dtype=dtype)
    made = PRESETS.get(name_or_path) or _REGISTERED[name_or_path]
    if isinstance(made, BambaConfig):
        return Bamba(made, ssm=ssm, carry=carry, device=device, dtype=dtype).eval()
    model = made(ssm=ssm, carry=carry, device=device, dtype=dtype)
    if not isinstance(model, Bamba):
        raise TypeError(f"the factory of {name_or_path!r} must return a Bamba, got {type(model).__name__}")
    return model.eval()


def register_model(name: str, config_or_factory: BambaConfig | Callable[..., Bamba]) -> None:
    """Give a model a name for :func:`get_model`.

    Args:
        name: not taken yet.
        config_or_factory: a configuration, or a function that takes the keyword arguments of :func:`get_model` and
            returns a model.

    Raises:
        ValueError: an empty name, one that looks like a path, or one that is taken.
        TypeError: neither a configuration nor callable.
    """
    if not name or os.sep in name:
        raise ValueError(f"name must be a word without {os.sep!r}, got {name!r}")
    if name in model_names():
        raise ValueError(f"name must not be taken, got {name!r}; taken are {model_names()}")
    if not isinstance(config_or_factory, BambaConfig) and not callable(config_or_factory):
        raise TypeError(f"config_or_factory must be a BambaConfig or a function, got {config_or_factory!r}")
    _REGISTERED[name] = config_or_factory


def model_names() -> tuple[str, ...]:
    """All names that :func:`get_model` knows: presets, then registered ones."""
    return (*PRESETS, *_REGISTERED)


def register_with_transformers() -> None:
    """Let transformers' AutoConfig and AutoModelForCausalLM build our model for folders of its `model_type`.

    Imports transformers. A second call changes nothing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from bamba.transformers_model import BambaHarnessConfig, BambaHarnessForCausalLM

    AutoConfig.register(BambaHarnessConfig.model_type, BambaHarnessConfig, exist_ok=True)
    AutoModelForCausalLM.register(BambaHarnessConfig, BambaHarnessForCausalLM, exist_ok=True)
