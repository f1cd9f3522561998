"""From the data settings to tokenized rows: read, cut into train, eval and test, tokenized, fitted, kept on disk.

One row at a time passes through, so that a dataset may be larger than the memory. Held-out data is cut by a hash of the
content, never by a seed: the same rows are held out in every run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig, EvalConfig, TemplateConfig
from sweeptune.data.cache import Kept, keep, key_of
from sweeptune.data.conversation import TEXT, Conversation
from sweeptune.data.fit import Different, Fit, HoldOut, policy
from sweeptune.data.ledger import Ledger, raise_on_problems
from sweeptune.data.mix import mixed, weighted
from sweeptune.data.rendering import check_rendering
from sweeptune.data.sources import Found, content_digest, read
from sweeptune.data.store import StoreWriter, TokenStore
from sweeptune.data.tokenize import Encoded, Encoder, Row

log = logging.getLogger("sweeptune")

ShowProgress = Callable[[Iterable[Conversation], str, int | None], Iterable[Conversation]]

VERSION = 2
"""Part of the cache's key: raised when the way from a row to its tokens changes."""
PARTS = ("train", "eval", "test")
ASIDE = 64
"""So many held-out documents are tokenized at once where training documents stay whole."""


@dataclass(frozen=True)
class Splits:
    """Tokenized rows and what was found on the way.

    Attributes:
        train: Rows to learn from, none longer than ``data.max_length`` unless ``data.packing`` cuts them; those of a
            mixture with weights as often as an epoch has them.
        eval: Held-out rows that a search may look at, whole, by hash.
        test: Held-out rows for a verdict, whole, by hash.
        stats: Counts for the log and the record.
        ledger: What is learned of them, counted before they were cut.
    """

    train: Sequence[Row]
    eval: Sequence[Row]
    test: Sequence[Row]
    stats: dict[str, Any]
    ledger: Ledger


def load_splits(
    data: DataConfig,
    judged: EvalConfig,
    template: TemplateConfig,
    tokenizer: PreTrainedTokenizerBase,
    show: ShowProgress = lambda rows, description, total: rows,
) -> Splits:
    """Read, split and tokenize a dataset, or find it tokenized in the cache.

    Args:
        data: Where the rows are and how they are cut.
        judged: ``max_samples`` of the held-out rows, the first by hash.
        template: How a conversation becomes text; ``auto`` is the tokenizer's own.
        tokenizer: The model's.
        show: Wraps an iterable in a progress bar: ``show(rows, description, total)``; the total is None, since nobody
            knows it before everything is read.

    Raises:
        ConfigError: The data or the template cannot be used, or there is no room; it says what to change.

    Example:
        >>> splits = load_splits(config.data, config.eval, config.template, tokenizer)
        >>> len(splits.train), splits.train[0].length, splits.train.lengths.sum()
        (6720, 198, 1204113)
    """
    weights = weighted(data.mix or [])
    kept = _tokenized(data, Encoder(tokenizer, template, data.loss_on), tokenizer, show, everything=False)
    stats = dict(kept.meta["stats"])
    train = kept.parts["train"]
    if weights:
        train, stats["mix"] = mixed(train, data.mix or [])
    held = {name: first_by_hash(kept.parts[name], judged.max_samples) for name in ("eval", "test")}
    for name, part in {"train": train, **held}.items():
        tokens, learned = int(part.lengths.sum()), int(part.loss_counts.sum())
        stats[name] = {"rows": len(part), "tokens": tokens, "loss_tokens": learned}
    _tell(data, stats)
    ledger = Ledger.from_dict(kept.meta["ledger"], template.name)
    return Splits(train, held["eval"], held["test"], stats, ledger)


def load_everything(
    data: DataConfig,
    judged: EvalConfig,
    template: TemplateConfig,
    tokenizer: PreTrainedTokenizerBase,
    show: ShowProgress = lambda rows, description, total: rows,
) -> TokenStore:
    """All rows of a dataset as held-out ones: none is cut, and ``max_samples`` are the first by hash.

    Args and errors are those of `load_splits`.
    """
    encoder = Encoder(tokenizer, template, data.loss_on)
    kept = _tokenized(data, encoder, tokenizer, show, everything=True)
    return first_by_hash(kept.parts["eval"], judged.max_samples)


def first_by_hash(rows: TokenStore, count: int | None) -> TokenStore:
    """The first ``count`` rows by hash (all, for None): a sample that the file's order does not change.

    The id of a row is a hash. Windows of one document are named after it, ``<id>-<k>``; they are hashed once more, so
    that a sample is not made of a few documents.
    """
    hashes = [sha256(name).hexdigest()[:16].encode() if b"-" in name else name for name in rows.ids.tolist()]
    return rows.take(np.argsort(np.array(hashes), kind="stable")[:count])


def _tokenized(
    data: DataConfig, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, show: ShowProgress, *, everything: bool
) -> Kept:
    """The rows of a dataset, from the cache where it has them."""
    digest = content_digest(data) if data.cache else None
    key = None if digest is None else key_of(_settings(data, encoder, digest, everything))
    added = max(tokenizer.added_tokens_decoder, default=0)

    def write(writer: StoreWriter) -> dict[str, Any]:
        return _write(writer, data, encoder, show, everything=everything)

    parts = ("eval",) if everything else PARTS
    kept = keep(key, parts, max(len(tokenizer), added + 1), write)
    count = sum(map(len, kept.parts.values()))
    if not kept.fresh:
        log.info("tokenized rows from the cache (%s)", kept.folder)
    elif kept.folder:
        log.info("tokenized %d rows, kept in %s", count, kept.folder)
    else:
        why = "data.cache=false" if not data.cache else "this data cannot be known again" if key is None else "no cache"
        log.info("tokenized %d rows, for this run only (%s)", count, why)
    return kept


