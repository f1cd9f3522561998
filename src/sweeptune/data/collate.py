"""Rows to tensors: side by side, filled up on the right, and where each sample in them begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sweeptune.data.tokenize import Row
from sweeptune.kernels.attention import send

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, filled up on the right.

    Attributes:
        input_ids: int64 [b, t].
        attention_mask: int64 [b, t], 0 where a row is filled up; None when nothing is. It says nothing of samples that
            share a row: `sweeptune.kernels.attention` makes of a batch what a model gets.
        labels: int64 [b, t] in the host's memory, where it is decided what reaches the head: the token itself where it
            bears loss, else -100; not shifted.
        tokens: Real tokens.
        loss_tokens: Tokens that bear loss.
        lengths: Tokens of every sample of every row.
        position_ids: int64 [b, t], from 0 in every sample; None when no row holds more than one.
        segments: int32 [b, t], the number of the sample in its row, -1 where it is filled up; None likewise.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    tokens: int
    loss_tokens: int
    lengths: tuple[tuple[int, ...], ...]
    position_ids: torch.Tensor | None = None
    segments: torch.Tensor | None = None


def collate(rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """Make a batch of rows with one sample each.

    Args:
        rows: b rows, the longest of t tokens.
        pad_id: Fills short rows; never attended to and never learned.
        device: Where the tensors go.
    """
    return collate_packs([(row,) for row in rows], pad_id, device)


def collate_packs(packs: Sequence[Sequence[Row]], pad_id: int, device: torch.device) -> Batch:
    """Make a batch of rows that hold several samples each, behind each other.

    Args:
        packs: The samples of b rows, the longest of t tokens together.
        pad_id: Fills short rows; never attended to and never learned.
        device: Where the tensors go.

    Example:
        >>> batch = collate_packs([(first, second), (third,)], 0, torch.device("cpu"))
        >>> batch.segments   # first of 3 tokens, second of 2, third of 4
        tensor([[ 0,  0,  0,  1,  1],
                [ 0,  0,  0,  0, -1]], dtype=torch.int32)
    """
    lengths = tuple(tuple(row.length for row in pack) for pack in packs)
    shape = len(packs), max(map(sum, lengths))
    ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1, dtype=torch.int32)
    for i, pack in enumerate(packs):
        begin = 0
        for number, row in enumerate(pack):
            here = slice(begin, begin + row.length)
            tokens = torch.tensor(row.input_ids)
            ids[i, here] = tokens
            labels[i, here] = torch.where(torch.tensor(row.loss_mask), tokens, IGNORED)
            positions[i, here] = torch.arange(row.length)
            segments[i, here] = number
            begin += row.length
        mask[i, :begin] = 1
    packed, padded = any(len(pack) > 1 for pack in packs), any(sum(row) < shape[1] for row in lengths)
    tensors = (mask if padded else None, positions if packed else None, segments if packed else None)
    moved = [None if tensor is None else send(tensor, device) for tensor in tensors]
    return Batch(
        input_ids=send(ids, device),
        attention_mask=moved[0],
        labels=labels,
        tokens=sum(map(sum, lengths)),
        loss_tokens=sum(row.loss_tokens for pack in packs for row in pack),
        lengths=lengths,
        position_ids=moved[1],
        segments=moved[2],
    )
