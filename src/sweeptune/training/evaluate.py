"""Eval loss as DESIGN section 4 defines it: the same for every batch size and number of ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sweeptune.data import Row, collate, eval_batches
from sweeptune.tracking.console import bar
from sweeptune.tracking.files import write_text
from sweeptune.training.loss import token_nll


def evaluate(
    model: torch.nn.Module,
    rows: Sequence[Row],
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    pad_id: int,
    description: str = "evaluating",
) -> list[dict[str, Any]]:
    """Score every row whole, without dropout and without gradients.

    Args:
        model: The model; its mode is restored afterwards.
        rows: Held-out rows; none is cut.
        batch_size: Rows per forward pass at most; the result does not depend on it.
        batch_tokens: Its positions at most, padding included; a longer row is alone. None: any number.
        device: Where the model is.
        autocast: Opens the context that the loss is computed in.
        pad_id: Token that fills short rows; never seen by the loss.
        description: What the progress bar says.

    Returns:
        One dict a row, in the order of ``rows``: id, nll (sum in nats), loss_tokens, bytes. Every rank gets all.
    """
    scored = score_share(
        model,
        rows,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        device=device,
        autocast=autocast,
        pad_id=pad_id,
        description=description,
    )
    return gather(scored, rows)


def score_share(
    model: torch.nn.Module,
    rows: Sequence[Row],
    *,
    batch_size: int,
    batch_tokens: int | None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    pad_id: int,
    description: str,
) -> dict[str, float]:
    """Score this rank's share of the rows, without talking to other ranks: nll in nats by row id."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = eval_batches(rows, batch_size, batch_tokens, rank, world)
    scored: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), bar(description, sum(map(len, batches))) as advance:
            for batch_rows in batches:
                batch = collate(batch_rows, pad_id, device)
                with autocast():
                    nll = token_nll(model, batch)
                sums = nll.double().sum(dim=1).tolist()
                scored.update(zip((row.id for row in batch_rows), sums, strict=True))
                advance(len(batch_rows))
    finally:
        model.train(was_training)
    return scored


def gather(scored: dict[str, float], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Bring the shares of all ranks together, in the order of ``rows``; every rank must call this."""
    if dist.is_initialized():
        gathered: list[dict[str, float] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, scored)
        scored = {key: value for part in gathered if part for key, value in part.items()}
    return [
        {"id": row.id, "nll": scored[row.id], "loss_tokens": row.loss_tokens, "bytes": row.loss_bytes} for row in rows
    ]


def summarize(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Loss, perplexity and bits per byte over scored examples.

    Bits per byte divides by exactly the bytes of the loss-bearing text, so that models with different tokenizers
    compare (Gao et al. 2020, arXiv 2101.00027, section 3.1).

    Example:
        >>> summarize([{"id": "a", "nll": 6.0, "loss_tokens": 3, "bytes": 10}])["loss"]
        2.0
    """
    nll = math.fsum(example["nll"] for example in examples)
    tokens = sum(example["loss_tokens"] for example in examples)
    size = sum(example["bytes"] for example in examples)
    loss = nll / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond that a float overflows
        "bits_per_byte": nll / math.log(2) / size if size else None,
        "loss_tokens": tokens,
        "samples": len(examples),
    }


def write_examples(path: Path, examples: Sequence[dict[str, Any]]) -> None:
    """Write the per-example scores, one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(example) + "\n" for example in examples))
