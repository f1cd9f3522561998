"""Where an answer ends."""

from __future__ import annotations

from sweeptune.data import stop_ids
from sweeptune.models.tiny import tiny_tokenizer


def test_an_answer_ends_with_its_turn_and_with_the_text():
    tokenizer = tiny_tokenizer()
    assert stop_ids(tokenizer) == [256]
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    assert stop_ids(tokenizer) == [256, 258]
