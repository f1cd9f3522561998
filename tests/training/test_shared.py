"""The runs of a study measure the model before training once for every way in which it can start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from sweeptune.training import evaluate, run
from sweeptune.training.session import open_session
from sweeptune.training.shared import SHARED, first_evaluation, start_key
from tests.training.helpers import lines

SHORT = ("train.max_steps=1", "eval.max_samples=6")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SHARED, str(tmp_path / "study" / "shared"))
    return tmp_path / "study" / "shared"


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every batch that is evaluated."""
    calls, real = [], evaluate.token_nll

    def counted(model, batch):
        calls.append(1)
        return real(model, batch)

    monkeypatch.setattr(evaluate, "token_nll", counted)
    return calls


def test_the_second_run_takes_over_what_the_first_has_measured(settings, tmp_path, shared, evaluations):
    first = run(settings(*SHORT, "method=lora"), tmp_path / "first")
    whole = len(evaluations)
    evaluations.clear()
    second = run(settings(*SHORT, "method=lora", "method.rank=4", "optim.lr=1e-2"), tmp_path / "second")
    assert len(evaluations) == whole / 2, "the evaluation after training is its own"
    assert (first["eval"]["initial_shared"], second["eval"]["initial_shared"]) == (False, True)
    for key in ("initial_loss", "initial_bits_per_byte"):
        assert first["eval"][key] == second["eval"][key] is not None
    begin = [[x for x in lines(tmp_path / name / "metrics.jsonl") if x["step"] == 0] for name in ("first", "second")]
    assert begin[0] == begin[1] and begin[0][0]["eval_loss"] == first["eval"]["initial_loss"]
    assert second["eval"]["loss"] != first["eval"]["loss"]
    assert [path.suffix for path in shared.iterdir()] == [".json"]


def test_the_scores_of_the_examples_are_taken_over_too(settings, tmp_path, shared):
    left = []
    for name, method in (("first", "full"), ("second", "lora")):
        session = open_session(settings(*SHORT, f"method={method}"), tmp_path / name)
        (tmp_path / name).mkdir()
        first_evaluation(session)
        left.append((tmp_path / name / "eval.jsonl").read_text())
    assert left[0] == left[1] and len(left[0].splitlines()) == 6


def test_without_a_study_every_run_measures_for_itself(settings, tmp_path, monkeypatch):
    monkeypatch.delenv(SHARED, raising=False)
    records = [run(settings(*SHORT, "method=lora"), tmp_path / name) for name in ("a", "b")]
    assert [record["eval"]["initial_shared"] for record in records] == [False, False]


def test_methods_share_exactly_where_they_start_as_the_same_model(settings, tmp_path):
    def key(*overrides: str) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)  # one process trains in one precision
        folder = tmp_path / ",".join(overrides)
        return json.dumps(start_key(open_session(settings(*SHORT, *overrides), folder)), sort_keys=True)

    base = key("method=lora")
    same = [("method=full",), ("method=dora",), ("method=rslora",), ("method=lora", "method.rank=2", "optim.lr=1e-2")]
    same += [("method=lora", "hardware.micro_batch=2"), ("method=lora", "train.max_steps=3")]
    for overrides in same:
        assert key(*overrides) == base, overrides
    others = [("method=qlora",), ("method=lora_int8",), ("method=pissa",), ("method=pissa", "method.rank=2")]
    others += [("method=lora", change) for change in ("seed=1", "eval.batch_size=3", "eval.batch_tokens=99")]
    others += [("method=lora", "eval.max_samples=5")]
    others += [("method=lora", change) for change in ("eval.longest=1", "model.attention=eager", "model.dtype=bf16")]
    others += [("method=lora", "hardware.precision=bf16")]
    keys = [key(*overrides) for overrides in others]
    assert len({base, *keys}) == 1 + len(keys)
    assert key("method=qlora", "method.rank=2") == keys[0]


@pytest.mark.parametrize("method", ["full", "dora", "rslora"])
def test_what_is_shared_is_what_would_have_been_measured(settings, tmp_path, monkeypatch, method):
    """The seed decides this model's weights, so both are of one seed."""
    monkeypatch.delenv(SHARED, raising=False)
    losses = [run(settings(*SHORT, f"method={m}"), tmp_path / m)["eval"]["initial_loss"] for m in ("lora", method)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_file_that_cannot_be_used_is_measured_again(settings, tmp_path, shared):
    first = run(settings(*SHORT, "method=lora"), tmp_path / "first")
    (file,) = shared.iterdir()
    whole = file.read_text()
    for number, content in enumerate(["{", "[]", '{"key": {}, "examples": []}', '{"key": {}}']):
        file.write_text(content)
        again = run(settings(*SHORT, "method=lora"), tmp_path / str(number))
        assert again["eval"]["initial_shared"] is False, content
        assert again["eval"]["initial_loss"] == first["eval"]["initial_loss"]
        assert file.read_text() == whole, "and left for the others"


def test_a_folder_that_cannot_be_written_is_no_failure(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(SHARED, str(tmp_path / "file" / "shared"))
    record = run(settings(*SHORT, "method=lora"), tmp_path / "run")
    assert (record["status"], record["eval"]["initial_shared"]) == ("completed", False)
    assert "other runs evaluate for themselves" in (tmp_path / "run" / "train.log").read_text()


def test_scores_of_a_batch_that_had_to_be_halved_are_not_shared(settings, tmp_path, shared, monkeypatch):
    real, calls = evaluate.token_nll, []

    def fails_once(model, batch):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, batch)

    monkeypatch.setattr(evaluate, "token_nll", fails_once)
    assert run(settings(*SHORT, "method=lora"), tmp_path / "run")["status"] == "completed"
    assert not shared.exists()
