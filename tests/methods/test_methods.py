"""Each method trains what it should, stores its base as it says, and starts where the model was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import METHOD_SCHEMAS
from sweeptune.kernels.fp8 import Fp8Linear
from sweeptune.methods import METHODS, pissa
from sweeptune.methods.quantized import keep_trainable_on_cpu
from sweeptune.models import load_model

CPU = torch.device("cpu")
ADAPTERS = [name for name in METHODS if name != "full"]
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(24).reshape(2, 12)

Build = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base(settings) -> Build:
    """The tiny model, stored as a method wants it."""

    def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        quantization = METHODS[name].quantization
        stored = quantization(dtype) if quantization else None
        return load_model(settings().model, dtype=dtype, device=CPU, quantization=stored, seed=seed)

    return make


@pytest.fixture
def build(base, settings) -> Build:
    """The tiny model made trainable by a method; named values change the method's settings."""

    def make(name: str, dtype: torch.dtype = torch.float32, start: Path | None = None, **changed: Any) -> Any:
        method = replace(settings(f"method={name}").method, **changed)
        loaded = base(name, dtype)
        torch.manual_seed(0)
        model = METHODS[name].attach(loaded, method)
        if start is not None:
            METHODS[name].start(model, start)  # type: ignore[misc]
        return model

    return make


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


def test_the_methods_are_those_of_the_settings():
    assert METHODS.keys() == METHOD_SCHEMAS.keys()
    assert list(METHODS) == ["full", "lora", "dora", "rslora", "pissa", "qlora", "lora_int8", "lora_fp8"]


def test_full_trains_every_weight(build):
    model = build("full")
    assert len(trainable(model)) == len(list(model.parameters())) > 10
    assert not isinstance(model, peft.PeftModel)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_alone_train_and_their_number_is_known(build, name):
    model = build(name, rank=4)
    found = trainable(model)
    kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if name == "dora" else set())
    assert {kind for kind in kinds for key in found if f".{kind}." in key} == kinds
    assert all(any(f".{kind}." in key for kind in kinds) for key in found)
    per_layer = [4 * (m.in_features + m.out_features) + m.out_features * (name == "dora") for _, m in layers(model)]
    assert sum(p.numel() for p in found.values()) == sum(per_layer)
    assert {key.split(".")[-1] for key, _ in layers(model)} == LINEARS
    assert len(per_layer) == 14


@pytest.mark.parametrize("name", ADAPTERS)
def test_only_adapters_get_a_gradient(build, name):
    model = build(name).train()
    model(IDS, labels=IDS).loss.backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == trainable(model).keys()
    assert sum(float(p.grad.abs().sum()) for p in trainable(model).values()) > 0


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in ("pissa", "lora_fp8")])
def test_training_starts_where_the_model_is(base, build, name):
    before = base(name)
    keep_trainable_on_cpu(before)  # its layout for inference rounds in another way
    torch.testing.assert_close(logits(build(name)), logits(before), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_the_seed_decides_the_start(build, name):
    first, second = (trainable(build(name)) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(bool((p == 0).all()) == (".lora_B." in key) for key, p in first.items())


@pytest.mark.parametrize("name", ADAPTERS)
def test_rank_and_alpha_give_the_scale(build, name):
    scale = {m.scaling["default"] for _, m in layers(build(name, rank=16, alpha=8.0))}
    assert scale == {8 / 16**0.5 if name == "rslora" else 8 / 16}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_dropout_reaches_every_adapter(build, name, rate):
    model = build(name, dropout=rate)
    found = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert [module.p for module in found] == ([rate] * 14 if rate else [])


def test_dropout_acts_in_training_and_not_in_evaluation(build):
    model = build("lora", dropout=0.5)
    for key, p in trainable(model).items():
        if ".lora_B." in key:
            p.data.normal_()
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", ADAPTERS)
def test_some_modules_only(build, name):
    model = build(name, target_modules=["q_proj", "layers.1.mlp.down_proj"])
    found = [".".join(key.split(".")[-4:]) for key, _ in layers(model)]
    assert found == ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]


@pytest.mark.parametrize("name", ["lora", "qlora", "lora_int8"])
@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "x_proj"], r"this model has no x_proj\. Its linear layers are: down_proj, gate_proj, k_proj"),
        (["layers.7.mlp.up_proj"], r"this model has no layers\.7\.mlp\.up_proj"),
        (["proj"], r"this model has no proj\."),
        (["self_attn"], "this model has no self_attn"),
        (["embed_tokens"], "this model has no embed_tokens"),
        ([], r"use all-linear or a list out of \[down_proj, gate_proj"),
        ("q_proj", r"method\.target_modules=q_proj: use all-linear or a list"),
    ],
)
def test_modules_that_are_not_there(build, name, targets, reason):
    with pytest.raises(ConfigError, match=reason):
        build(name, target_modules=targets)


