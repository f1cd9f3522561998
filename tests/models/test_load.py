"""From settings to a loaded model: where it is looked for, what is said when it is not there, and what names it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import huggingface_hub.constants
import pytest
import torch
from transformers import AutoConfig

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import ModelConfig
from sweeptune.methods.quantized import nf4
from sweeptune.models import architecture_digest, load_config, load_model, load_tokenizer, locate, weights_digest
from sweeptune.models.fetch import SOURCE, weights_hash
from sweeptune.models.tiny import tiny_tokenizer

CPU = torch.device("cpu")
FP32: dict[str, Any] = {"dtype": torch.float32, "device": CPU}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(settings) -> ModelConfig:
    return settings().model


@pytest.fixture
def saved(tiny, tmp_path) -> ModelConfig:
    """The tiny model in a folder."""
    folder = tmp_path / "saved"
    load_model(tiny, **FP32, seed=5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return replace(tiny, path=str(folder), weights="pretrained", architecture=None)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_decides_random_weights_and_nothing_else_does(tiny):
    first = weights(load_model(tiny, **FP32, seed=1))
    torch.rand(7)
    assert equal(first, weights(load_model(tiny, **FP32, seed=1)))
    assert not equal(first, weights(load_model(tiny, **FP32, seed=2)))


def test_a_saved_model_comes_back_bit_by_bit(tiny, saved):
    loaded = load_model(saved, **FP32, seed=99)
    assert equal(weights(loaded), weights(load_model(tiny, **FP32, seed=5)))
    assert locate(saved) == Path(str(saved.path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["tiny", "saved"])
def test_weights_are_stored_in_the_dtype_that_is_asked_for(source, dtype, request):
    model = load_model(request.getfixturevalue(source), dtype=dtype, device=CPU)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_random_weights_of_a_folder_have_its_shape_and_not_its_values(tiny, saved):
    random = replace(saved, weights="random")
    assert architecture_digest(load_config(random)) == architecture_digest(load_config(tiny))
    assert not equal(weights(load_model(random, **FP32, seed=6)), weights(load_model(saved, **FP32)))
    assert equal(weights(load_model(random, **FP32, seed=5)), weights(load_model(saved, **FP32)))


def test_four_bits_from_memory_are_four_bits_from_disk(tiny, saved):
    """Random weights are quantised without a file; the quantiser must be the same one."""
    memory = load_model(tiny, **FP32, quantization=nf4(torch.float32), seed=5)
    disk = load_model(saved, **FP32, quantization=nf4(torch.float32))
    layers = {name: m for name, m in memory.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(layers) == 14
    assert equal(weights(memory), weights(disk))
    for name, layer in layers.items():
        assert layer.weight.quant_state.quant_type == disk.get_submodule(name).weight.quant_state.quant_type == "nf4"
    ids = torch.arange(20)[None]
    assert torch.equal(memory(ids).logits, disk(ids).logits)


@pytest.mark.parametrize(("attention", "used"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
@pytest.mark.parametrize("source", ["tiny", "saved"])
def test_the_attention_back_end_is_always_ours(source, attention, used, request):
    """Some config.json files ask for eager attention; the settings win."""
    model = replace(request.getfixturevalue(source), attention=attention)
    assert load_model(model, **FP32).config._attn_implementation == used


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be installed here")
@pytest.mark.parametrize("source", ["tiny", "saved"])
def test_an_attention_back_end_that_is_not_there(source, request):
    model = replace(request.getfixturevalue(source), attention="flash_attention_2")
    with pytest.raises(ConfigError, match=r"model\.attention=flash_attention_2: .*Flash"):
        load_model(model, **FP32)


def test_a_model_that_is_not_fetched_yet_says_how_to_fetch_it(settings):
    model = settings("model=smollm2_135m_q4").model
    with pytest.raises(ConfigError, match=r"not fetched yet\. Run: sweeptune fetch smollm2_135m_q4"):
        locate(model)
    assert locate(replace(model, weights="random")) is None


def test_a_fetched_model_is_found_by_its_name(settings, tmp_path):
    folder = tmp_path / "cache" / "models" / "smollm2_135m_q4"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="not fetched yet"):  # a half-made folder is none
        locate(settings("model=smollm2_135m_q4").model)
    (folder / SOURCE).write_text("{}")
    assert locate(settings("model=smollm2_135m_q4").model) == folder


def test_a_model_without_weights_anywhere(tiny):
    with pytest.raises(ConfigError, match=r"set model\.weights=random or model\.path=<folder>"):
        locate(replace(tiny, weights="pretrained"))


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "~/nothing-here", "../nothing"])
def test_a_folder_that_is_not_there(tiny, path):
    with pytest.raises(ConfigError, match=rf"model\.path={path}: no such folder"):
        locate(replace(tiny, path=path, weights="pretrained"))


def test_a_folder_that_holds_no_model(tiny, tmp_path):
    for chosen in ("pretrained", "random"):
        with pytest.raises(ConfigError, match=r"this folder has no config\.json, so it is not a saved model"):
            locate(replace(tiny, path=str(tmp_path), weights=chosen))


def test_the_hub_is_offline(tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"model\.path=someone/some-model: neither a local folder nor") as error:
        locate(replace(tiny, path="someone/some-model", weights="pretrained"))
    for way_out in ("hf download someone/some-model", "model.path=", "model.weights=random", "model=smollm2_135m_q4"):
        assert way_out in str(error.value)


def test_a_hub_id_that_cannot_be_one(tiny):
    with pytest.raises(ConfigError, match=r"model\.path=a/b/c: neither a local folder"):
        locate(replace(tiny, path="a/b/c", weights="pretrained"))


def test_random_weights_ask_no_hub(settings, monkeypatch):
    monkeypatch.setattr("sweeptune.models.load.snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    model = replace(settings("model=smollm2_135m").model, weights="random")
    assert locate(model) is None
    assert load_config(model).num_hidden_layers == 30
    assert len(load_tokenizer(model)) == 258


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (None, "needs a local model.path, or model.architecture with model_type"),
        ({"hidden_size": 64}, "needs a local model.path, or model.architecture with model_type"),
        ({"model_type": "lama"}, "model.architecture describes no model .*Unrecognized model identifier: lama"),
    ],
)
def test_an_architecture_that_is_none(tiny, architecture, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        load_model(replace(tiny, architecture=architecture), **FP32)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("change", [{"hidden_size": 63}, {"model_type": "vit"}])
def test_an_architecture_that_cannot_be_built(tiny, change):
    with pytest.raises(ConfigError, match=r"model=tiny: cannot be loaded|model\.architecture describes no model"):
        load_model(replace(tiny, architecture=tiny.architecture | change), **FP32)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", b"{"), ("config.json", b'{"model_type": "unheard_of"}'), ("model.safetensors", b"junk" * 9)],
)
def test_a_damaged_folder(saved, file, content):
    (Path(str(saved.path)) / file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"model=tiny: cannot be loaded"):
        load_model(saved, **FP32)


def test_a_folder_without_weights_or_tokenizer(saved):
    folder = Path(str(saved.path))
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded .*no file named model\.safetensors"):
        load_model(saved, **FP32)
    with pytest.raises(ConfigError, match="no tokenizer that transformers can read"):
        load_tokenizer(saved)


def test_a_tokenizer_comes_with_its_folder(saved):
    assert load_tokenizer(saved).encode("<|im_start|>hi") == tiny_tokenizer().encode("<|im_start|>hi")


def test_one_byte_changes_the_name_of_the_weights(saved):
    file = Path(str(saved.path)) / "model.safetensors"
    before = weights_hash(file.parent)
    assert weights_digest(saved, **FP32, seed=0) == weights_digest(saved, **FP32, seed=1) == before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_hash(file.parent) != before
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_hash(file.parent) == before


def test_the_hash_of_weights_is_remembered(saved, monkeypatch):
    folder = Path(str(saved.path))
    first = weights_hash(folder)
    real, read = Path.open, []

    def watched(path: Path, *arguments: Any, **named: Any) -> Any:
        read.append(path.name)
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", watched)
    assert weights_hash(folder) == first
    assert "model.safetensors" not in read
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert weights_hash(folder) == first
    assert "model.safetensors" in read


def test_equal_weights_in_two_folders_have_one_name(saved, tiny, tmp_path):
    load_model(tiny, **FP32, seed=5).save_pretrained(tmp_path / "copy")
    assert weights_hash(tmp_path / "copy") == weights_hash(Path(str(saved.path)))


def test_random_weights_are_named_by_what_decides_them(tiny):
    named = {
        weights_digest(tiny, **FP32, seed=0),
        weights_digest(tiny, **FP32, seed=1),
        weights_digest(tiny, dtype=torch.bfloat16, device=CPU, seed=0),
        weights_digest(tiny, dtype=torch.float32, device=torch.device("cuda", 0), seed=0),
        weights_digest(replace(tiny, architecture=tiny.architecture | {"hidden_size": 128}), **FP32, seed=0),
    }
    assert len(named) == 5
    assert weights_digest(tiny, **FP32, seed=0) in named
    assert weights_digest(replace(tiny, name="other"), **FP32, seed=0) in named


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"rope_theta": 5e5}, {"tie_word_embeddings": False}])
def test_the_digest_of_an_architecture_sees_what_changes_the_model(tiny, change):
    same = load_config(tiny)
    same._name_or_path, same.use_cache, same.dtype = "elsewhere", False, "bfloat16"
    assert architecture_digest(same) == architecture_digest(load_config(tiny))
    changed = load_config(replace(tiny, architecture=tiny.architecture | change))
    assert architecture_digest(changed) != architecture_digest(same)


def test_the_digest_of_an_architecture_outlives_saving(saved, tiny):
    assert architecture_digest(AutoConfig.from_pretrained(saved.path)) == architecture_digest(load_config(tiny))
