"""Rows, settings and conversations for the data tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeptune.config.schema import DataConfig, TemplateConfig, TrainConfig
from sweeptune.data.conversation import Conversation, conversation
from sweeptune.data.fit import HoldOut
from sweeptune.data.store import StoreWriter, TokenStore, open_parts
from sweeptune.data.tokenize import Row


def data_config(path: Path | None = None, **changed: Any) -> DataConfig:
    """Settings of ``data=jsonl`` (``data=pydocs`` without a path)."""
    values: dict[str, Any] = {
        "name": "jsonl" if path else "pydocs",
        "path": str(path) if path else None,
        "format": "auto",
        "mix": None,
        "split": "train",
        "subset": None,
        "revision": None,
        "streaming": False,
        "loss_on": "assistant",
        "packing": "none",
        "cache": False,
        "max_length": 64,
        "on_long_row": "truncate",
        "on_bad_row": "error",
        "eval_fraction": 0.1,
        "test_fraction": 0.1,
    }
    return DataConfig(**(values | changed))


def template_config(name: str = "auto", **changed: Any) -> TemplateConfig:
    """Settings of a template."""
    values = {"name": name, "path": None, "document_start": "auto", "document_end": "auto"}
    return TemplateConfig(**(values | changed))


def train_config(tokens_per_step: int, **limits: Any) -> TrainConfig:
    """Settings of ``train`` with the limits given, and no other."""
    limits = {"max_steps": None, "max_tokens": None, "epochs": None} | limits
    return TrainConfig(
        tokens_per_step=tokens_per_step,
        eval_every=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        keep_best=False,
        **limits,
    )


def rows_of(*lengths: int, learned: int = 1) -> list[Row]:
    """Rows of these lengths; the last ``learned`` tokens of each bear loss."""
    return [
        Row(f"{i:04d}", list(range(i, i + n)), [False] * (n - learned) + [True] * learned, learned)
        for i, n in enumerate(lengths)
    ]


def pairs(count: int) -> list[Conversation]:
    """Short questions with answers, all different."""
    return [conversation([("user", f"What is {i}?"), ("assistant", f"It is {i}.")]) for i in range(count)]


def split(rows: Sequence[Conversation], data: DataConfig) -> dict[str, list[Conversation]]:
    """Cut rows as the pipeline does."""
    held = HoldOut(data)
    parts: dict[str, list[Conversation]] = {"train": [], "eval": [], "test": []}
    for row in rows:
        parts[held.count(row.split_key)].append(row)
    held.check()
    return parts


def ids(rows: Sequence[Row] | Sequence[Conversation]) -> list[str]:
    """Which rows these are."""
    return [row.id for row in rows]


def store_of(
    folder: Path,
    rows: Sequence[Row],
    vocabulary: int = 1000,
    source: int = 0,
    meta: dict[str, Any] | None = None,
) -> TokenStore:
    """Rows on disk."""
    with StoreWriter(folder, ["rows"], vocabulary) as writer:
        for row in rows:
            writer.append("rows", row, source)
        writer.finish(meta or {})
    found = open_parts(folder)
    assert found is not None
    return found[0]["rows"]
