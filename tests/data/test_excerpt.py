"""Rows as text that can be shown: whole characters, nothing that a terminal obeys, the loss marked."""

from __future__ import annotations

import pytest

from sweeptune.data.conversation import conversation
from sweeptune.data.excerpt import cut_to_pieces, escape, excerpt
from sweeptune.data.tokenize import Encoder, Row
from sweeptune.models.tiny import tiny_tokenizer
from tests.data.helpers import template_config
from tests.data.test_tokenize import spacing_tokenizer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 世界 🙂 \\ \"'", "plain 世界 🙂 \\ \"'"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("\x1b]0;title\x07\x9b31m", r"\x1b]0;title\x07\x9b31m"),
        ("\u202eright\u2066", r"\u202eright\u2066"),
        ("\u2028\ufdd0\ue000", r"\u2028\ufdd0\ue000"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_not_visible_is_written_out(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize("text", ["abc", "世界 🙂🧑‍🚀", "e\u0301", "\ufffd broken \ufffd"])
def test_pieces_are_whole_characters_and_cover_the_row(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = [257, *tokenizer.encode(text), 256, 256]
    pieces = list(cut_to_pieces(tokenizer, ids))
    assert "".join(piece.text for piece in pieces) == f"<|im_start|>{text}<|im_end|><|im_end|>"
    assert [piece.begin for piece in pieces] == [0, *(piece.end for piece in pieces)][:-1]
    assert pieces[-1].end == len(ids)
    assert [piece.text for piece in pieces if piece.special] == ["<|im_start|>", "<|im_end|>", "<|im_end|>"]


def test_bytes_that_make_no_character_stay_visible() -> None:
    tokenizer = tiny_tokenizer()
    half = tokenizer.encode("世")[:2]
    assert [piece.text for piece in cut_to_pieces(tokenizer, [*half, 256])] == ["\ufffd", "<|im_end|>"]
    assert len(list(cut_to_pieces(tokenizer, half[:1] * 40))) == 5, "broken text is not waited for"


def test_a_space_that_stands_between_words_is_kept() -> None:
    tokenizer = spacing_tokenizer()
    ids = tokenizer.encode("b a yes", add_special_tokens=False)
    assert "".join(piece.text for piece in cut_to_pieces(tokenizer, ids)).strip() == "b a yes"


def test_the_loss_is_marked_and_the_rest_of_a_long_row_left_out() -> None:
    tokenizer = tiny_tokenizer()
    item = conversation([("user", "q" * 90), ("assistant", "a\n" + "b" * 90)])
    [found] = Encoder(tokenizer, template_config(), "assistant").encode([item])
    begin = found.row.loss_mask.index(True)
    assert excerpt(tokenizer, found.row, begin) == (
        "..." + "q" * 11 + r"<|im_end|>\n<|im_start|>assistant\n[loss]a\n" + "b" * 22 + "[/loss]..."
    )
    assert excerpt(tokenizer, Row("x", [257], [False], 0)) == "<|im_start|>"
