"""Rows, settings and conversations for the data tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeptune.config.schema import DataConfig, TemplateConfig, TrainConfig
from sweeptune.data.conversation import Conversation, conversation
from sweeptune.data.sources import Found, read
from sweeptune.data.tokenize import Row

GOOD = {"question": "What is 1+1?", "answer": "It is 2."}


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


def ids(rows: Sequence[Row] | Sequence[Conversation]) -> list[str]:
    """Which rows these are."""
    return [row.id for row in rows]


def write(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    """Write rows to a file, a line each; what is text is written as it stands."""
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def load(data: DataConfig) -> tuple[list[Conversation], Found]:
    """Read all rows."""
    found = Found()
    return list(read(data, found)), found
