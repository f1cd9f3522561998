"""QLoRA has three losses: as trained, merged into bf16, and merged and quantised again."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sweeptune.config.compose import compose, dump, load
from sweeptune.config.schema import EvalConfig
from sweeptune.methods import METHODS
from sweeptune.methods.quantized import keep_trainable_on_cpu
from sweeptune.models import load_model
from sweeptune.models.load import quantize
from sweeptune.tracking.record import MERGED, read_record
from sweeptune.training import merge, run
from sweeptune.training.export import export
from sweeptune.training.judge import judge_folder
from sweeptune.training.merge import merged, store
from sweeptune.training.restore import dequantize, load_trained
from sweeptune.training.session import open_session

LEARNED = ("train.max_steps=6", "optim.lr=1e-2", "eval.max_samples=8", "eval.merged=true")
CPU = torch.device("cpu")


@pytest.fixture
def bold(settings, tmp_path) -> list[str]:
    """A base with weights large enough that quantisation and rounding show."""
    folder = tmp_path / "base"
    base = load_model(settings().model, dtype=torch.float32, device=CPU, seed=5)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3)
    base.save_pretrained(folder)
    from sweeptune.models.tiny import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return [f"model.path={folder}", "model.weights=pretrained"]


@pytest.fixture
def qlora(settings, bold, tmp_path):
    """A finished run, its settings and its folder."""
    config = settings("method=qlora", *bold, *LEARNED)
    return run(config, tmp_path / "run"), config, tmp_path / "run"


def test_the_three_losses_are_those_of_the_models_that_they_name(qlora, tmp_path):
    record, config, folder = qlora
    assert record["status"] == "completed" and record == read_record(folder)
    losses = record["eval"]
    assert losses["as_trained"] == losses["loss"]
    assert len({losses[name] for name in MERGED}) == 3, "each is another model"

    # What `sweeptune export --merge` writes in bf16 is the model of the second loss; a CPU computes with it in fp32.
    export(folder, tmp_path / "out", merge=True, dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    judged = judge_folder(tmp_path / "out", config, torch.float32)
    assert losses["merged_bf16"] == pytest.approx(judged["loss"], abs=1e-5)

    # The third: that folder, read from disk into NF4.
    quantization = METHODS["qlora"].quantization(torch.float32)
    again = load_model(tmp_path / "out", dtype=torch.float32, device=CPU, quantization=quantization)
    keep_trainable_on_cpu(again)  # some processors' layout for inference rounds in another way
    session = open_session(config, tmp_path / "other")
    session.model = again
    from sweeptune.training.scoring import evaluate_split

    (tmp_path / "other").mkdir()
    assert losses["merged_requantized"] == pytest.approx(evaluate_split(session, "again")["loss"], abs=1e-4)


def test_merging_leaves_the_peaks_of_the_run_alone(qlora):
    memory = qlora[0]["memory"]
    assert memory["phases"]["merge"]["host_gib"] > 0
    compared = [memory["phases"][name]["host_gib"] for name in ("steady", "eval")]
    assert memory["peak_memory_gib"] == max(compared)
    assert memory["host_peak_gib"] == max(v["host_gib"] for k, v in memory["phases"].items() if k != "merge")


def test_bf16_means_weights_that_bf16_can_hold(qlora):
    trained = load_trained(qlora[2])
    exact = dict(merged(load_trained(qlora[2]).model, torch.float32).named_parameters())
    rounded = merged(trained.model, torch.bfloat16)
    for name, parameter in rounded.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, exact[name].to(torch.bfloat16)), f"{name}: added in fp32, rounded once"
    frequencies = dict(rounded.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32 and not frequencies.is_meta


def test_merging_is_never_done_in_nf4(qlora):
    """PEFT's own merge quantises the sum in place."""
    folder = qlora[2]
    ours = merged(load_trained(folder).model, torch.float32)
    assert not [m for m in ours.modules() if isinstance(m, bnb.nn.Linear4bit)]
    in_place = dequantize(load_trained(folder).model.merge_and_unload(), torch.float32)
    theirs = dict(in_place.named_parameters())
    differing = [n for n, p in ours.named_parameters() if "_proj" in n and not torch.allclose(p, theirs[n], atol=1e-3)]
    assert len(differing) == 14


@pytest.mark.parametrize("overrides", [("method=lora", *LEARNED), ("method=qlora", *LEARNED, "eval.merged=false")])
def test_otherwise_they_are_null(settings, tmp_path, overrides):
    record = run(settings(*overrides), tmp_path)
    assert record["status"] == "completed" and "merge" not in record["memory"]["phases"]
    assert [record["eval"][name] for name in MERGED] == [None] * 3


@pytest.mark.parametrize("stage", ["merged", "quantize"])
def test_a_merge_that_does_not_fit_leaves_a_complete_run(settings, tmp_path, monkeypatch, stage):
    def fail(*_):
        at_that_time.append(json.loads((tmp_path / "result.json").read_text())["status"])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB. GPU 0 has a total capacity of 8")

    at_that_time: list[str] = []
    monkeypatch.setattr(merge, stage, fail)
    record = run(settings("method=qlora", *LEARNED), tmp_path)
    assert at_that_time == ["completed"], "written before, for the case that the process is killed"
    assert record["status"] == "completed" and record["eval"]["as_trained"] == record["eval"]["loss"]
    assert (record["eval"]["merged_bf16"] is None) == (stage == "merged")
    assert record["eval"]["merged_requantized"] is None
    assert record["eval"]["merge_reason"] == "CUDA out of memory. Tried to allocate 14.00 GiB"


def test_quantising_from_memory_leaves_the_plain_model_as_it_is(settings):
    plain = load_model(settings().model, dtype=torch.float32, device=CPU)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    quantised = quantize(plain, METHODS["qlora"].quantization(torch.float32), torch.float32, CPU)
    assert len([m for m in quantised.modules() if isinstance(m, bnb.nn.Linear4bit)]) == 14
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not hasattr(plain.config, "quantization_config")


def test_storing_changes_weights_and_no_buffers(settings):
    model = load_model(settings().model, dtype=torch.float32, device=CPU)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    store(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is True


def test_an_internlm2_is_judged_merged_too(settings, tmp_path):
    """Its published names and fused weights must not come in the way of quantising from memory."""
    from sweeptune.models.tiny import tiny_tokenizer
    from tests.models.internlm2 import published_config, random_weights, write

    values = published_config(max_position_embeddings=1024)
    folder = write(tmp_path / "base", values, random_weights(values))
    tiny_tokenizer().save_pretrained(folder)
    config = settings(
        "model=internlm2_1_8b", f"model.path={folder}", "model.weights=pretrained", "method=qlora", *LEARNED
    )
    losses = run(config, tmp_path / "run")["eval"]
    assert "merge_reason" not in losses
    assert losses["merged_bf16"] == pytest.approx(losses["as_trained"], abs=0.05)
    assert losses["merged_requantized"] == pytest.approx(losses["as_trained"], abs=0.2)
    weights = load_file(folder / "model.safetensors")
    assert any("wqkv" in name for name in weights)


def test_a_run_folder_from_before_this_setting_can_be_read(settings, tmp_path):
    text = dump(settings())
    old = "".join(line for line in text.splitlines(keepends=True) if "  merged:" not in line)
    assert old != text
    (tmp_path / "config.yaml").write_text(old)
    assert load(Path(tmp_path / "config.yaml")) == settings()
    assert EvalConfig.__dataclass_fields__["merged"].default == compose([]).eval.merged
