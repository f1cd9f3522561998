"""bench/memory_gpu.py: which runs are made, and that its settings exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import memory_gpu  # noqa: E402

from sweeptune.config.check import check  # noqa: E402


@pytest.mark.parametrize("there", [True, False])
def test_orders_of_real_weights_are_skipped_without_them(tmp_path, monkeypatch, there):
    monkeypatch.setattr(memory_gpu, "cached_model", lambda name: tmp_path if there else None)
    made, skipped = memory_gpu.planned()
    orders = [name for name in memory_gpu.runs() if name.startswith("order ")]
    assert len(orders) == 8 and set(orders).isdisjoint(skipped) == there
    assert sorted([*made, *skipped]) == sorted(memory_gpu.runs())
    assert all(each["status"] == "skipped" and "--gguf" in each["reason"] for each in skipped.values())


@pytest.mark.parametrize("name", memory_gpu.runs())
def test_every_run_is_settings_that_exist(name, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    memory_gpu.write_rows(tmp_path / "rows.jsonl")
    overrides = ["hardware=gpu", "data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}", *memory_gpu.runs()[name][0]]
    problems = check(overrides, multirun=False)
    # Nothing but weights that are not here may be missing.
    assert [each for each in problems if "fetch" not in each and "tokenizer" not in each] == []
