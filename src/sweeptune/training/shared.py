"""The evaluation before training, made once for all runs of a study that start as the same model.

A fresh LoRA changes nothing, so that its first loss is the base's; with few steps to train, measuring it again in every
trial would take as long as the training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeptune.data import hash_rows
from sweeptune.methods import METHODS
from sweeptune.models import weights_digest
from sweeptune.tracking.files import write_text
from sweeptune.training.oom import any_rank
from sweeptune.training.result import cost_fingerprint
from sweeptune.training.scoring import note_evaluation, score
from sweeptune.training.session import Session

log = logging.getLogger("sweeptune")

SHARED = "SWEEPTUNE_SHARED"
"""Names the folder in which the runs of a study keep their first evaluations."""
COSTS = ("model", "device", "eval_batch", "eval_tokens", "attention", "kernels", "precision")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def first_evaluation(session: Session) -> dict[str, Any]:
    """Judge the model before training, or take over what another run found for the same model; return the summary.

    Either way it is logged and its scores are kept, as those of every evaluation.
    """
    folder = os.environ.get(SHARED)
    key = start_key(session) if folder else {}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(folder) / f"{digest}.json" if folder else None
    examples = read_shared(file, key) if file else None
    if not any_rank(examples is None, session.device) and examples is not None:
        session.progress.initial_shared = True
        log.info("evaluation before training: taken from %s", file)
        return note_evaluation(session, examples)
    examples = score(session, session.eval_rows, "before training")
    if file and session.main and session.progress.eval_batch == session.config.eval.batch_size:
        write_shared(file, key, examples)
    return note_evaluation(session, examples)


def start_key(session: Session) -> dict[str, Any]:
    """Everything that decides the loss before training.

    Rank and seed do not, since a fresh adapter adds nothing. A start that is computed from the weights (PiSSA) differs
    by rounding, and so it has the method's settings in its key.
    """
    config, placement = session.config, session.placement
    method, cost = METHODS[config.method.name], cost_fingerprint(session)
    return {
        "weights": weights_digest(config.model, dtype=placement.weights, device=placement.device, seed=config.seed),
        "storage": str(placement.weights),
        "quantization": method.quantization.__name__ if method.quantization else None,
        "head": config.model.head,
        "start": asdict(config.method) if method.start else None,
        "rows": hash_rows(session.eval_rows),
        **{field: cost[field] for field in (*COSTS, *PACKAGES)},
    }


def read_shared(file: Path, key: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The scores that another run left, or None where there are none for this key."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        examples: list[dict[str, Any]] | None = found["examples"] if found["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be read, so the model is evaluated again (%s)", file, error)
        return None
    return examples


def write_shared(file: Path, key: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    """Leave the scores for the other runs; where that fails, they measure for themselves."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"key": key, "examples": examples}) + "\n")
    except OSError as error:
        log.warning("%s: cannot be written, so other runs evaluate for themselves (%s)", file, error)
