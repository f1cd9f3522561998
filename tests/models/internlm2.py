"""A small InternLM2 in the published layout, and what it must compute: plain torch, written from the definition.

The reference knows nothing of transformers or of our conversion: it takes each head's rows out of the fused ``wqkv``,
group by group, and loops over heads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]


def published_config(**changes: Any) -> dict[str, Any]:
    """A config.json as the hub has it, with a small shape."""
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 320,
        "max_position_embeddings": 64,
        "model_type": "internlm2",
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.0",
        "use_cache": True,
        "vocab_size": 512,
    } | changes


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Weights under the published names, in fp32; norms away from one, so that a forgotten one shows."""
    draw = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = hidden // heads

    def normal(*shape: int, scale: float = 0.05) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * scale

    weights = {"model.tok_embeddings.weight": normal(vocab, hidden, scale=0.5)}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        weights |= {
            f"{at}attention.wqkv.weight": normal((heads + 2 * kv) * width, hidden),
            f"{at}attention.wo.weight": normal(hidden, hidden),
            f"{at}feed_forward.w1.weight": normal(inner, hidden),
            f"{at}feed_forward.w3.weight": normal(inner, hidden),
            f"{at}feed_forward.w2.weight": normal(hidden, inner),
            f"{at}attention_norm.weight": 1 + normal(hidden, scale=0.2),
            f"{at}ffn_norm.weight": 1 + normal(hidden, scale=0.2),
        }
        if config["bias"]:
            weights[f"{at}attention.wqkv.bias"] = normal((heads + 2 * kv) * width, scale=0.3)
            weights[f"{at}attention.wo.bias"] = normal(hidden, scale=0.3)
    return weights | {"model.norm.weight": 1 + normal(hidden, scale=0.2), "output.weight": normal(vocab, hidden)}


def write(folder: Path, config: dict[str, Any], weights: Weights, kind: str = "safetensors", shards: int = 1) -> Path:
    """Write a folder as the hub has it: ``kind`` is safetensors or bin."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names, place = list(weights), {}
    for shard in range(shards):
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{shard + 1:05d}-of-{shards:05d}.{ending}"
        part = {name: weights[name].clone() for name in names[shard::shards]}
        place |= dict.fromkeys(part, file)
        save_file(part, folder / file, {"format": "pt"}) if kind == "safetensors" else torch.save(part, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": place}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


def split(fused: torch.Tensor, config: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rows of the fused matrix (or bias): one entry per query head, and key and value of each key-value head."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    group, width = heads // kv, config["hidden_size"] // heads
    queries, pairs, at = [], [], 0
    for _ in range(kv):
        for _ in range(group):
            queries.append(fused[at : at + width])
            at += width
        pairs += [fused[at : at + width], fused[at + width : at + 2 * width]]
        at += 2 * width
    assert at == len(fused)
    return queries, pairs


def reference(config: dict[str, Any], weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) of one sequence of ids (tokens,)."""
    heads, kv, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    width, length = config["hidden_size"] // heads, len(ids)
    cos, sin = rotation(config, length)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weights[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x[:, : width // 2], x[:, width // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    x = weights["model.tok_embeddings.weight"][ids]
    hidden_from_future = torch.ones(length, length).triu(1).bool()
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        normed = norm(x, f"{at}attention_norm.weight")
        queries, pairs = split(weights[f"{at}attention.wqkv.weight"], config)
        zero = torch.zeros(len(weights[f"{at}attention.wqkv.weight"]))
        q_bias, pair_bias = split(weights.get(f"{at}attention.wqkv.bias", zero), config)
        mixed = []
        for head in range(heads):
            group = head // (heads // kv)
            q = rotate(normed @ queries[head].T + q_bias[head])
            k = rotate(normed @ pairs[2 * group].T + pair_bias[2 * group])
            v = normed @ pairs[2 * group + 1].T + pair_bias[2 * group + 1]
            scores = (q @ k.T / width**0.5).masked_fill(hidden_from_future, float("-inf"))
            mixed.append(scores.softmax(-1) @ v)
        out_bias = weights.get(f"{at}attention.wo.bias", torch.zeros(1))
        x = x + torch.cat(mixed, dim=-1) @ weights[f"{at}attention.wo.weight"].T + out_bias
        normed = norm(x, f"{at}ffn_norm.weight")
        gate = torch.nn.functional.silu(normed @ weights[f"{at}feed_forward.w1.weight"].T)
        x = x + (gate * (normed @ weights[f"{at}feed_forward.w3.weight"].T)) @ weights[f"{at}feed_forward.w2.weight"].T
    return norm(x, "model.norm.weight") @ weights["output.weight"].T


def rotation(config: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine (tokens, head_dim / 2); the base grows past the trained length (dynamic NTK)."""
    width, trained = config["hidden_size"] // config["num_attention_heads"], config["max_position_embeddings"]
    base, scaling = float(config["rope_theta"]), config["rope_scaling"]
    if scaling is not None and length > trained:
        factor = scaling["factor"]
        base *= (factor * length / trained - (factor - 1)) ** (width / (width - 2))
    angles = torch.arange(length)[:, None] / base ** (torch.arange(0, width, 2) / width)
    return angles.cos(), angles.sin()
