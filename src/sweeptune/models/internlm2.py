"""InternLM2 on transformers' own Llama classes, without remote code.

InternLM2 computes what Llama computes: only names and the storage of the attention differ. Its checkpoints fuse query,
key and value into one matrix ``wqkv`` whose rows are grouped by key-value head::

    kv head 0: [query 0 .. query g-1, key 0, value 0]  kv head 1: [query g .. query 2g-1, key 1, value 1]  ...

with g = query heads / key-value heads, and head_dim rows per entry. Viewed as (kv heads, g + 2, head_dim, inputs), the
first g slices are Llama's ``q_proj``, the next its ``k_proj``, the last its ``v_proj``, in the same order of heads.
transformers' official hook for such differences, ``register_checkpoint_conversion_mapping``, is told so here: it splits
while loading (from safetensors or .bin, before bitsandbytes quantises) and fuses again while saving, so that a saved
model has the published layout. The three classes exist only so that the hook can tell an InternLM2 from a Llama.

Importing `sweeptune.models` registers everything, once; then transformers' Auto classes know ``internlm2``.

Adapters: ``method.target_modules=all-linear`` means q, k, v, o, gate, up and down of every layer. XTuner's QLoRA
recipes for InternLM2 adapt the fused ``wqkv`` with one low-rank pair for all three, and the head (``output``) too: at
the same rank ours have three times the capacity on attention's inputs and none on the head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedConfig,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

MODEL_TYPE = "internlm2"

Tensors = dict[str, Any]
"""What the hook passes: tensors by pattern, some of them wrapped in a list."""


class InternLM2Config(LlamaConfig):  # type: ignore[misc]
    """A Llama's settings, read from and written as InternLM2's config.json.

    Example:
        >>> InternLM2Config(hidden_size=2048, rope_scaling={"type": "dynamic", "factor": 2.0}).rope_parameters["factor"]
        2.0
    """

    model_type = MODEL_TYPE
    attribute_map = {"bias": "attention_bias"}  # noqa: RUF012 - transformers reads it from the class

    def to_dict(self) -> dict[str, Any]:
        """All values under the names of the published config.json, which transformers reads back.

        ``auto_map`` is left out, so that a saved folder never asks to run remote code; so is the attention back-end
        that the published files name, because it is the reader's choice.
        """
        values: dict[str, Any] = super().to_dict()
        for name in ("auto_map", "attn_implementation"):
            values.pop(name, None)
        values["bias"] = values.pop("attention_bias", self.attention_bias)
        return readable_by_all(values, "type")


def readable_by_all(values: dict[str, Any], kind_name: str = "rope_type") -> dict[str, Any]:
    """Write the rotary embedding of a config.json as transformers 4 and its contemporaries expect it.

    Such readers overlook transformers 5's ``rope_parameters`` and compute with a base of 10000, silently wrong.
    transformers 5 reads this form too.

    Args:
        values: The content; left as it is.
        kind_name: The key that names the kind of scaling: ``type`` in InternLM2's files, which hold it and ``factor``
            and nothing else.

    Example:
        >>> readable_by_all({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}})
        {'rope_theta': 1000000.0, 'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}
    """
    values = dict(values)
    rope = dict(values.pop("rope_parameters", None) or {})
    kinds = [rope.pop(name) for name in ("rope_type", "type") if name in rope]
    if "rope_theta" in rope:
        values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = {kind_name: kinds[0], **rope} if kinds and kinds[0] != "default" else None
    return values


class InternLM2Model(LlamaModel):  # type: ignore[misc]
    """The decoder without its head."""

    config_class = InternLM2Config


class InternLM2ForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The decoder with its head."""

    config_class = InternLM2Config

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the published layout; a quantised model keeps its split matrices, because packed bytes cannot be fused.

        Example:
            >>> model.save_pretrained("out")   # out/model.safetensors has model.layers.0.attention.wqkv.weight
        """
        if getattr(self, "hf_quantizer", None) is not None:
            kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)


def _sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Query heads per key-value head, and rows per head."""
    text = config.get_text_config()
    return text.num_attention_heads // text.num_key_value_heads, text.head_dim


def _tensor(value: Any) -> torch.Tensor:
    tensor: torch.Tensor = value[0] if isinstance(value, list) else value
    return tensor


class SplitGroupedQKV(ConversionOps):  # type: ignore[misc]
    """``wqkv`` (weight or bias) into query, key and value."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: Tensors,
        source_patterns: list[str],
        target_patterns: list[str],
        config: PreTrainedConfig,
        **kwargs: Any,
    ) -> Tensors:
        """Split one tensor of ((g + 2) * kv heads * head_dim, ...) rows into three, in the targets' order q, k, v."""
        fused = _tensor(next(iter(input_dict.values())))
        queries, width = _sizes(config)
        groups = fused.reshape(-1, queries + 2, width, *fused.shape[1:])
        parts = (groups[:, :queries], groups[:, queries], groups[:, queries + 1])
        return {
            name: part.reshape(-1, *fused.shape[1:]).contiguous()
            for name, part in zip(target_patterns, parts, strict=True)
        }

    @property
    def reverse_op(self) -> ConversionOps:
        """What saving does."""
        return FuseGroupedQKV()


class FuseGroupedQKV(ConversionOps):  # type: ignore[misc]
    """Query, key and value into ``wqkv``."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: Tensors,
        source_patterns: list[str],
        target_patterns: list[str],
        config: PreTrainedConfig,
        **kwargs: Any,
    ) -> Tensors:
        """Join three tensors, whose names come in the order q, k, v, into one."""
        queries, width = _sizes(config)
        q, k, v = (_tensor(input_dict[name]) for name in source_patterns)
        rest = q.shape[1:]
        groups = [part.reshape(-1, n, width, *rest) for part, n in ((q, queries), (k, 1), (v, 1))]
        return {target_patterns[0]: torch.cat(groups, dim=1).reshape(-1, *rest).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        """What loading does."""
        return SplitGroupedQKV()


def _mapping() -> list[WeightRenaming | WeightConverter]:
    """Published names and Llama's, in both directions."""
    names = {
        r"tok_embeddings\.weight": r"embed_tokens\.weight",
        r"^output\.weight": r"^lm_head\.weight",
        r"\.attention\.wo\.": r"\.self_attn\.o_proj\.",
        r"\.feed_forward\.w1\.": r"\.mlp\.gate_proj\.",
        r"\.feed_forward\.w3\.": r"\.mlp\.up_proj\.",
        r"\.feed_forward\.w2\.": r"\.mlp\.down_proj\.",
        r"\.attention_norm\.": r"\.input_layernorm\.",
        r"\.ffn_norm\.": r"\.post_attention_layernorm\.",
    }
    split = [
        WeightConverter(
            rf"\.attention\.wqkv\.{kind}",
            [rf"\.self_attn\.{name}_proj\.{kind}" for name in "qkv"],
            operations=[SplitGroupedQKV()],
        )
        for kind in ("weight", "bias")
    ]
    return [*(WeightRenaming(source, target) for source, target in names.items()), *split]


def register() -> None:
    """Make transformers' Auto classes load and save InternLM2; may be called again."""
    AutoConfig.register(MODEL_TYPE, InternLM2Config, exist_ok=True)
    AutoModel.register(InternLM2Config, InternLM2Model, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(MODEL_TYPE, _mapping(), overwrite=True)


def to_llama(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same weights as a plain Llama, which every tool knows.

    Args:
        model: An InternLM2 or a Llama, unquantised and without adapters. Its tensors are shared, not copied.

    Returns:
        A ``LlamaForCausalLM`` with a ``LlamaConfig``; its logits are equal.

    Example:
        >>> to_llama(load_model("internlm/internlm2-1_8b")).save_pretrained("plain")
    """
    values = model.config.to_dict()
    # What names the class or was InternLM2's own; _name_or_path would tell where the file came from.
    for name in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        values.pop(name, None)
    values["attention_bias"] = values.pop("bias", model.config.attention_bias)
    config = LlamaConfig.from_dict(values)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        plain = LlamaForCausalLM._from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.model.rotary_emb = model.model.rotary_emb  # its frequencies are in no state dict
    plain.generation_config = model.generation_config
    return plain.train(model.training)
