"""InternLM2's published layout: loaded, computed, quantised and written back without a line of remote code."""

from __future__ import annotations

import builtins
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sweeptune.config.errors import ConfigError
from sweeptune.methods.quantized import int8, nf4
from sweeptune.models import load_config, load_model
from sweeptune.models.internlm2 import InternLM2ForCausalLM, register, to_llama
from sweeptune.models.load import as_settings
from tests.models.internlm2 import published_config, random_weights, reference, split, write

FP32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
IDS = torch.arange(3, 53)
CONFIG = published_config()
WEIGHTS = random_weights(CONFIG)


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch) -> None:
    """transformers asks on the terminal before it runs remote code; that must never happen."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked whether to run remote code"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("internlm2") / "published", CONFIG, WEIGHTS)


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS, **more: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids[None], **more).logits[0]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_it_computes_what_the_definition_says(tmp_path, kind, shards):
    model = load_model(write(tmp_path / "m", CONFIG, WEIGHTS, kind, shards), **FP32)
    expected = reference(CONFIG, WEIGHTS, IDS)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits(model), expected, **EXACT)


def test_wrongly_split_weights_would_show(tmp_path):
    """The check itself: queries first, then keys, then values, as other models fuse them, is far off."""
    weights = dict(WEIGHTS)
    for name in [name for name in weights if "wqkv" in name]:
        queries, pairs = split(weights[name], CONFIG)
        weights[name] = torch.cat([*queries, *pairs[::2], *pairs[1::2]])
    model = load_model(write(tmp_path / "m", CONFIG, weights), **FP32)
    assert (logits(model) - reference(CONFIG, WEIGHTS, IDS)).abs().max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": True},
        {"num_key_value_heads": 8},
        {"num_key_value_heads": 1},
        {"rope_scaling": None, "rope_theta": 10000},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ],
    ids=str,
)
def test_other_shapes(tmp_path, changes):
    config = published_config(**changes)
    weights = random_weights(config, seed=1)
    model = load_model(write(tmp_path / "m", config, weights), **FP32)
    torch.testing.assert_close(logits(model), reference(config, weights, IDS), **EXACT)
    model.save_pretrained(tmp_path / "again")
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), weights)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_past_the_trained_length_the_rotary_base_grows_and_comes_back(folder, attention):
    model = load_model(replace(as_settings(folder), attention=attention), **FP32)
    short, long = reference(CONFIG, WEIGHTS, IDS), torch.arange(150) + 7
    torch.testing.assert_close(logits(model, long), reference(CONFIG, WEIGHTS, long), **EXACT)
    torch.testing.assert_close(logits(model), short, **EXACT)
    unscaled = published_config(rope_scaling=None)
    assert (reference(unscaled, WEIGHTS, long) - reference(CONFIG, WEIGHTS, long)).abs().max() > 1e-3


def test_packed_samples_do_not_see_each_other(folder):
    """Three samples in one row, told apart by position ids alone: no cache, no mask."""
    model = load_model(folder, **FP32)
    assert model.config.use_cache is False
    samples = [IDS[:20], IDS[20:27], IDS[27:]]
    positions = torch.cat([torch.arange(len(sample)) for sample in samples])
    expected = torch.cat([reference(CONFIG, WEIGHTS, sample) for sample in samples])
    torch.testing.assert_close(logits(model, position_ids=positions[None]), expected, **EXACT)
    assert (reference(CONFIG, WEIGHTS, IDS) - expected).abs().max() > 0.1


def test_the_attention_back_end_of_the_file_is_not_taken(folder):
    assert CONFIG["attn_implementation"] == "eager"
    assert load_model(folder, **FP32).config._attn_implementation == "sdpa"
    assert load_model(replace(as_settings(folder), attention="eager"), **FP32).config._attn_implementation == "eager"
    random = load_model(replace(as_settings(folder), weights="random"), **FP32)
    assert random.config._attn_implementation == "sdpa"


def test_its_dtype_is_the_file_s_unless_one_is_given(folder):
    assert load_model(folder, device="cpu").dtype == torch.bfloat16
    assert load_model(str(folder), dtype="fp32").dtype == torch.float32
    assert load_model(replace(as_settings(folder), dtype="fp16"), device="cpu").dtype == torch.float16
    with pytest.raises(ConfigError, match=r"dtype=float: use auto, fp32, bf16, fp16"):
        load_model(folder, dtype="float")


def test_greedy_generation_with_a_cache_follows_the_definition(folder):
    made = load_model(folder, **FP32).generate(
        IDS[None, :5], max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=-1, pad_token_id=2
    )[0]
    for at in range(5, 13):
        assert made[at] == reference(CONFIG, WEIGHTS, made[:at])[-1].argmax()


# -- saving ------------------------------------------------------------------------------------------------------------


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_saving_writes_the_published_layout_bit_by_bit(folder, tmp_path):
    load_model(folder, **FP32).save_pretrained(tmp_path / "out")
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), WEIGHTS)
    again = load_model(tmp_path / "out", **FP32)
    assert_equal(again.state_dict(), load_model(folder, **FP32).state_dict())


def test_a_saved_config_is_the_published_one_without_remote_code(folder, tmp_path):
    load_model(folder, **FP32).save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in ("auto_map", "attn_implementation", "rope_parameters", "attention_bias"):
        assert name not in saved
    # use_cache is a setting of the run, the others say when and with what the file was written.
    for name in CONFIG.keys() - {"auto_map", "attn_implementation", "torch_dtype", "transformers_version", "use_cache"}:
        assert saved[name] == CONFIG[name], name
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["factor"] == 2.0


def test_random_weights_are_saved_in_the_published_layout_too(settings, tmp_path):
    shape = published_config() | {"model_type": "internlm2"}
    for name in ("auto_map", "attn_implementation", "architectures", "transformers_version"):
        shape.pop(name)
    made = load_model(replace(settings("model=internlm2_1_8b").model, weights="random", architecture=shape), **FP32)
    made.save_pretrained(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == WEIGHTS.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    torch.testing.assert_close(logits(made), reference(config, weights, IDS), **EXACT)


def test_a_plain_llama_with_the_same_logits(folder, tmp_path):
    model = load_model(folder, **FP32)
    long = torch.arange(150) + 7
    expected, far = logits(model), logits(model, long)
    to_llama(model).save_pretrained(tmp_path / "llama")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    assert type(plain) is LlamaForCausalLM and type(plain.config) is LlamaConfig
    assert torch.equal(logits(plain), expected)
    assert torch.equal(logits(plain, long), far)


def test_plain_llamas_are_left_alone(settings, tmp_path):
    load_model(settings().model, **FP32).save_pretrained(tmp_path / "llama")
    names = load_file(tmp_path / "llama" / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not any("wqkv" in name for name in names)


def test_registering_twice_changes_nothing(folder):
    register()
    model = load_model(folder, **FP32)
    assert type(model) is InternLM2ForCausalLM
    torch.testing.assert_close(logits(model), reference(CONFIG, WEIGHTS, IDS), **EXACT)


# -- fewer bits --------------------------------------------------------------------------------------------------------


def split_weights(layer: int) -> dict[str, torch.Tensor]:
    """The seven matrices of a layer by Llama's names, out of the published ones."""
    at = f"model.layers.{layer}."
    queries, pairs = split(WEIGHTS[f"{at}attention.wqkv.weight"], CONFIG)
    return {
        "self_attn.q_proj": torch.cat(queries),
        "self_attn.k_proj": torch.cat(pairs[::2]),
        "self_attn.v_proj": torch.cat(pairs[1::2]),
        "self_attn.o_proj": WEIGHTS[f"{at}attention.wo.weight"],
        "mlp.gate_proj": WEIGHTS[f"{at}feed_forward.w1.weight"],
        "mlp.up_proj": WEIGHTS[f"{at}feed_forward.w3.weight"],
        "mlp.down_proj": WEIGHTS[f"{at}feed_forward.w2.weight"],
    }


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_four_bit_bytes_are_those_of_the_split_weights(tmp_path, kind):
    published = write(tmp_path / "m", CONFIG, WEIGHTS, kind, shards=2)
    model = load_model(published, **FP32, quantization=nf4(torch.float32))
    seen = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert len(seen) == 7 * CONFIG["num_hidden_layers"]
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, weight in split_weights(layer).items():
            stored = model.get_submodule(f"model.layers.{layer}.{name}").weight
            packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            assert torch.equal(stored.data, packed), name
            assert torch.equal(
                bnb.functional.dequantize_4bit(stored.data, stored.quant_state),
                bnb.functional.dequantize_4bit(packed, state),
            ), name
    assert type(model.lm_head) is torch.nn.Linear


