"""Our model behind Hugging Face's interface: `generate`, `pipeline`, Trainer and PEFT take it as any causal LM.

Thin: the computation is :class:`bamba.Bamba`'s, the weights have the names of `transformers.BambaForCausalLM`, and a
folder of either differs in `model_type` alone. Written for transformers 5.17 to 5.23; importing this imports
transformers, importing `bamba` does not.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import BambaConfig as TransformersConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from bamba.cache import Cache
from bamba.config import BambaConfig
from bamba.model import Bamba


class BambaHarnessConfig(TransformersConfig):  # type: ignore[misc]  # transformers is not type-checked
    """`transformers.BambaConfig` under a `model_type` of its own, so that the Auto classes tell the two models apart.

    How to compute (`ssm`, `carry`) is no part of it: a file must not say which function is imported.
    """

    model_type = "bamba_harness"


class BambaHarnessForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # as above
    """A :class:`bamba.Bamba` as `transformers` expects a model to be.

    Args:
        config: what to build.
        ssm: as for :class:`Bamba`; `from_pretrained(folder, ssm=...)` passes it on.
        carry: as for :class:`Bamba`.
        bamba: the model to wrap, not copied; a new one by default.

    Raises:
        NotImplementedError: a setting that :class:`Bamba` does not compute.
    """

    config_class = BambaHarnessConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _is_stateful = True  # a recurrent state cannot be cropped, so no assisted generation
    _no_split_modules: ClassVar = ["Block"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(
        self, config: BambaHarnessConfig, *, ssm: str = "auto", carry: str = "all", bamba: Bamba | None = None
    ) -> None:
        super().__init__(config)
        bamba = bamba or Bamba(BambaConfig.from_transformers(config), ssm=ssm, carry=carry)
        self.model, self.lm_head = bamba.model, bamba.lm_head
        # Beside the modules, not among them: each weight has one name, that of transformers' Bamba.
        self.__dict__["_bamba"] = bamba
        self.post_init()

    @classmethod
    def from_bamba(cls, bamba: Bamba, **hf_fields: Any) -> Self:
        """Wrap a model, which stays the same one; `hf_fields` are set in the configuration, `eos_token_id` for one.

        Raises:
            NotImplementedError: a configuration that transformers cannot express.
        """
        fields = bamba.config.to_transformers().to_dict() | {"dtype": bamba.dtype} | hf_fields
        del fields["model_type"]
        return cls(BambaHarnessConfig(**fields), bamba=bamba)

    def to_bamba(self) -> Bamba:
        """The model inside, with the layers as they are now: an adapter may have replaced some."""
        bamba: Bamba = self._bamba
        bamba.model, bamba.lm_head = self.model, self.lm_head
        return bamba

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: "GrowingCache | None" = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """The logits of the token after each given one, and the loss if there are labels.

        Args:
            input_ids: (batch, seqlen), int64 or int32.
            attention_mask: (batch, columns), 0 for padding; of these tokens, or of all since the cache was empty. It is
                not read for a single token that continues a cache, which is no padding.
            past_key_values: memory to continue from; a new one if `use_cache`.
            labels: (batch, seqlen), the `input_ids` again, or -100 where nothing is to be learnt. The shift by one is
                done here.
            use_cache: return the memory; `config.use_cache` by default where no gradient is recorded.
            logits_to_keep: compute the logits of this many last tokens of each sequence; 0 means all.
            inputs_embeds: refused; here because callers pass it as None.
            output_attentions: refused, as above.
            output_hidden_states: refused, as above.

        Returns:
            `logits` (batch, seqlen or logits_to_keep, vocab_size), `loss` in fp32 and `past_key_values`, or None.

        Raises:
            ValueError, TypeError: as :meth:`Bamba.forward`; a cache where gradients are recorded.
            NotImplementedError: an argument that is refused.
        """
        refused = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        for name in [name for name, value in refused.items() if value]:
            raise NotImplementedError(f"{name} must be unset: {type(self).__name__} returns logits alone")
        if inputs_embeds is not None or input_ids is None:
            raise NotImplementedError("inputs_embeds must be None: the model takes input_ids")
        if isinstance(logits_to_keep, Tensor):
            raise NotImplementedError("logits_to_keep must be a number, got a tensor of positions")
        recording = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if use_cache is None:
            use_cache = self.config.use_cache and not recording
        elif (use_cache or past_key_values is not None) and recording:
            raise ValueError("use_cache must be False where gradients are recorded: the cache is written in place")
        bamba, seqlen = self.to_bamba(), input_ids.shape[1]
        if past_key_values is None and use_cache:
            past_key_values = GrowingCache()
        cache = None if past_key_values is None else past_key_values.make_room(bamba, *input_ids.shape)
        if attention_mask is not None and attention_mask.ndim == 2:
            continues = past_key_values is not None and past_key_values.get_seq_length() > 0
            attention_mask = None if continues and seqlen == 1 else attention_mask[:, -seqlen:]
        kept = logits_to_keep if logits_to_keep and labels is None else None  # a loss needs all
        logits = bamba(input_ids, cache, attention_mask=attention_mask, logits_to_keep=kept)
        if past_key_values is not None:
            past_key_values.columns += seqlen
        loss = None if labels is None else self._loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)

    def init_weights(self) -> None:
        """Nothing but tie: a fresh :class:`Bamba` has its random weights already."""
        self.tie_weights(recompute_mapping=False)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: the vocabulary is part of the configuration."""
        raise NotImplementedError("the vocabulary cannot be resized: build a model of another vocab_size")

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        if self.config.z_loss_coefficient:  # as transformers adds it, over padding too
            loss = loss + self.config.z_loss_coefficient * logits.logsumexp(dim=-1).to(loss.dtype).square().mean()
        return loss

    def _init_weights(self, module: nn.Module) -> None:
        """Called for weights that a checkpoint did not hold: random ones among trained ones mean nothing."""
        missing = [name for name, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)]
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}")

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` our cache in place of transformers'."""
        if generation_config.cache_implementation is not None:
            raise NotImplementedError(
                f"cache_implementation must be None, got {generation_config.cache_implementation!r}"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = GrowingCache(max_len=kwargs.get("max_cache_length") or args[-1])


class GrowingCache:
    """A :class:`bamba.Cache` as `GenerationMixin` handles one: made at the first call, larger when it is full.

    Args:
        max_len: tokens to allocate for at first.

    Attributes:
        cache: the memory; None before the first call.
        columns: what `generate` counts: tokens and padding given so far.
    """

    is_compileable = False

    def __init__(self, max_len: int = 256) -> None:
        self.max_len = max_len
        self.cache: Cache | None = None
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns given so far, padding included."""
        return self.columns

    def make_room(self, bamba: Bamba, batch: int, seqlen: int) -> Cache:
        """The memory with room for `seqlen` more tokens of each sequence; what it held is kept."""
        old, length = self.cache, 0 if self.cache is None else self.cache.length
        if old is not None and length + seqlen <= old.max_len:
            return old
        self.max_len = max(length + seqlen, self.max_len if old is None else 2 * old.max_len)
        self.cache = bamba.new_cache(batch=batch if old is None else old.batch, max_len=self.max_len)
        if old is not None:
            for new_layer, old_layer in zip(self.cache.layers, old.layers, strict=True):
                for new, held in zip(new_layer, old_layer, strict=True):
                    new[tuple(map(slice, held.shape))] = held
            self.cache.lengths.copy_(old.lengths)
            self.cache.host_lengths = list(old.host_lengths)
        return self.cache

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i be what row `beam_idx[i]` was, as beam search needs it."""
        if self.cache is None:
            return
        for tensor in (self.cache.lengths, *(tensor for layer in self.cache.layers for tensor in layer)):
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))
        self.cache.host_lengths = [self.cache.host_lengths[i] for i in beam_idx.tolist()]