def _settings(data: DataConfig, encoder: Encoder, digest: str, everything: bool) -> dict[str, Any]:
    """Everything that the stored rows depend on. Weights and max_samples do not count: they choose among the rows."""
    formats = [data.format, *(part.format for part in data.mix or [])]
    return {
        "version": VERSION,
        "packages": [version(name) for name in ("tokenizers", "transformers")],
        "content": digest,
        "encoder": encoder.digest,
        "formats": formats,
        "loss_on": data.loss_on,
        "on_bad_row": data.on_bad_row,
        "max_length": data.max_length,
        "fractions": None if everything else [data.eval_fraction, data.test_fraction],
        "long_rows": None if everything else [policy(data), data.packing == "split"],
    }


def _write(
    writer: StoreWriter, data: DataConfig, encoder: Encoder, show: ShowProgress, *, everything: bool
) -> dict[str, Any]:
    """Append every row to its part; returns what is kept beside them."""
    found, different, held, fit = Found(), Different(), HoldOut(data), Fit(data)
    ledger = Ledger(encoder.tokenizer, encoder.template.name, skip=data.on_bad_row == "skip")
    items = show(different.of(read(data, found)), "tokenizing", None)
    met = name = ""
    for encoded in _encoded(items, encoder, data, held, everything=everything):
        item = encoded.conversation
        if item.id != met:  # the windows of one document follow each other
            met, name = item.id, held.count(item.split_key)
            name = "eval" if everything else name
        raw = item.messages[0].role == TEXT
        if raw and encoded.row.length == 1:
            continue  # the last window of a document, one token that nothing predicts
        if not ledger.add(encoded):
            continue
        cut = name == "train" and not raw
        for row in fit.rows(encoded.row, cut=cut):
            writer.append(name, row, item.source)
    for kind, cost in fit.costs.items():
        ledger.cut(kind, **cost)
    ledger.rendering = check_rendering(encoder, ledger.sample)
    raise_on_problems(ledger)  # here, so that such rows are never kept
    _check(data, found, held, fit, writer, everything=everything)
    stats: dict[str, Any] = {"format": found.format, "rows": found.rows, "bad_rows": found.bad_rows}
    stats |= {"duplicates": different.duplicates, **fit.counts()}
    return {
        "data": _title(data),
        "settings": asdict(data),
        "stats": stats,
        # The rows shown are of problems, of which there are none, and name files of whoever filled the cache.
        "ledger": ledger.as_dict() | {"examples": {}},
    }


def _encoded(
    items: Iterable[Conversation], encoder: Encoder, data: DataConfig, held: HoldOut, *, everything: bool
) -> Iterator[Encoded]:
    """Tokenize rows. Raw text becomes windows of max_length; training documents that ``packing=split`` cuts itself stay
    whole, and those that are held out wait for each other meanwhile."""
    if data.packing != "split" or everything:
        yield from encoder.encode(items, window=data.max_length)
        return
    aside: list[Conversation] = []

    def others() -> Iterator[Conversation]:
        for item in items:
            if item.messages[0].role == TEXT and held.part(item.split_key) != "train":
                aside.append(item)
            else:
                yield item

    for found in encoder.encode(others()):
        yield found
        if len(aside) >= ASIDE:
            yield from encoder.encode(aside, window=data.max_length)
            aside.clear()
    yield from encoder.encode(aside, window=data.max_length)


def _check(data: DataConfig, found: Found, held: HoldOut, fit: Fit, writer: StoreWriter, *, everything: bool) -> None:
    """See that there is something in every part."""
    if not sum(held.counts.values()):
        raise ConfigError(f"{_title(data)}: has no usable row ({found.rows} read, {found.bad_rows} malformed)")
    if not everything:
        held.check()
    fit.check()
    for name, count in writer.counts.items():
        if count["rows"] == 0 and name == "train":
            raise ConfigError(f"data.max_length={data.max_length}: no training row is left; raise data.max_length")
        if count["rows"] == 0:
            raise ConfigError(f"{_title(data)}: no row of {name} has a token that bears loss; bring more rows")


def _title(data: DataConfig) -> str:
    """The dataset, for messages."""
    if data.mix:
        return "data.mix=[" + ", ".join(part.path for part in data.mix) + "]"
    return f"data={data.name}" if data.path is None else f"data.path={data.path}"


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
    for part in stats.get("mix", ()):
        log.info(
            "  %s: %.2f %% of the tokens, seen %.2f times an epoch", part["path"], 100 * part["share"], part["passes"]
        )
    if stats["bad_rows"]:
        log.warning("%d malformed rows left out (data.on_bad_row=skip)", stats["bad_rows"])
    if stats["truncated_rows"] or stats["split_rows"] or stats["dropped_rows"]:
        log.info(
            "longer than data.max_length=%d: %d rows truncated, %d split, %d dropped, %d tokens cut "
            "(data.on_long_row=%s)",
            data.max_length,
            stats["truncated_rows"],
            stats["split_rows"],
            stats["dropped_rows"],
            stats["tokens_cut"],
            data.on_long_row,
        )
