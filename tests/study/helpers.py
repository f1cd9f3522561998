"""A space as method_tradeoff has it, studies on a journal, and lines of trials.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeptune.config.schema import StudyConfig
from sweeptune.study.ask import directions
from sweeptune.study.space import Choice, FloatRange, IntRange, Parameter, Space

METHODS = ("full", "lora", "qlora", "dora")
ADAPTED = METHODS[1:]
SPACE = Space(
    (
        Parameter("method", {"*": Choice(METHODS)}, {}),
        Parameter(
            "optim.lr",
            {m: FloatRange(1e-6, 1e-3, True) if m == "full" else FloatRange(1e-5, 1e-2, True) for m in METHODS},
            {},
        ),
        Parameter("method.rank", {"*": Choice((4, 8, 16, 32, 64))}, {"method": ADAPTED}),
        Parameter("method.alpha", {"*": IntRange(8, 64)}, {"method": ADAPTED}),
    ),
    METHODS,
)
GRID = Space(
    (
        Parameter("method", {"*": Choice(("full", "lora"))}, {}),
        Parameter("optim.lr", {"*": Choice((1e-5, 1e-4))}, {}),
        Parameter("method.rank", {"*": Choice((4, 16))}, {"method": ("lora",)}),
    ),
    ("full", "lora"),
)


def create(folder: Path, settings: StudyConfig) -> optuna.Study:
    """A study on a journal file, made or opened."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return optuna.create_study(
        storage=storage, study_name="study", directions=directions(settings.objectives), load_if_exists=True
    )


def measure(point: dict[str, Any]) -> dict[str, float]:
    """What a trainer would: a bowl over the learning rate, and memory that grows with the rank."""
    full = point.get("method") == "full"
    best = 1e-4 if full else 1e-3
    rank = point.get("method.rank", 0)
    loss = 2.0 + 0.1 * math.log10(point["optim.lr"] / best) ** 2 - 0.01 * math.log2(1 + rank)
    return {"eval_loss": loss, "peak_memory_gib": 4.0 if full else 1.0 + rank / 100}


def line(number: int, point: dict[str, Any], status: str = "completed", **changes: Any) -> dict[str, Any]:
    """A line of trials.jsonl."""
    values = measure(point) if status == "completed" else {"eval_loss": None, "peak_memory_gib": None}
    return {
        "number": number,
        "kind": "trial",
        "status": status,
        "method": point.get("method", "lora"),
        "params": point,
        "values": values,
        "tokens": 1000 if status == "completed" else 10,
        "constraints": {},
        "pruned_by": None,
        **changes,
    }
