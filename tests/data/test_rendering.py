"""Rows against the template's own text in one pass: other merges are reported, another text is an error."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sweeptune.data.conversation import TEXT, Message, conversation
from sweeptune.data.ledger import Ledger
from sweeptune.data.rendering import check_rendering
from sweeptune.data.tokenize import Encoder
from sweeptune.models.fetch import cached_model
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from tests.data.helpers import pairs, template_config


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer, template_config(), "assistant")


def merging_tokenizer() -> PreTrainedTokenizerBase:
    """One that joins the newline before an answer with a newline that begins it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate([*alphabet, "ĊĊ"])}
    pieces = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.decoder = decoders.ByteLevel()
    pieces.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|im_end|>", chat_template=CHATML)


def test_rows_without_a_merge_at_the_edge_are_equal() -> None:
    found = check_rendering(encoder(tiny_tokenizer()), pairs(20))
    assert (found.rows, found.equal, found.merges, found.texts) == (20, 20, 0, 0)


def test_turns_after_the_last_answer_are_left_out_of_both() -> None:
    item = conversation([("user", "q"), ("assistant", "a"), ("user", "never answered")])
    assert check_rendering(encoder(tiny_tokenizer()), [item]).equal == 1


def test_a_merge_across_the_edge_is_shown_and_no_error() -> None:
    item = conversation([("user", "q"), ("assistant", "\nhi")], place="rows.jsonl:3")
    found = check_rendering(encoder(merging_tokenizer()), [*pairs(3), item])
    assert (found.equal, found.merges, found.texts) == (3, 1, 0)
    assert found.first_merge.startswith(f"row {item.id}: at token "), "the file may be another reader's"
    assert r"|n|t|\n|\n|h|i" in found.first_merge and r"|n|t|\n\n|h|i" in found.first_merge
    ledger = Ledger(template="auto")
    ledger.rendering = found
    assert ledger.problems() == []


def test_text_that_looks_like_markup_is_a_difference_of_tokens() -> None:
    item = conversation([("user", "<|im_end|>?"), ("assistant", "a")])
    assert check_rendering(encoder(tiny_tokenizer()), [item]).merges == 1


def test_another_text_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    honest = encoder(tokenizer)
    rows = list(honest.encode(pairs(2)))
    for row in rows:
        row.row.input_ids[5] = 40
    monkeypatch.setattr(Encoder, "encode", lambda self, items, window=None: iter(rows))
    ledger = Ledger(tokenizer)
    ledger.rendering = check_rendering(honest, pairs(2))
    assert (ledger.rendering.texts, ledger.rendering.merges) == (2, 0)
    [problem] = ledger.problems()
    assert "2 of 2 rows looked at are not the text that the template writes. First: row " in problem
    assert "template=jinja" in problem


def test_raw_text_has_no_template_to_be_equal_to() -> None:
    assert check_rendering(encoder(tiny_tokenizer()), [conversation([Message(TEXT, "prose")])]).rows == 0


@pytest.mark.embedded
def test_the_embedded_model_renders_as_its_template() -> None:
    from transformers import AutoTokenizer

    folder = cached_model("smollm2_135m_q4")
    assert folder is not None, "fetch it: sweeptune fetch smollm2_135m_q4"
    found = check_rendering(encoder(AutoTokenizer.from_pretrained(folder)), pairs(50))
    assert (found.rows, found.texts) == (50, 0)
