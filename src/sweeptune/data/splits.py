"""From the data settings to tokenized rows, and what is held out.

Held-out data is cut by a hash of the content, never by a seed: the same rows are held out in every run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, EvalConfig, TemplateConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.jsonl import load_jsonl
from sweeptune.data.pydocs import load_pydocs
from sweeptune.data.tokenize import Row, tokenize

log = logging.getLogger("sweeptune")

ShowProgress = Callable[[Iterable[Conversation], str, int], Iterable[Conversation]]


@dataclass(frozen=True)
class Splits:
    """Tokenized rows and what was found on the way.

    Attributes:
        train: Rows to learn from, none longer than ``data.max_length``.
        eval: Held-out rows that a search may look at, whole.
        test: Held-out rows for a verdict, whole.
        stats: Counts for the log and the record.
    """

    train: list[Row]
    eval: list[Row]
    test: list[Row]
    stats: dict[str, Any]


def load_splits(
    data: DataConfig,
    judged: EvalConfig,
    template: TemplateConfig,
    tokenizer: PreTrainedTokenizerBase,
    show: ShowProgress = lambda rows, description, total: rows,
) -> Splits:
    """Read, split and tokenize a dataset.

    Args:
        data: Where the rows are and how they are cut.
        judged: ``max_samples`` of the held-out rows, the first by hash.
        template: How a conversation becomes text; ``auto`` is the tokenizer's own.
        tokenizer: The model's.
        show: Wraps an iterable in a progress bar: ``show(rows, description, total)``.

    Raises:
        ConfigError: The data or the template cannot be used; it says what to change.
    """
    if data.name == "pydocs":
        rows, stats = load_pydocs(), {"format": "qa"}
        stats["rows"] = len(rows)
    else:
        rows, stats = load_jsonl(data)
    parts = split(rows, data)
    parts["eval"], parts["test"] = (first_by_hash(parts[name], judged.max_samples) for name in ("eval", "test"))
    total = sum(map(len, parts.values()))
    everything = [item for part in parts.values() for item in part]
    tokenized = iter(list(tokenize(show(everything, "tokenizing", total), tokenizer)))
    found = {name: [next(tokenized) for _ in part] for name, part in parts.items()}
    found["train"], cuts = fit(found["train"], data)
    for name, part in found.items():
        tokens, learned = sum(row.length for row in part), sum(row.loss_tokens for row in part)
        stats[name] = {"rows": len(part), "tokens": tokens, "loss_tokens": learned}
    stats |= cuts
    _tell(data, stats)
    return Splits(found["train"], found["eval"], found["test"], stats)


def position(key: str) -> float:
    """Where a key falls in [0, 1): evenly spread, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split(rows: Sequence[Conversation], data: DataConfig) -> dict[str, list[Conversation]]:
    """Cut rows into train, eval and test by their split key.

    Raises:
        ConfigError: One of them would be empty.
    """
    parts: dict[str, list[Conversation]] = {"train": [], "eval": [], "test": []}
    for row in rows:
        place = position(row.split_key)
        held_out = "eval" if place < data.eval_fraction else "test"
        parts[held_out if place < data.eval_fraction + data.test_fraction else "train"].append(row)
    for name in ("eval", "test"):
        if not parts[name]:
            value = getattr(data, f"{name}_fraction")
            more = min(0.4, max(4 * value, 4 / len(rows)))
            raise ConfigError(
                f"data.{name}_fraction={value}: none of the {len(rows)} rows falls into {name}; "
                f"hold out more, such as data.{name}_fraction={more:.2g}, or bring more rows"
            )
    if not parts["train"]:
        raise ConfigError(f"none of the {len(rows)} rows is left to train on; lower data.eval_fraction")
    return parts


def first_by_hash(rows: Sequence[Conversation], count: int | None) -> list[Conversation]:
    """The first ``count`` rows by id (all, for None): a sample that the file's order does not change."""
    return sorted(rows, key=lambda row: row.id)[:count]


def fit(rows: Sequence[Row], data: DataConfig) -> tuple[list[Row], dict[str, int]]:
    """Make training rows fit ``data.max_length`` as ``data.on_long_row`` says, and count what that costs.

    Raises:
        ConfigError: ``on_long_row`` is ``error`` and rows are too long, or nothing is left.
    """
    limit = data.max_length
    long = [row for row in rows if row.length > limit]
    if long and data.on_long_row == "error":
        raise ConfigError(
            f"data.max_length={limit}: {len(long)} training rows are longer, the longest has "
            f"{max(row.length for row in long)} tokens; raise data.max_length, or set data.on_long_row=truncate or drop"
        )
    if data.on_long_row == "drop":
        kept = [row for row in rows if row.length <= limit]
    else:
        kept = [row if row.length <= limit else _cut(row, limit) for row in rows]
        kept = [row for row in kept if row.loss_tokens]
    if not kept:
        raise ConfigError(f"data.max_length={limit}: no training row is left; raise data.max_length")
    dropped = len(rows) - len(kept)
    truncated = len(long) - dropped
    tokens = sum(row.length for row in rows) - sum(row.length for row in kept)
    return kept, {"truncated_rows": truncated, "dropped_rows": dropped, "tokens_cut": tokens}


def _cut(row: Row, limit: int) -> Row:
    mask = row.loss_mask[:limit]
    return replace(row, input_ids=row.input_ids[:limit], loss_mask=mask)


def _tell(data: DataConfig, stats: dict[str, Any]) -> None:
    train = stats["train"]
    log.info(
        "data %s (%s): %d rows to train on (%d tokens, %.0f %% of them with loss), %d for eval, %d for test",
        data.name,
        stats["format"],
        train["rows"],
        train["tokens"],
        100 * train["loss_tokens"] / train["tokens"],
        stats["eval"]["rows"],
        stats["test"]["rows"],
    )
    if stats.get("bad_rows"):
        log.warning("%d malformed rows left out (data.on_bad_row=skip)", stats["bad_rows"])
    if stats["truncated_rows"] or stats["dropped_rows"]:
        log.info(
            "longer than data.max_length=%d: %d rows truncated, %d dropped, %d tokens cut (data.on_long_row=%s)",
            data.max_length,
            stats["truncated_rows"],
            stats["dropped_rows"],
            stats["tokens_cut"],
            data.on_long_row,
        )
