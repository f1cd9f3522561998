"""Runs with an embedding in host memory and a head in 4 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeptune.config.compose import compose
from sweeptune.training import merge, run
from sweeptune.training.estimate import estimate
from sweeptune.training.shapes import Shape, Shapes

UNTIED = ["method=qlora", "model.architecture.tie_word_embeddings=false"]


def test_a_run_with_both_is_proven_and_says_so(settings, tmp_path):
    more = ["train.max_steps=2", "data.packing=pack", "eval.max_samples=8"]
    plain = run(settings(*UNTIED, *more), tmp_path / "plain")
    hosted = run(settings(*UNTIED, *more, "model.embedding=cpu"), tmp_path / "hosted")
    packed = run(settings(*UNTIED, *more, "model.embedding=cpu", "model.head=nf4"), tmp_path / "packed")
    assert [r["status"] for r in (plain, hosted, packed)] == ["completed"] * 3
    assert hosted["eval"]["loss"] == plain["eval"]["loss"] != packed["eval"]["loss"]
    quality, cost = ([r["fingerprint"][part] for r in (plain, hosted, packed)] for part in ("quality", "cost"))
    assert quality[0] == quality[1] and quality[2] == quality[0] | {"head": "nf4"}
    assert [(c["embedding"], c["head"]) for c in cost] == [("device", "plain"), ("cpu", "plain"), ("cpu", "nf4")]
    assert hosted["speed"]["flops_per_token"] == packed["speed"]["flops_per_token"] == plain["speed"]["flops_per_token"]


def test_a_merged_model_is_quantised_again_with_its_head(settings, tmp_path, monkeypatch):
    plain, heads = merge.quantize_head, []
    monkeypatch.setattr(merge, "quantize_head", lambda model, *more: heads.append(model) or plain(model, *more))
    more = ["train.max_steps=1", "eval.max_samples=8", "eval.merged=true", "model.head=nf4", "model.embedding=cpu"]
    record = run(settings(*UNTIED, *more), tmp_path)
    assert record["status"] == "completed"
    assert "merge_reason" not in record["eval"] and len(heads) == 1
    assert record["eval"]["merged_requantized"] == pytest.approx(record["eval"]["as_trained"], abs=0.1)


def test_the_prediction_leaves_out_what_is_on_the_host_and_packs_the_head():
    base = ["model=smollm2_135m", "model.weights=random", "hardware=gpu", *UNTIED]

    def predict(*overrides: str):
        config = compose([*base, *overrides])
        shape = Shape(1, 64, 32, 64, padded=False)
        config = replace(config, hardware=replace(config.hardware, device="cuda"))
        return estimate(config, Shapes(((shape,),), shape)).parts

    table = 49152 * 576 / 2**30
    plain, hosted, packed = predict(), predict("model.embedding=cpu"), predict("model.head=nf4")
    assert plain["weights"] - hosted["weights"] == pytest.approx(2 * table, rel=0.01)
    assert plain["weights"] - packed["weights"] == pytest.approx(2 * table, rel=0.01)
    assert packed["quantized"] - plain["quantized"] == pytest.approx(table * 0.516, rel=0.02)
