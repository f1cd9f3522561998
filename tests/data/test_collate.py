"""Rows side by side: padded on the right, and padding is neither seen nor learned."""

from __future__ import annotations

import torch

from sweeptune.data.collate import IGNORED, collate
from sweeptune.data.tokenize import Row
from tests.data.helpers import rows_of

CPU = torch.device("cpu")


def test_rows_of_different_length_are_filled_up_on_the_right():
    rows = [Row("a", [5, 6, 7], [False, True, True], 2), Row("b", [8], [False], 0), Row("c", [9, 3], [False, True], 1)]
    batch = collate(rows, 0, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 3, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    # Aligned with the ids and not shifted: the model's loss shifts.
    assert batch.labels.tolist() == [[IGNORED, 6, 7], [IGNORED] * 3, [IGNORED, 3, IGNORED]]
    assert (batch.tokens, batch.loss_tokens) == (6, 3)


def test_types_and_shapes():
    batch = collate(rows_of(4, 7, 2), 1, CPU)
    for tensor in (batch.input_ids, batch.labels, batch.attention_mask):
        assert tensor is not None
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.int64, (3, 7))


def test_without_padding_there_is_no_mask():
    assert collate(rows_of(4, 4), 0, CPU).attention_mask is None
    assert collate(rows_of(9), 0, CPU).attention_mask is None


def test_the_padding_id_may_be_a_token_that_bears_loss():
    """Many models pad with their end-of-turn token: a real one is learned, padding is not."""
    batch = collate([Row("a", [5, 2], [False, True], 1), Row("b", [5, 6, 2], [False, True, True], 2)], 2, CPU)
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 6, 2]]


def test_a_row_does_not_change_with_its_neighbours():
    short, long = rows_of(5, 11)
    alone, beside = collate([short], 0, CPU), collate([short, long], 0, CPU)
    assert torch.equal(alone.input_ids[0], beside.input_ids[0, :5])
    assert torch.equal(alone.labels[0], beside.labels[0, :5])
