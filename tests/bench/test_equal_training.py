"""bench/equal_training.py: what is planned, and what the table and its section say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import equal_table  # noqa: E402
import equal_training  # noqa: E402
import spread  # noqa: E402

ENVIRONMENT = {"device": "H100", "git": "abc", "packages": {"torch": "2.11.0", "wandb": None}}


def losses(method: str, kernels: str, *values: float | None, **more: Any) -> list[dict[str, Any]]:
    """A run of every seed."""
    same = {"data_order": "a"}
    found: dict[str, Any] = {"method": method, "kernels": kernels, "reason": "oom: full", "log": "", "same": same}
    found |= {"environment": ENVIRONMENT} | more
    return [found | {"seed": seed, "loss": value} for seed, value in enumerate(values)]


def cells(lines: list[str]) -> list[list[str]]:
    """The table's rows behind its head."""
    return [[cell.strip() for cell in each.strip("|").split("|")] for each in lines[2:]]


def test_plan_is_every_method_kernels_and_seed_and_seeds_come_one_after_the_other() -> None:
    planned = equal_training.runs(["lora", "lora_fp8"], seeds=3, steps=200)
    assert len(planned) == 12 and [seed for _, _, seed in planned] == [0] * 4 + [1] * 4 + [2] * 4
    given = planned["lora_fp8", "plain", 2]
    for each in ("method=lora_fp8", "hardware.kernels=plain", "seed=2", "train.max_steps=200", "eval.test=true"):
        assert each in given
    assert "hardware=cpu" in equal_training.runs(["lora"], 1, 4, tiny=True)["lora", "auto", 0]


def test_mean_difference_inside_and_outside_the_spread() -> None:
    found = losses("lora", "auto", 1.01, 1.11, 1.21) + losses("lora", "plain", 1.0, 1.1, 1.2)
    found += losses("full", "auto", 1.2, 1.3, 1.4) + losses("full", "plain", 1.0, 1.1, 1.2)
    lora, plain, full, _ = cells(equal_table.table(found, ["lora", "full"], 3))
    assert lora[:5] == ["lora", "fused", "1.0100", "1.1100", "1.2100"] and plain[2] == "1.0000"
    assert lora[5].startswith("fused - plain: +0.0100 [+0.01") and lora[6:] == ["0.1000", "within the spread"]
    assert full[7] == "**outside the spread**"


def test_fp8_is_set_against_bf16_seed_by_seed() -> None:
    found = losses("lora", "auto", 1.0, 1.1, 1.2) + losses("lora_fp8", "auto", 1.01, 1.13, 1.22)
    last = cells(equal_table.table(found, ["lora", "lora_fp8"], 3))[-1]
    assert last[:5] == ["lora_fp8 - lora", "fused", "+0.0100", "+0.0300", "+0.0200"]
    assert last[5] == "+0.0200 [-0.0048, +0.0448]"


def test_missing_seeds_are_named_and_decide_nothing() -> None:
    found = losses("lora", "auto", 1.0, None, 1.2) + losses("lora", "plain", 1.0, 1.1, 1.2)
    lines = equal_table.table(found, ["lora"], 3)
    assert cells(lines)[0][3] == "-" and cells(lines)[0][7] == "seeds are missing"
    assert lines[-1] == "- lora, auto, seed 1: oom: full"
    assert cells(equal_table.table([], ["lora"], 3))[0][5] == "fused - plain: -"


def test_runs_on_other_data_are_no_pair() -> None:
    found = losses("lora", "auto", 1.0) + losses("lora", "plain", 1.0, same={"data_order": "b"})
    assert equal_table.other_data(found) == [("lora", 0)]
    assert "- lora, seed 0: fused and plain saw other data" in equal_table.table(found, ["lora"], 1)


def test_a_section_names_command_card_and_steps() -> None:
    found = losses("lora", "auto", 1.0, 1.1) + losses("lora", "plain", 1.0, 1.1)
    text = equal_table.section(found, ["lora"], 2, 200, "python bench/equal_training.py")
    assert text.startswith("## Fused and plain train alike\n") and "H100; torch 2.11.0." in text
    assert "after 200 steps" in text and "wandb" not in text


def test_a_loss_of_other_kernels_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = spread.Task("lora-auto-0", [], tmp_path / "log.txt")
    task.log.write_text("words\nthe last\n")
    key = ("lora", "auto", 0)
    assert equal_training.read(key, task, None)["reason"] == "took too long"
    assert equal_training.read(key, task, 1)["reason"] == "ended with 1, no record: the last"
    fingerprint: dict[str, Any] = {"cost": {"kernels": "plain"}, "quality": {"test_split": "x"}}
    record = {"status": "completed", "fingerprint": fingerprint, "test": {"loss": 1.5}, "eval": {"loss": 1.6}}
    record |= {"environment": ENVIRONMENT}
    monkeypatch.setattr(equal_training, "find_records", lambda folder: [(folder, record)])
    assert equal_training.read(key, task, 0)["loss"] is None
    fingerprint["cost"]["kernels"] = "fused"
    found = equal_training.read(key, task, 0)
    assert found["loss"] == 1.5 and found["same"]["test_split"] == "x" and found["environment"]["device"] == "H100"


def test_runs_go_on_where_a_visit_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(equal_training, "spread", lambda tasks, *_, **__: started.extend(t.name for t in tasks))
    done = losses("lora", "auto", 1.0, None)
    (tmp_path / "equal.json").write_text(json.dumps(done))
    command = ["equal_training.py", "--tiny", "--go-on", "--methods", "lora", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work")])
    monkeypatch.setattr(equal_training.signal, "signal", lambda *_: None)
    equal_training.main()
    assert started == ["lora-plain-0", "lora-auto-1", "lora-plain-1"]