def test_four_bits_are_saved_split_and_come_back_bit_by_bit(folder, tmp_path):
    model = load_model(folder, **FP32, quantization=nf4(torch.float32))
    model.save_pretrained(tmp_path / "out")
    again = load_model(tmp_path / "out", **FP32)
    assert_equal(
        {n: p for n, p in again.named_parameters() if "proj" in n},
        {n: p for n, p in model.named_parameters() if "proj" in n},
    )


def test_random_weights_are_quantised_from_memory_like_from_disk(folder, tmp_path):
    random = replace(as_settings(folder), weights="random")
    load_model(random, **FP32, seed=3).save_pretrained(tmp_path / "out")
    memory = load_model(random, **FP32, quantization=nf4(torch.float32), seed=3)
    disk = load_model(tmp_path / "out", **FP32, quantization=nf4(torch.float32))
    assert_equal(dict(memory.named_parameters()), dict(disk.named_parameters()))


def test_eight_bits_stay_close(folder):
    model = load_model(folder, **FP32, quantization=int8(torch.float32))
    assert sum(isinstance(m, bnb.nn.Linear8bitLt) for m in model.modules()) == 7 * CONFIG["num_hidden_layers"]
    expected = reference(CONFIG, WEIGHTS, IDS)
    assert (logits(model) - expected).norm() / expected.norm() < 0.1


# -- adapters and safety -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [None, nf4(torch.float32)], ids=["fp32", "nf4"])
def test_adapters_come_back_onto_the_published_base(folder, tmp_path, stored):
    base = load_model(folder, **FP32, quantization=stored)
    untouched = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted = {name.rsplit(".lora_A", 1)[0].rsplit(".", 1)[1] for name, _ in model.named_modules() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    expected = logits(model)
    assert (expected - untouched).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_model(folder, **FP32, quantization=stored), tmp_path / "adapter")
    assert torch.equal(logits(again), expected)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = write(tmp_path / "m", CONFIG, {}, "bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"output.weight": Evil()}))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(folder, **FP32)
    assert not (tmp_path / "ran").exists()


def test_another_model_s_remote_code_is_neither_run_nor_asked_about(tmp_path):
    config = {"model_type": "homemade", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    folder = write(tmp_path / "m", config, {"a": torch.ones(1)})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for load in (load_model, lambda path: load_config(as_settings(path))):
        with pytest.raises(ConfigError, match=r"trust_remote_code|cannot be loaded|describes no model"):
            load(folder)
    assert not (tmp_path / "ran").exists()
