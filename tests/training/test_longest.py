"""A short run sees the peak of evaluation in its largest batches, and its loss compares with no other."""

from __future__ import annotations

import pytest

from sweeptune.config.compose import compose, dump, load
from sweeptune.config.schema import EvalConfig
from sweeptune.data import Row, eval_batches, largest_batches
from sweeptune.training import evaluate, run
from sweeptune.training.judge import judge
from tests.training.helpers import lines

SHORT = ("method=lora", "train.max_steps=1")


def row(name: str, length: int) -> Row:
    return Row(name, [1] * length, [False, *[True] * (length - 1)], length)


ROWS = [row(str(number), length) for number, length in enumerate([5, 9, 2, 9, 7, 3, 8])]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (1, 1, [9]),
        (1, 4, [9, 9, 8, 7]),  # a full batch, else the peak would be missed
        (4, 3, [9, 9, 8, 7, 5, 3]),
        (7, 2, [9, 9, 8, 7, 5, 3, 2]),
        (99, 4, [9, 9, 8, 7, 5, 3, 2]),
    ],
)
def test_without_a_limit_of_positions_the_largest_batches_are_those_of_the_longest_rows(count, size, lengths):
    chosen = largest_batches(ROWS, count, size)
    assert sorted((row.length for row in chosen), reverse=True) == lengths
    assert list(chosen) == [row for row in ROWS if row in chosen], "in their own order"
    shapes = [[row.length for row in batch] for batch in eval_batches(ROWS, size)]
    assert [[row.length for row in batch] for batch in eval_batches(chosen, size)] == shapes[: -(-count // size)]
    assert largest_batches(ROWS, None, size) is ROWS


def test_with_a_limit_the_largest_batch_may_be_of_shorter_rows():
    chosen = largest_batches(ROWS, 1, 4, 15)
    assert [row.length for row in chosen] == [5, 9, 7], "7 and 5 take 14 positions; the longest stays for its attention"
    assert [len(batch) for batch in eval_batches(chosen, 4, 15)] == [1, 2]


@pytest.fixture
def shapes(monkeypatch):
    """Rows and length of every batch that is evaluated."""
    found, real = [], evaluate.token_nll

    def watched(model, batch):
        found.append(tuple(batch.input_ids.shape))
        return real(model, batch)

    monkeypatch.setattr(evaluate, "token_nll", watched)
    return found


def test_a_run_evaluates_the_longest_rows_only(settings, tmp_path, shapes):
    whole = run(settings(*SHORT), tmp_path / "whole")
    first = shapes[0]
    shapes.clear()
    config = settings(*SHORT, "eval.longest=3")
    probe = run(config, tmp_path / "probe")
    assert shapes == [first, first], "before and after training, in one batch of the full size"
    assert probe["eval"]["samples"] == len(lines(tmp_path / "probe" / "eval.jsonl")) == 4
    assert judge(tmp_path / "probe", config, "eval")["loss"] == pytest.approx(probe["eval"]["loss"], abs=1e-6)
    differing = {k for k, v in whole["fingerprint"]["quality"].items() if probe["fingerprint"]["quality"][k] != v}
    assert differing == {"eval_split"}
    assert probe["fingerprint"]["cost"] == whole["fingerprint"]["cost"], "memory and speed do compare"


def test_no_batch_of_a_run_or_of_judging_it_again_has_more_positions_than_allowed(settings, tmp_path, shapes):
    free = run(settings(*SHORT, "eval.batch_tokens=null"), tmp_path / "free")
    most = max(rows * length for rows, length in shapes)
    limit = most // 2
    shapes.clear()
    config = settings(*SHORT, f"eval.batch_tokens={limit}")
    bound = run(config, tmp_path / "bound")
    assert max(rows * length for rows, length in shapes) <= limit and max(rows for rows, _ in shapes) > 1
    assert bound["eval"]["loss"] == pytest.approx(free["eval"]["loss"], abs=1e-5)
    assert bound["fingerprint"]["cost"]["eval_tokens"] == limit
    shapes.clear()
    judge(tmp_path / "bound", config, "eval")
    assert max(rows * length for rows, length in shapes) <= limit


def test_where_all_rows_are_among_the_longest_losses_compare(settings, tmp_path):
    few = (*SHORT, "eval.max_samples=3")
    records = [run(settings(*few, f"eval.longest={n}"), tmp_path / n) for n in ("3", "null")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    assert records[0]["eval"]["loss"] == records[1]["eval"]["loss"]


def test_a_run_folder_from_before_this_setting_can_be_read(settings, tmp_path):
    text = dump(settings())
    for name in ("longest", "batch_tokens"):
        old = "".join(line for line in text.splitlines(keepends=True) if f"  {name}:" not in line)
        assert old != text
        (tmp_path / "config.yaml").write_text(old)
        assert load(tmp_path / "config.yaml") == settings(f"eval.{name}=null"), "as it was without it"
    assert EvalConfig.__dataclass_fields__["longest"].default == compose([]).eval.longest
