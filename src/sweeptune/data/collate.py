"""Rows to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sweeptune.data.tokenize import Row

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, filled up on the right.

    Attributes:
        input_ids: int64 [b, t].
        attention_mask: int64 [b, t], 0 where a row is filled up; None when nothing is.
        labels: int64 [b, t], the token itself where it bears loss, else -100; not shifted.
        tokens: Real tokens.
        loss_tokens: Tokens that bear loss.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    tokens: int
    loss_tokens: int


def collate(rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """Make a batch.

    Args:
        rows: b rows, the longest of t tokens.
        pad_id: Fills short rows; never attended to and never learned.
        device: Where the tensors go.
    """
    width = max(row.length for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row.input_ids)
        ids[i, : row.length] = tokens
        labels[i, : row.length] = torch.where(torch.tensor(row.loss_mask), tokens, IGNORED)
        mask[i, : row.length] = 1
    padded = any(row.length < width for row in rows)
    return Batch(
        input_ids=ids.to(device, non_blocking=True),
        attention_mask=mask.to(device, non_blocking=True) if padded else None,
        labels=labels.to(device, non_blocking=True),
        tokens=sum(row.length for row in rows),
        loss_tokens=sum(row.loss_tokens for row in rows),
    )
