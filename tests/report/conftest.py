"""Folders of runs as they could have been left behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeptune.tracking.record import PARTS, write_record

QUALITY = {
    "weights": "w",
    "data_order": "seed-0",
    "loss_mask": "m",
    "ledger": "l",
    "tokens_per_step": 512,
    "budget_tokens": 4096,
    "template": "chatml",
    "eval_split": "e",
    "test_split": "t",
}
COST = {
    "device": "H200",
    "micro_batch": 1,
    "max_length": 256,
    "attention": "sdpa",
    "kernels": "plain",
    "gradient_checkpointing": False,
    "precision": "bf16",
    "optimiser": "adamw",
    "torch": "2.13",
    "transformers": "5.23",
    "peft": "0.21",
    "bitsandbytes": "0.50",
    "ranks": 1,
    "memory_cap_gib": None,
}
Leave = Callable[..., dict[str, Any]]


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Leave a completed run: ``leave("0", loss=2.5, quality={"template": "llama3"}, method="lora")``."""

    def make(name: str, **given: Any) -> dict[str, Any]:
        record: dict[str, Any] = {part: dict.fromkeys(keys) for part, keys in PARTS.items()}
        seed = given.get("seed", 0)
        quality = copy.deepcopy(QUALITY) | {"data_order": f"seed-{seed}"} | given.get("quality", {})
        record |= {"schema": 1, "attempts": 1, "test": None, "command": "", "reason": given.get("reason")}
        record |= {"status": given.get("status", "completed"), "method": given.get("method", "lora")}
        record |= {"model": given.get("model", "tiny"), "data": "pydocs", "seed": seed}
        record["fingerprint"] = {"quality": quality, "cost": COST | given.get("cost", {})}
        record["eval"] |= {"initial_loss": 3.0, "loss": given.get("loss", 2.0), "bits_per_byte": 1.0, "tasks": {}}
        record["memory"]["peak_memory_gib"] = given.get("memory", 1.0)
        record["speed"] |= {"tokens_per_s": given.get("speed", 100.0), "exclusive": given.get("exclusive", True)}
        record["params"] = {"total": 2_000_000, "trainable": 50_000}
        record["train"] |= {"steps": given.get("steps", 8), "tokens": 4096, "seconds": 61.0}
        for part in ("quality", "cost"):
            for field in given.get(f"without_{part}", ()):
                del record["fingerprint"][part][field]
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_record(folder, record)
        if "settings" in given:
            (folder / "config.yaml").write_text(json.dumps(given["settings"]))
        return record

    return make
