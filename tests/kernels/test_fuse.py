"""Putting fast paths in and taking them out: names stay, reasons are given, everything else is as it was."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from sweeptune.config.errors import ConfigError
from sweeptune.kernels import fuse as module
from sweeptune.kernels.fuse import fuse, fused, install, obstacle, unfuse
from sweeptune.training.loss import summed_nll
from sweeptune.training.merge import merged
from tests.kernels.helpers import CPU, LLAMA, SHAPES, batch, build

GPU = torch.device("cuda")


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_of_a_state_dict_stay_and_unfuse_restores_all(shape, method):
    model = build(shape, method)
    assert obstacle(model) is None

    def look() -> tuple[Any, ...]:
        names = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
        own = {name: "forward" in part.__dict__ for name, part in model.named_modules()}
        hooks = sum(len(part._forward_pre_hooks) for part in model.modules())
        return names, own, hooks, [name for name, _ in model.named_parameters()]

    before = look()
    found = fuse(model, torch.float32)
    assert fused(model) is found and look()[0] == before[0] and look()[3] == before[3]
    assert sum(look()[1].values()) == 3 + 2, "three layers, the last norm, the rotary embedding"
    unfuse(model)
    assert fused(model) is None and look() == before
    unfuse(model)  # nothing is there to undo


def llama(**values: Any) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**(LLAMA | {"num_hidden_layers": 2} | values)))


def with_head_bias() -> Any:
    model = llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(300))
    return model


def with_two_adapters() -> Any:
    model = build("llama", "lora")
    model.add_adapter("second", model.peft_config["default"])
    return model


OBSTACLES: dict[str, tuple[Any, str]] = {
    "dora": (lambda: build("llama", "dora"), "DoRA scales each row"),
    "dropout": (lambda: build("llama", "lora", dropout=0.1), r"method\.dropout is above 0"),
    "int8": (lambda: build("llama", "lora_int8"), "a weight is stored as Linear8bitLt"),
    "biases": (lambda: llama(attention_bias=True), "linear layers have biases"),
    "mlp biases": (lambda: llama(mlp_bias=True), "linear layers have biases"),
    "layer": (lambda: llama(model_type="gemma", head_dim=16), "a GemmaDecoderLayer is not known"),
    "layers": (
        lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2)),
        "the layers of a GPT2LMHeadModel are not known",
    ),
    "activation": (lambda: llama(hidden_act="gelu"), "the activation gelu is not SwiGLU's"),
    "rotary": (
        lambda: llama(rope_scaling={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}),
        "rotary embedding yarn depends",
    ),
    "attention dropout": (lambda: llama(attention_dropout=0.1), "its attention has dropout"),
    "biased head": (with_head_bias, "its head is not a plain linear layer"),
    "adapted head": (
        lambda: build("llama", "lora", target_modules=["q_proj", "lm_head"]),
        "its head is not a plain linear layer",
    ),
    "two adapters": (with_two_adapters, "is not a plain one"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_the_kernels_cannot_do_stays_plain_and_the_log_says_why(name, monkeypatch):
    make, reason = OBSTACLES[name]
    model = make()
    assert obstacle(model) is not None
    monkeypatch.setattr(module.ops, "has_triton", lambda: True)
    choice = install(model, "auto", GPU, torch.bfloat16, False)
    assert choice.name == "plain" and fused(model) is None
    assert re.search(reason, choice.reason), choice.reason
    with pytest.raises(ConfigError, match=rf"offload: needs the fused kernels, and .*{reason}.*checkpointing=true"):
        install(model, "auto", GPU, torch.bfloat16, "offload")


def recomputes(model: torch.nn.Module) -> bool:
    return any(getattr(each, "gradient_checkpointing", False) for each in model.modules())


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "triton", "reason"),
    [
        ("plain", GPU, torch.bfloat16, True, "hardware.kernels=plain"),
        ("auto", CPU, torch.bfloat16, True, "they need a CUDA GPU"),
        ("auto", GPU, torch.float32, True, r"they are made for hardware\.precision=bf16"),
        ("auto", GPU, torch.float16, True, r"they are made for hardware\.precision=bf16"),
        ("auto", GPU, torch.bfloat16, False, "the package triton is not installed"),
    ],
)
def test_machines_and_settings_that_have_no_fused_kernels(wanted, device, dtype, triton, reason, monkeypatch):
    monkeypatch.setattr(module.ops, "has_triton", lambda: triton)
    model = build("llama")
    with pytest.raises(ConfigError, match=f"offload: needs the fused kernels, and {reason}"):
        install(model, wanted, device, dtype, "offload")
    choice = install(model, wanted, device, dtype, True)
    assert choice.name == "plain" and fused(model) is None
    assert recomputes(model), "transformers' own does it then"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_recomputation_is_asked_for_by_the_name_that_the_library_wants(method, monkeypatch):
    model = build("llama", method)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        install(model, "plain", CPU, torch.float32, True)
    assert recomputes(model)
    older, base = build("llama", method), transformers.PreTrainedModel
    if hasattr(base, "activation_checkpointing_enable"):  # transformers 5.17 has the other name alone
        monkeypatch.setattr(base, "gradient_checkpointing_enable", base.activation_checkpointing_enable)
        monkeypatch.delattr(base, "activation_checkpointing_enable")
    install(older, "plain", CPU, torch.float32, True)
    assert recomputes(older)


@pytest.mark.parametrize(("checkpointing", "recompute", "stash"), [(False, False, False), (True, True, False)])
def test_where_they_are_right_they_are_put_in(checkpointing, recompute, stash, monkeypatch):
    monkeypatch.setattr(module.ops, "has_triton", lambda: True)
    model = build("llama")
    assert install(model, "auto", GPU, torch.bfloat16, checkpointing).name == "fused"
    found = fused(model)
    assert found is not None and found.compute == torch.bfloat16
    assert all(block.recompute == recompute and (block.stash is not None) == stash for block in found.blocks)
    assert not recomputes(model)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_generation_with_a_cache_is_transformers_own(method):
    model = build("qwen3", method).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    before = model.generate(input_ids=ids, **asked)
    fuse(model, torch.float32)
    assert torch.equal(model.generate(input_ids=ids, **asked), before)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_merged_model_is_plain_and_computes_the_same(method):
    model = build("llama", method)
    fuse(model, torch.float32)
    loss = summed_nll(model, batch("packed")).item()
    plain = merged(model, torch.float32)
    assert fused(plain) is None and not any("forward" in part.__dict__ for part in plain.modules())
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert summed_nll(plain, batch("packed")).item() == pytest.approx(loss, rel=1e-4)


def test_the_rotary_embedding_is_transformers_own():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for rope in (None, {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 1e4,
    }):  # fmt: skip
        model = llama(rope_parameters=rope) if rope else llama()
        assert obstacle(model) is None
        x, places = torch.zeros(1, 9, 64), torch.arange(9)[None] + 3
        expected = LlamaRotaryEmbedding(model.config)(x, places)
        fuse(model, torch.float32)
        for ours, theirs in zip(model.model.rotary_emb(x, places), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
