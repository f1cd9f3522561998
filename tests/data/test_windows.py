"""Raw text: a document between its own tokens, whole or in windows, with loss on everything but first tokens."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation, conversation
from sweeptune.data.template import document_texts
from sweeptune.data.tokenize import Encoded, Encoder
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from tests.data.helpers import template_config

MANY = "Größe 世界🙂 e\u0301 🧑‍🚀\n\n  indented <|im_end|> und “so” weiter…  "


def text(content: str) -> Conversation:
    return conversation([("text", content)])


def tokenizer(bos: str | None = "<s>", more: tuple[str, ...] = ("</s>",), **changed: str) -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made._tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in more])
    if bos:
        made.add_special_tokens({"bos_token": bos})
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def encode(content: str, made: PreTrainedTokenizerBase, window: int | None = None, **changed: object) -> list[Encoded]:
    return list(Encoder(made, template_config(**changed), "assistant").encode([text(content)], window=window))


def consistent(found: Encoded) -> None:
    """The spans cover the row in order, and say what the mask says."""
    begin = 0
    for span in found.spans:
        assert (span.begin, span.end > begin) == (begin, True)
        assert found.row.loss_mask[begin : span.end] == [span.learned] * (span.end - begin)
        begin = span.end
    assert begin == len(found.row.input_ids)


def test_a_document_stands_between_its_tokens_and_all_but_the_first_is_learned():
    made = tokenizer()
    [found] = encode("Hi 世", made)
    inner = made.encode("Hi 世", add_special_tokens=False)
    assert found.row.input_ids == [made.bos_token_id, *inner, made.convert_tokens_to_ids("</s>")]
    assert found.row.loss_mask == [False] + [True] * (len(inner) + 1)
    assert found.row.loss_bytes == len("Hi 世".encode())
    assert [(s.role, s.learned, s.stops) for s in found.spans] == [("text", False, 0), ("text", True, 1)]
    consistent(found)


def test_without_a_token_before_it_the_first_of_the_text_is_not_learned():
    [found] = encode("世界", tokenizer(bos=None), document_end=None)
    assert found.row.loss_mask == [False] + [True] * 5
    assert found.row.loss_bytes == 3  # the first character counts with its first token
    assert found.spans[-1].stops == 0
    consistent(found)


@pytest.mark.parametrize("window", [2, 3, 7, 16, 1000])
@pytest.mark.parametrize("start", ["auto", None])
def test_windows_hold_every_token_and_every_byte_once(window, start):
    made = tokenizer()
    [whole] = encode(MANY, made, document_start=start)
    rows = [found.row for found in encode(MANY, made, window, document_start=start)]
    ids = [token for row in rows for token in row.input_ids]
    assert ids == whole.row.input_ids[: len(ids)]
    assert len(whole.row.input_ids) - len(ids) in (0, 1)  # a last window of one token could bear no loss
    assert [row.id for row in rows] == [f"{text(MANY).id}-{k}" for k in range(len(rows))]
    assert all(len(row.input_ids) == window for row in rows[:-1])
    assert all(row.loss_mask == [False] + [True] * (row.length - 1) for row in rows)
    for found in encode(MANY, made, window, document_start=start):
        consistent(found)
    # The tiny tokenizer's tokens are bytes, and a character counts with the first of its bytes.
    sizes = [size for char in MANY for size in [len(char.encode()), *[0] * (len(char.encode()) - 1)]]
    sizes = [*([0] if start else []), *sizes, 0]
    firsts = sum(sizes[k * window] for k in range(len(rows)))
    assert sum(row.loss_bytes for row in rows) + firsts == len(MANY.encode()) - sum(sizes[len(ids) :])


def test_a_window_of_one_token_at_the_end_is_left_out():
    rows = [found.row for found in encode("abcd", tokenizer(), window=5)]
    assert [row.length for row in rows] == [5]


@pytest.mark.parametrize("window", [2, 3, 4])
def test_the_bytes_of_a_window_are_those_of_its_learned_tokens(window):
    letters = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab = letters | {"ab": 256, "Ġa": 257, "Ġab": 258}
    pieces = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("Ġ", "a"), ("Ġ", "ab")]))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.post_processor = processors.ByteLevel(trim_offsets=True)  # a token's place leaves its space out
    pieces.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|end|>")
    found = encode("  abab ab\n\n a b ab  ab\n ", made, window)
    assert len(found) > 3
    for row in (one.row for one in found):
        assert row.loss_bytes == len(made.decode(row.input_ids[1:], skip_special_tokens=True).encode())


def test_text_that_looks_like_markup_stays_text():
    made = tokenizer()
    [found] = encode("a <|im_end|></s><s> b", made)
    assert [token for token in found.row.input_ids if token >= 256] == [
        made.bos_token_id,
        made.convert_tokens_to_ids("</s>"),
    ]
    assert found.row.loss_bytes == len("a <|im_end|></s><s> b")


def test_an_empty_text_is_a_row_that_can_be_seen():
    [found] = encode("", tokenizer())
    assert (found.row.length, found.row.loss_bytes) == (2, 0)
    [found] = encode("", tokenizer(), document_start=None)
    assert found.row.loss_tokens == 0


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (tokenizer(), ("<s>", "</s>")),  # <|im_end|> ends turns here, so </s> ends texts
        (tokenizer(bos=None), (None, "</s>")),
        (tokenizer(bos="<|im_start|>"), (None, "</s>")),  # as SmolLM2: markup of the chat template
        (tokenizer(bos="<|im_start|>", chat_template=None), (None, "</s>")),
        (tokenizer(bos="</s>", eos_token="</s>"), (None, "</s>")),
        (tokenizer(more=("<|endoftext|>", "</s>")), ("<s>", "<|endoftext|>")),
        (tokenizer(more=()), ("<s>", "<|im_end|>")),
        (tokenizer(more=("<eos>",), eos_token="<eos>", chat_template=CHATML), ("<s>", "<eos>")),
    ],
)
@pytest.mark.parametrize("name", ["auto", "none", "chatml"])
def test_the_tokens_of_a_document_are_those_of_texts_not_of_turns(made, expected, name):
    assert document_texts(made, template_config(name)) == expected
    Encoder(made, template_config(name), "assistant") if made.chat_template else None
    assert document_texts(made, template_config(name)) == expected


def test_a_documents_tokens_may_be_given():
    made = tokenizer()
    [found] = encode("a", made, document_start="</s>", document_end="<|im_end|>")
    assert made.convert_ids_to_tokens(found.row.input_ids) == ["</s>", "a", "<|im_end|>"]
    with pytest.raises(ConfigError, match=r"template\.document_end=<end>: is no token .*template\.document_end='"):
        encode("a", made, document_end="<end>")
