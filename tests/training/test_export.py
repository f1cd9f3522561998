"""What is exported is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from sweeptune.config.errors import ConfigError
from sweeptune.data import stop_ids
from sweeptune.models import load_model, load_tokenizer
from sweeptune.training import run
from sweeptune.training.export import export
from sweeptune.training.judge import judge, judge_folder
from sweeptune.training.restore import dequantize, load_trained
from tests.models.internlm2 import published_config, random_weights, reference, write

METHODS = ["full", "lora", "qlora", "dora", "rslora", "pissa", "lora_int8", "lora_fp8"]
LEARNED = ("train.max_steps=6", "optim.lr=1e-2")  # far enough from the start that a forgotten adapter shows


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(1, 200).reshape(1, -1)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.fixture
def saved_tiny(settings, tmp_path):
    """A pretrained model on disk, so that an adapter has an original base to come back to."""
    config = settings()
    folder = tmp_path / "base"
    base = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), seed=5)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3)  # larger than at birth, so that quantisation and adapters matter
    base.save_pretrained(folder)
    from sweeptune.models.tiny import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return [f"model.path={folder}", "model.weights=pretrained"]


@pytest.mark.parametrize("method", METHODS)
def test_merged_export_has_the_logits_of_the_trained_model_with_its_base_dequantised(
    settings, tmp_path, saved_tiny, method
):
    config = settings(f"method={method}", *saved_tiny, *LEARNED)
    record = run(config, tmp_path / "run")
    assert record["status"] == "completed"
    expected = logits(dequantize(load_trained(tmp_path / "run").model, torch.float32))
    export(tmp_path / "run", tmp_path / "out", merge=True, dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert not hasattr(loaded.config, "quantization_config")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    start = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    assert (logits(start) - expected).abs().max() > 1e-2, "training must have changed something"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    if method not in ("lora_int8", "lora_fp8"):  # its training also quantises activations
        judged = judge_folder(tmp_path / "out", config, torch.float32)
        assert judged["loss"] == pytest.approx(record["eval"]["loss"], abs=1e-3)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_adapter_export_works_on_the_original_base(settings, tmp_path, saved_tiny, method):
    config = settings(f"method={method}", *saved_tiny, *LEARNED)
    run(config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "adapter", merge=False, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    untouched = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    trained = load_trained(tmp_path / "run").model
    if method in ("qlora", "lora_int8", "lora_fp8"):  # the original base is not the quantised one: equal up to that
        assert (adapted - logits(trained)).abs().max() < (untouched - logits(trained)).abs().max()
    else:
        torch.testing.assert_close(adapted, logits(trained), rtol=0, atol=1e-4)
    assert (adapted - untouched).abs().max() > 1e-2


def test_full_fine_tuning_without_merge_is_its_model(settings, tmp_path):
    run(settings("method=full", *LEARNED), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", merge=False, dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16


def test_export_refuses_a_folder_in_use_and_a_run_without_checkpoint(settings, tmp_path):
    run(settings("method=lora", "train.max_steps=1"), tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        export(tmp_path / "run", tmp_path / "run", merge=True, dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"no such file|no checkpoint"):
        export(tmp_path / "nothing", tmp_path / "out", merge=True, dtype=torch.float32)


def test_judging_a_run_again_gives_its_recorded_loss(settings, tmp_path):
    config = settings("method=qlora", *LEARNED)
    record = run(config, tmp_path / "run")
    assert judge(tmp_path / "run", config, "eval")["loss"] == pytest.approx(record["eval"]["loss"], abs=1e-6)
    everything = judge(tmp_path / "run", config, "all")
    assert everything["samples"] == sum(record["train"]["data"][part]["rows"] for part in ("train", "eval", "test"))


@pytest.fixture
def saved_internlm2(tmp_path):
    """An InternLM2 in the published layout, with a byte-level tokenizer."""
    from sweeptune.models.tiny import tiny_tokenizer

    config = published_config(max_position_embeddings=1024)
    folder = write(tmp_path / "base", config, random_weights(config))
    tiny_tokenizer().save_pretrained(folder)
    short = ["train.max_steps=2", "optim.lr=3e-3", "eval.max_samples=2"]
    return ["model=internlm2_1_8b", f"model.path={folder}", "model.weights=pretrained", *short]


@pytest.mark.parametrize("method", ["full", "qlora", "pissa"])
def test_a_merged_internlm2_has_the_published_layout_and_the_trained_logits(
    settings, tmp_path, saved_internlm2, method
):
    config = settings(
        "model=internlm2_1_8b", f"method={method}", *saved_internlm2, "train.max_steps=3", "optim.lr=3e-3"
    )
    assert run(config, tmp_path / "run")["status"] == "completed"
    expected = logits(dequantize(load_trained(tmp_path / "run").model, torch.float32))
    export(tmp_path / "run", tmp_path / "out", merge=True, dtype=torch.float32)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert weights.keys() == random_weights(values).keys()
    assert values["torch_dtype"] == "float32" and "auto_map" not in values and "quantization_config" not in values
    torch.testing.assert_close(reference(values, weights, torch.arange(1, 200)), expected[0], rtol=0, atol=1e-4)
    loaded = load_model(tmp_path / "out", device="cpu")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    start = load_model(config.model, dtype="fp32", device="cpu")
    assert (logits(start) - expected).abs().max() > 1e-2
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert [generation["eos_token_id"]] == stop_ids(load_tokenizer(config.model)) and values["use_cache"] is True


def test_an_internlm2_becomes_a_plain_llama(settings, tmp_path, saved_internlm2):
    config = settings("method=qlora", *saved_internlm2)
    run(config, tmp_path / "run")
    expected = logits(dequantize(load_trained(tmp_path / "run").model, torch.float32))
    export(tmp_path / "run", tmp_path / "out", merge=True, dtype=torch.float32, layout="llama")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("llama", ["LlamaForCausalLM"])
    # Readers of before transformers 5 look for these, and for nothing else.
    assert values["rope_theta"] == 1000000 and values["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(loaded) is LlamaForCausalLM
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    assert loaded.config.rope_parameters["rope_type"] == "dynamic"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_an_internlm2_adapter_works_on_the_published_base(settings, tmp_path, saved_internlm2):
    config = settings("method=lora", *saved_internlm2)
    run(config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "adapter", merge=False, dtype=torch.float32)
    base = load_model(config.model, dtype="fp32", device="cpu")
    untouched = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    assert torch.equal(adapted, logits(load_trained(tmp_path / "run").model))
    assert (adapted - untouched).abs().max() > 1e-2


def test_layouts_that_cannot_be(settings, tmp_path):
    run(settings("method=lora", "train.max_steps=1", "eval.max_samples=2"), tmp_path / "run")
    target = {"out": tmp_path / "out", "dtype": torch.float32}
    with pytest.raises(ConfigError, match="--layout gguf: use original or llama"):
        export(tmp_path / "run", merge=True, layout="gguf", **target)
    with pytest.raises(ConfigError, match="an adapter has no layout of its own; add --merge"):
        export(tmp_path / "run", merge=False, layout="llama", **target)
    export(tmp_path / "run", merge=True, layout="llama", **target)  # a Llama is one already
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is LlamaForCausalLM


def test_only_a_llama_becomes_a_llama(settings, tmp_path):
    config = settings("method=lora", "train.max_steps=1", "eval.max_samples=2")
    shape = {**config.model.architecture, "model_type": "qwen3", "head_dim": 16}
    run(replace(config, model=replace(config.model, architecture=shape)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--layout llama: model=tiny is a qwen3 and no Llama; use --layout original"):
        export(tmp_path / "run", tmp_path / "out", merge=True, dtype=torch.float32, layout="llama")
    assert not (tmp_path / "out").exists()
