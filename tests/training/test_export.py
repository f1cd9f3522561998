"""What is exported is what was trained."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeptune.config.errors import ConfigError
from sweeptune.models import load_model
from sweeptune.training import run
from sweeptune.training.export import export
from sweeptune.training.judge import judge, judge_folder
from sweeptune.training.restore import dequantize, load_trained

METHODS = ["full", "lora", "qlora", "dora", "rslora", "pissa", "lora_int8"]
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
    if method not in ("lora_int8",):  # its training also quantises activations
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
    if method in ("qlora", "lora_int8"):  # the original base is not the quantised one: equal up to that
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
