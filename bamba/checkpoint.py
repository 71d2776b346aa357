"""Checkpoints in Hugging Face's safetensors layout, as `transformers` writes and reads them.

A checkpoint is a folder: `config.json` with the fields of `transformers.BambaConfig`, and weights under the names of
`transformers.BambaForCausalLM`, in one `.safetensors` file or in shards with an index. Only `.json` and `.safetensors`
files are ever opened, so that loading one runs no code of a stranger.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError

from bamba.checkpoint_files import CONFIG, StoredTensor, find_tensors, read_json, read_tensor, write_folder
from bamba.config import BambaConfig
from bamba.huggingface import IRRELEVANT
from bamba.model import Bamba

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from bamba.parallel.plan import Cuts

_MODEL_TYPES = ("bamba", "bamba_harness")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    ssm: str = "auto",
    carry: str = "all",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    mesh: "DeviceMesh | None" = None,
) -> Bamba:
    """Build the model of a checkpoint folder, in evaluation mode.

    Everything is checked before any weight is allocated. Then tensors are read one at a time from the mapped files and
    cast on the way into the model, so that the peak is the model and one tensor.

    Args:
        path: the folder; nothing is downloaded.
        ssm: as for :class:`Bamba`.
        carry: as for :class:`Bamba`.
        device: where to build; the default device by default.
        dtype: the dtype of the model; that of the stored embedding by default. A_log, D and dt_bias stay in fp32 at
            least.
        mesh: the devices to cut the model among, see :func:`bamba.parallel.tensor.tensor_parallel`: of each tensor this
            rank then reads its own part only.

    Raises:
        FileNotFoundError: no such folder, no `config.json`, no weights in safetensors, or a shard is not there.
        ValueError: a damaged file, a configuration that does not fit together, an index that disagrees with the files,
            or missing, unexpected or misshapen tensors (all of them in one error).
        TypeError: tensors that are no floating-point numbers of 16, 32 or 64 bits.
        NotImplementedError: a setting that this model does not compute, quantisation for one.
    """
    folder = Path(path)
    config = read_config(folder)
    stored = find_tensors(folder)
    if dtype is None:
        embedding = stored.get(_EMBEDDING, stored.get(_HEAD))
        dtype = None if embedding is None else _DTYPES.get(embedding.dtype)
    model = Bamba(config, ssm=ssm, carry=carry, device="meta", dtype=dtype)
    sources = _match(folder, model, stored)
    cuts: Cuts = {}
    if mesh is not None:
        from bamba.parallel.tensor import tensor_parallel

        cuts = tensor_parallel(model, mesh)
    model.to_empty(device=torch.get_default_device() if device is None else device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, own_name = name.rpartition(".")
            parameter.copy_(read_tensor(*sources[name], cuts.get(module, {}).get(own_name)))
    return model.eval()


def save_checkpoint(
    model: Bamba,
    path: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    hf_fields: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a checkpoint folder that :func:`load_checkpoint` and `transformers` read.

    All files are written under temporary names first, so that a failed writing leaves what was there.

    Args:
        model: what to write; its tensors keep their dtypes.
        path: the folder, made if need be; other files in it are left alone.
        max_shard_size: the most bytes of a file ("5GB", "200MB" or a number); a larger tensor gets a file of its own.
        overwrite: replace a checkpoint that the folder holds.
        hf_fields: further fields of `config.json` that do not touch the logits, such as `eos_token_id`.

    Raises:
        FileExistsError: the folder holds a checkpoint and `overwrite` is false.
        ValueError: weights on the meta device, a rank's part of a model, an unreadable size, or a field that touches
            the logits.
        NotImplementedError: a configuration that transformers cannot express.
    """
    if model.device.type == "meta":
        raise ValueError("model: weights on the meta device have no values to save")
    model.expect_whole()
    fields = dict(hf_fields or {})
    if not set(fields) <= set(IRRELEVANT):
        raise ValueError(f"hf_fields must be among {sorted(IRRELEVANT)}, got {sorted(set(fields) - set(IRRELEVANT))}")
    defaults = {"architectures": ["BambaForCausalLM"], "dtype": model.dtype}
    hf_config = model.config.to_transformers(**defaults | fields)
    # Tied weights are one parameter, under the embedding's name.
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_folder(Path(path), tensors, hf_config.to_json_string(), max_shard_size=max_shard_size, overwrite=overwrite)


def read_config(folder: Path) -> BambaConfig:
    """The configuration of a checkpoint folder; errors as :func:`load_checkpoint`."""
    from transformers import BambaConfig as TransformersConfig

    if not folder.is_dir():
        raise FileNotFoundError(f"path must be a checkpoint folder, got {str(folder)!r}")
    file = folder / CONFIG
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}")
    fields = read_json(file)
    if fields.get("model_type") not in _MODEL_TYPES:
        raise ValueError(f"{file}: model_type must be one of {_MODEL_TYPES}, got {fields.get('model_type')!r}")
    if fields.get("quantization_config") is not None:
        raise NotImplementedError(f"{file}: quantization_config must be absent: quantised weights are not supported")
    try:
        return BambaConfig.from_transformers(TransformersConfig.from_json_file(file))
    except NotImplementedError as error:
        raise NotImplementedError(f"{file}: {error}") from error
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{file} describes no Bamba model: {error}") from error


def _match(folder: Path, model: Bamba, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, StoredTensor]]:
    """For each parameter the stored tensor that fills it, and its name in the file."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sources = {name: (name, stored[name]) for name in wanted if name in stored}
    faults = []
    if model.config.tie_embeddings and _HEAD in stored:
        if _EMBEDDING not in stored:  # which of the two names a writer keeps is its own affair
            sources[_EMBEDDING] = (_HEAD, stored[_HEAD])
        elif not _equal(stored):
            faults.append(f"unequal: {_HEAD} and {_EMBEDDING}, which tie_word_embeddings makes one")
    used = {name for name, _ in sources.values()} | ({_HEAD} if model.config.tie_embeddings else set())
    faults += [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in sources]
    faults += [f"unexpected: {name} in {stored[name].file.name}" for name in stored if name not in used]
    faults += [
        f"misshapen: {name} must be {wanted[parameter]}, got {tensor.shape} in {tensor.file.name}"
        for parameter, (name, tensor) in sources.items()
        if tensor.shape != wanted[parameter]
    ]
    if faults:
        raise ValueError(f"{folder} does not fit its {CONFIG}:\n  " + "\n  ".join(faults))
    no_floats = [f"{name} is {t.dtype} in {t.file.name}" for name, t in sources.values() if t.dtype not in _DTYPES]
    if no_floats:
        raise TypeError(f"{folder}: dtypes must be among {', '.join(_DTYPES)}, got:\n  " + "\n  ".join(no_floats))
    return sources


def _equal(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the embedding and the head hold the same numbers."""
    return torch.equal(read_tensor(_EMBEDDING, stored[_EMBEDDING]), read_tensor(_HEAD, stored[_HEAD]))
