"""The files of a Hugging Face safetensors folder: which tensors lie where, read one at a time and written at once.

Layout: `config.json`, and either `model.safetensors` or shards that `model.safetensors.index.json` lists. No other kind
of file is opened: a pickle can run code when it is read. Format: https://huggingface.co/docs/safetensors.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from bamba.parallel.plan import Cut

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


class StoredTensor(NamedTuple):
    """A tensor in a file, known from the file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: "BF16", "F32", "I64", …


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must hold JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name, from the headers alone.

    Raises:
        FileNotFoundError: no weights in safetensors, or a shard that the index names is not there.
        ValueError: a file that is damaged, or an index that disagrees with its shards or points outside the folder.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() and index.exists():
        raise ValueError(f"{folder} must hold {WEIGHTS} or {INDEX}, got both: which one is meant is unknown")
    if single.exists():
        return _read_header(single)
    if not index.exists():
        found = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        hint = f", only {', '.join(found)}: pickles are never read; convert them to safetensors" if found else ""
        raise FileNotFoundError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{hint}")
    return _read_indexed(index)


def read_tensor(name: str, stored: StoredTensor, cut: "Cut | None" = None) -> Tensor:
    """The tensor, on the CPU; its memory is the mapped file and goes with the tensor. With a cut, that part alone."""
    try:
        # Opened for each tensor: a mapping that is closed counts no longer as memory of this process.
        with safe_open(stored.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name) if cut is None else cut.of(opened.get_slice(name))
            return tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.file}: tensor {name} cannot be read: {error}") from error


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: str,
    *,
    max_shard_size: int | str,
    overwrite: bool,
) -> None:
    """Write tensors and the text of `config.json` as a folder that is complete or has no configuration.

    Raises:
        FileExistsError: the folder holds a checkpoint and `overwrite` is false.
        ValueError: a size that cannot be read.
    """
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_size)
    folder.mkdir(parents=True, exist_ok=True)
    old = {file.name for file in folder.iterdir() if _is_checkpoint(file.name)}
    if old and not overwrite:
        raise FileExistsError(f"{folder} holds a checkpoint already ({min(old)}); overwrite=True replaces it")
    # A folder inside the folder: on the same file system, so that moving out of it is a renaming.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as unfinished:
        new = []
        for filename, names in split.filename_to_tensors.items():
            shard = {name: tensors[name].contiguous() for name in names}
            save_file(shard, Path(unfinished, filename), metadata={"format": "pt"})
            new.append(filename)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            Path(unfinished, INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            new.append(INDEX)
        Path(unfinished, CONFIG).write_text(config, encoding="utf-8")
        # From here to the last renaming the folder has no configuration, so that no half of it can be loaded.
        for name in sorted(old - {*new}, key=lambda name: name != CONFIG):
            (folder / name).unlink()
        for name in [*new, CONFIG]:
            os.replace(Path(unfinished, name), folder / name)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            return {name: StoredTensor(file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from error


def _read_indexed(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map must be an object of tensor and file names, got {weight_map!r}")
    for name, filename in weight_map.items():
        plain = isinstance(filename, str) and Path(filename).name == filename and "\\" not in filename
        if not plain or not filename.endswith(".safetensors"):
            raise ValueError(f"{index}: {name} must lie in a .safetensors file of the same folder, got {filename!r}")
    filenames = sorted(set(weight_map.values()))
    missing = [filename for filename in filenames if not (index.parent / filename).exists()]
    if missing:
        raise FileNotFoundError(f"{index} names files that are not there: {', '.join(missing)}")
    found = {filename: _read_header(index.parent / filename) for filename in filenames}
    faults = [
        f"{name} must be in {filename}, which does not hold it"
        for name, filename in weight_map.items()
        if name not in found[filename]
    ]
    faults += [
        f"{name} is in {filename}, and the index says {weight_map.get(name, 'nothing of it')}"
        for filename, held in found.items()
        for name in held
        if weight_map.get(name) != filename
    ]
    if faults:
        raise ValueError(f"{index} disagrees with the files: " + "; ".join(faults))
    return {name: found[filename][name] for name, filename in weight_map.items()}


def _is_checkpoint(name: str) -> bool:
    """Whether a file of this name is one that a checkpoint is made of."""
    return name in {CONFIG, WEIGHTS, INDEX} or _SHARD.fullmatch(name) is not None
