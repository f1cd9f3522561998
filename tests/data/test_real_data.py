"""Real datasets, read to the last row; skipped where they are not there."""

from __future__ import annotations

import pytest

from sweeptune.data.sources import Found, read
from tests.data.helpers import data_config, shared

COUNTS = {
    "gsm8k/train.jsonl": ("qa", 7473, 2 * 7473),
    "crosswoz_chat/crosswoz_val_test_messages.jsonl": ("messages", 1000, None),
    "emollm_zh/conversations_zh.json": ("xtuner", 1596, 1596 + 2 * 5072),
    "emollm_zh/self_cognition_zh.json": ("alpaca", 85, 2 * 85),
    "emollm_zh": ("xtuner + alpaca", 1596 + 85, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_a_real_dataset_is_read(name):
    found = Found()
    items = list(read(data_config(shared(name)), found))
    form, rows, messages = COUNTS[name]
    assert (found.format, found.rows, found.bad_rows, len(items)) == (form, rows, 0, rows)
    assert messages in (None, sum(len(item.messages) for item in items))


def test_a_real_book_is_read_to_the_last_byte():
    items = list(read(data_config(shared("tinyshakespeare/input.txt"), name="text"), Found()))
    text = "".join(item.messages[0].content for item in items)
    assert len(text.encode()) == 1_115_394 and text.startswith("First Citizen:")
    assert len(items) > 100
