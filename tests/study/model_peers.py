"""transformers' Bamba on the weights of ours: on its torch forms, on our operators, and on mamba-ssm's kernels."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers import BambaForCausalLM
from transformers.models.bamba import modeling_bamba

from bamba import Bamba
from bamba.attention import WITHOUT_PLANS
from bamba.decode_graph import decoding
from ssd_kernels import patch_transformers

OURS = "bamba"
Step = Callable[[], Tensor]


def twin(model: Bamba) -> BambaForCausalLM:
    """The model of transformers on the weights of this one, which are not copied."""
    with torch.device(model.device):
        theirs = BambaForCausalLM(model.config.to_transformers()).eval()
    theirs.load_state_dict(model.state_dict(), assign=True)
    return theirs


def prefill(model: Bamba | BambaForCausalLM, token_ids: Tensor) -> Tensor:
    """The logits after the last of (batch, seqlen) tokens, (batch, 1, vocab_size), with a cache made for them."""
    if isinstance(model, Bamba):
        batch, seqlen = token_ids.shape
        return model(token_ids, model.new_cache(batch=batch, max_len=seqlen), logits_to_keep=1)
    logits: Tensor = model(token_ids, use_cache=True, logits_to_keep=1).logits
    return logits


def decode(model: Bamba | BambaForCausalLM, token_ids: Tensor, *, room: int) -> Step:
    """What appends the last of (batch, seqlen) tokens to a cache that holds the others, up to `room` times.

    As `generate` of either would: ours replays a graph on a GPU. Of transformers' model, whatever it is to decode by,
    the cache is filled by our operators: its torch forms could not take the prompts of a batch.
    """
    prompt, last = token_ids[:, :-1], token_ids[:, -1:].clone()
    if isinstance(model, Bamba):
        batch, held = prompt.shape
        on_gpu = model.device.type == "cuda"
        cache, step = decoding(model, batch=batch, max_len=held + room, cuda_graph=on_gpu)
        model(prompt, cache, logits_to_keep=1)
        return lambda: step(last)
    with patch_transformers("bamba"):
        past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values

    def step() -> Tensor:
        at = torch.full_like(last, past.get_seq_length())  # by default transformers counts from 0 again
        logits: Tensor = model(last, past_key_values=past, position_ids=at, use_cache=True).logits
        return logits

    return step


def without_plans() -> AbstractContextManager[object]:
    """While it is entered: attention by other kernels than cuDNN's, of which each length that a process first meets has
    30 ms of plan on an H200. Every token that is decoded is one; who comes second to a length would not pay for it.
    """
    attention: AbstractContextManager[object] = sdpa_kernel(WITHOUT_PLANS)
    return attention


def torch_forms() -> AbstractContextManager[object]:
    """While it is entered: the functions of transformers' own, whatever kernels it found when it was imported."""
    names = ("causal_conv1d_fn", "causal_conv1d_update", "mamba2_chunk_scan", "mamba2_selective_state_update")
    return _replacing(**{name: inspect.unwrap(vars(modeling_bamba)[name]) for name in names})


def mamba_ssm() -> AbstractContextManager[object]:
    """While it is entered: mamba-ssm's scan and decode step, and the convolution that transformers found.

    transformers takes them by itself where the whole package is installed, with its CUDA extensions; they need none.

    Raises:
        ModuleNotFoundError: mamba-ssm is not installed.
    """
    from ssd_kernels.adapters.mamba_ssm import import_without_the_package

    def found(module: str, name: str) -> Callable[..., Any]:
        peer = import_without_the_package(f"mamba_ssm.ops.triton.{module}", "mamba_ssm")
        return _takes_what_it_knows(vars(peer)[name])

    return _replacing(
        mamba2_chunk_scan=found("ssd_combined", "mamba_chunk_scan_combined"),
        mamba2_selective_state_update=found("selective_state_update", "selective_state_update"),
    )


def _replacing(**functions: Callable[..., Any]) -> AbstractContextManager[object]:
    patched: AbstractContextManager[object] = mock.patch.multiple(modeling_bamba, **functions)
    return patched


def _takes_what_it_knows(function: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers calls it: what else the mixer passes on by name is for others."""
    known = inspect.signature(function).parameters
    return lambda *args, **more: function(*args, **{name: given for name, given in more.items() if name in known})


THEIRS = {
    "transformers": torch_forms,
    "transformers, patched": lambda: patch_transformers("bamba"),
    "transformers, mamba-ssm": mamba_ssm,
}