def test_layers_that_store_their_weight_transposed(tmp_path, settings):
    """GPT-2's linear layers are Conv1D."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=64))
    before = logits(model)
    method = replace(settings("method=pissa").method, target_modules=["c_attn", "c_fc"], rank=8)
    adapted = METHODS["pissa"].attach(model, method)
    pissa.start(adapted, tmp_path / "start.safetensors")
    assert len(list(layers(adapted))) == 2
    torch.testing.assert_close(logits(adapted), before, atol=1e-4, rtol=0)


def test_dora_has_a_magnitude_for_each_output(build):
    for _, layer in layers(build("dora")):
        norm = layer.get_base_layer().weight.norm(dim=1)
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_stores_nf4_with_double_quantisation_and_nothing_in_fp32(build, dtype):
    model = build("qlora", dtype)
    stored = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(stored) == 14
    for module in stored:
        state = module.weight.quant_state
        assert (module.weight.dtype, state.quant_type, state.nested) == (torch.uint8, "nf4", True)
        assert module.weight.numel() == module.in_features * module.out_features // 2
        assert module.compute_dtype == dtype
        assert module.support_avx512bf16_for_cpu is False
    rest = {n: p.dtype for n, p in model.named_parameters() if "lora_" not in n and p.dtype != torch.uint8}
    assert any("embed_tokens" in n for n in rest) and any("norm" in n for n in rest)
    assert set(rest.values()) == {dtype}
    assert model.get_output_embeddings().weight.dtype == dtype


def test_int8_has_no_outlier_columns(build):
    model = build("lora_int8", torch.bfloat16)
    stored = [m for m in model.modules() if isinstance(m, bnb.nn.Linear8bitLt)]
    assert len(stored) == 14
    assert {m.state.threshold for m in stored} == {0.0}
    assert {m.weight.dtype for m in stored} == {torch.int8}
    rest = {p.dtype for n, p in model.named_parameters() if "lora_" not in n and p.dtype != torch.int8}
    assert rest == {torch.bfloat16}


def test_int8_neighbours_in_a_batch_change_nothing(build):
    """With the usual threshold of 6.0 an outlier in one row moves its column, for all rows, out of int8."""
    model = build("lora_int8").eval()
    torch.manual_seed(0)
    embeddings = torch.randn(3, 6, 64)
    embeddings[2, :, 1:] = 0  # all of the row's norm in one column: sqrt(64) = 8 after the RMSNorm, an outlier
    with torch.no_grad():
        alone = model(inputs_embeds=embeddings[:1]).logits
        beside = model(inputs_embeds=embeddings).logits[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_evaluating_between_steps_leaves_qlora_gradients_right(build):
    """bitsandbytes repacks 4-bit weights at the first forward in eval mode on some CPUs (DESIGN section 9, trap 1)."""

    def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return {key: p.grad.clone() for key, p in trainable(model).items() if p.grad is not None}

    model = build("qlora", torch.bfloat16)
    before = gradients(model)
    logits(model)
    after = gradients(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("alpha", [4.0, 32.0])
def test_pissa_leaves_the_output_as_it_was(base, build, tmp_path, alpha):
    before = logits(base("pissa"))
    model = build("pissa", start=tmp_path / "start.safetensors", rank=8, alpha=alpha)
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)
    without = [m for _, m in layers(model)]
    for layer in without:
        layer.scaling["default"] = 0.0
    assert (logits(model) - before).abs().max() > 1e-2  # what the adapters hold is not nothing


def test_pissa_takes_the_principal_directions(base, build, tmp_path):
    original = dict(base("pissa").named_modules())
    model = build("pissa", start=tmp_path / "start.safetensors", rank=8)
    for name, layer in layers(model):
        weight = original[name.removeprefix("base_model.model.")].weight
        singular = torch.linalg.svdvals(weight)
        rest = torch.linalg.svdvals(layer.get_base_layer().weight)
        torch.testing.assert_close(rest[: len(singular) - 8], singular[8:], atol=1e-5, rtol=0)
        assert rest[len(singular) - 8 :].max() < 1e-5


def test_pissa_starts_from_its_file_where_there_is_one(base, build, tmp_path, monkeypatch):
    """Singular vectors are known up to their sign only: another machine may turn them."""
    file = tmp_path / "checkpoints" / "start.safetensors"
    first = build("pissa", start=file)
    assert [path.name for path in file.parent.iterdir()] == ["start.safetensors"]
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: pytest.fail("computed again"))
    second = build("pissa", start=file)
    states = [model.state_dict() for model in (first, second)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

    turned = {key: -value for key, value in pissa.load_file(file).items()}
    pissa.save_file(turned, file)
    third = build("pissa", start=file)
    torch.testing.assert_close(logits(third), logits(base("pissa")), atol=1e-4, rtol=0)
    for (_, one), (_, other) in zip(layers(first), layers(third), strict=True):
        assert torch.equal(one.lora_A["default"].weight, -other.lora_A["default"].weight)
        assert torch.equal(one.get_base_layer().weight, other.get_base_layer().weight)


def test_pissa_in_bf16_differs_by_rounding_only(base, build, tmp_path):
    model = build("pissa", torch.bfloat16, start=tmp_path / "start.safetensors")
    reference = logits(base("pissa", torch.bfloat16))
    assert (logits(model) - reference).abs().max() < 0.05 * reference.abs().max()


def test_only_one_rank_writes_pissas_start(build, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    build("pissa", start=tmp_path / "start.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_fp8_rounds_the_base_to_three_bits_of_mantissa_and_nothing_else(base, build):
    before, model = base("lora_fp8"), build("lora_fp8")
    off = (logits(model) - logits(before)).norm() / logits(before).norm()
    assert 1e-4 < off < 0.1
    rounded = {type(module) for name, module in model.named_modules() if name.endswith("base_layer")}
    assert rounded == {Fp8Linear}
    layer = next(module for module in model.modules() if isinstance(module, Fp8Linear))
    weight = before.model.layers[0].self_attn.q_proj.weight
    assert ((layer.plain(torch.float32) - weight).norm(dim=1) / weight.norm(dim=1)).max() < 0.04
    assert type(model.get_output_embeddings()) is torch.nn.Linear
