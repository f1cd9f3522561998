"""From the data settings to tokenized rows, and what is held out.

Held-out data is cut by a hash of the content, never by a seed: the same rows are held out in every run.
"""

from __future__ import annotations

import hashlib
import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, EvalConfig, TemplateConfig
from sweeptune.data.conversation import Conversation
from sweeptune.data.jsonl import load_jsonl
from sweeptune.data.ledger import Ledger
from sweeptune.data.pydocs import load_pydocs
from sweeptune.data.rendering import check_rendering
from sweeptune.data.tokenize import Encoder, Row

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
        ledger: What is learned of them, counted before they were cut.
    """

    train: list[Row]
    eval: list[Row]
    test: list[Row]
    stats: dict[str, Any]
    ledger: Ledger


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
    stats: dict[str, Any]
    if data.name == "pydocs":
        rows = load_pydocs()
        stats = {"format": "qa", "rows": len(rows), "bad_rows": 0, "duplicates": 0}
    else:
        rows, stats = load_jsonl(data)
    parts = split(rows, data)
    parts["eval"], parts["test"] = (first_by_hash(parts[name], judged.max_samples) for name in ("eval", "test"))
    total = sum(map(len, parts.values()))
    everything = [item for part in parts.values() for item in part]
    encoder = Encoder(tokenizer, template, data.loss_on)
    ledger = Ledger(tokenizer, template.name, skip=data.on_bad_row == "skip")
    encoded = encoder.encode(show(everything, "tokenizing", total))
    kept = [(found.row, ledger.add(found)) for found in encoded]
    tokenized = iter(kept)
    found = {name: [row for row, keep in islice(tokenized, len(part)) if keep] for name, part in parts.items()}
    ledger.rendering = check_rendering(encoder, ledger.sample)
    found["train"], cuts = fit(found["train"], data, ledger)
    for name, part in found.items():
        tokens, learned = sum(row.length for row in part), sum(row.loss_tokens for row in part)
        stats[name] = {"rows": len(part), "tokens": tokens, "loss_tokens": learned}
    stats |= cuts
    _tell(data, stats)
    return Splits(found["train"], found["eval"], found["test"], stats, ledger)


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
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise ConfigError(_empty(rows, data, empty))
    return parts


def _empty(rows: Sequence[Conversation], data: DataConfig, empty: list[str]) -> str:
    seen = (
        f"data.eval_fraction={data.eval_fraction} data.test_fraction={data.test_fraction}: of {len(rows)} different "
        f"rows, none falls into {' and '.join(empty)}"
    )
    fix = _fractions(sorted({position(row.split_key) for row in rows}), data)
    if fix is None:
        return f"{seen}; training, eval and test each need rows, so bring more"
    return f"{seen}; set data.eval_fraction={fix[0]} data.test_fraction={fix[1]}, or bring more rows"


def _fractions(places: Sequence[float], data: DataConfig) -> tuple[float, float] | None:
    """The fractions in whole percents, nearest to those asked for, that leave nothing empty; None if there are none."""
    below = [bisect_left(places, percent / 100) for percent in range(100)]
    fits = [
        (math.dist((held, kept), (100 * data.eval_fraction, 100 * data.test_fraction)), held / 100, kept / 100)
        for held in range(1, 99)
        for kept in range(1, 100 - held)
        if 0 < below[held] < below[held + kept] < len(places)
    ]
    return min(fits)[1:] if fits else None


def first_by_hash(rows: Sequence[Conversation], count: int | None) -> list[Conversation]:
    """The first ``count`` rows by id (all, for None): a sample that the file's order does not change."""
    return sorted(rows, key=lambda row: row.id)[:count]


def fit(rows: Sequence[Row], data: DataConfig, ledger: Ledger | None = None) -> tuple[list[Row], dict[str, int]]:
    """Make training rows fit ``data.max_length`` as ``data.on_long_row`` says, and count what that costs.

    Returns:
        The rows that are left, and the counts ``truncated_rows``, ``dropped_rows`` (a row whose answers are all cut
        away is one, too) and ``tokens_cut``, those of dropped rows included.

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
    if ledger is not None:
        learned = sum(row.loss_tokens for row in rows) - sum(row.loss_tokens for row in kept)
        ledger.cut(
            "dropped" if data.on_long_row == "drop" else "truncated", rows=len(long), tokens=tokens, loss_tokens=learned
        )
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
    if stats["bad_rows"]:
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
