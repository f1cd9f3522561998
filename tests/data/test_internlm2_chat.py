"""The template internlm2_chat on InternLM2's real tokenizer: id for id what XTuner trains on."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from sweeptune.data.conversation import Message, conversation
from sweeptune.data.rows import Span
from sweeptune.data.template import document_texts
from sweeptune.data.tokenize import Encoder
from tests.data.helpers import chat_sets, internlm2_tokenizer, template_config

START, END, BOS = 92543, 92542, 1
# XTuner's own ids and labels for: system "You are a helpful assistant.", three turns, 2+2? among them.
WORKED = [
    *(1, 92543, 9081, 364, 2770, 657, 395, 11100, 17993, 281, 92542, 364),
    *(92543, 1008, 364, 77230, 92542, 364, 92543, 525, 11353, 364, 77230, 60477, 92542, 364),
    *(92543, 1008, 364, 314, 342, 314, 345, 92542, 364, 92543, 525, 11353, 364, 319, 92542, 364),
]
LEARNED = [77230, 60477, 92542, 319, 92542]
SYSTEM = ("system", "You are a helpful assistant.")
TURNS = [SYSTEM, ("user", "你好"), ("assistant", "你好\uff01"), ("user", "2+2?"), ("assistant", "4")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return internlm2_tokenizer(tmp_path_factory.mktemp("internlm2"))


def encoder(tokenizer: PreTrainedTokenizerBase, loss_on: str = "assistant") -> Encoder:
    return Encoder(tokenizer, template_config("internlm2_chat"), loss_on)


def test_xtuners_worked_example_id_by_id(tokenizer):
    [found] = encoder(tokenizer).encode([conversation(TURNS)])
    row = found.row
    assert row.input_ids == WORKED
    assert [token for token, loss in zip(row.input_ids, row.loss_mask, strict=True) if loss] == LEARNED
    places = [i for i, loss in enumerate(row.loss_mask) if loss]
    assert places == [22, 23, 24, 39, 40]
    assert row.loss_bytes == len("你好\uff014".encode())
    assert found.spans == (
        Span("system", 0, 0, 12, False),
        Span("user", 0, 12, 18, False),
        Span("assistant", 0, 18, 22, False),
        Span("assistant", 0, 22, 25, True, 1),
        Span("assistant", 0, 25, 26, False),
        Span("user", 1, 26, 35, False),
        Span("assistant", 1, 35, 39, False),
        Span("assistant", 1, 39, 41, True, 1),
        Span("assistant", 1, 41, 42, False),
    )


def test_three_turns_with_a_system_prompt_id_by_id(tokenizer):
    turns = [*TURNS, ("user", "再见\n"), ("assistant", "\n再见\uff01<|im_end|>")]
    [found] = encoder(tokenizer).encode([conversation(turns)])
    expected: list[tuple[int, bool]] = [(BOS, False)]

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    for role, content in turns:
        said = role == "assistant"
        expected += [(START, False), *((i, False) for i in (ids(f"{role}\n") if said else []))]
        if said:
            # In the text of a row, markup stays text: its letters are tokenized, cut behind the first of them.
            pieces = content.replace("<|im_end|>", "<\0|im_end|>").split("\0")
            expected += [(i, True) for piece in pieces for i in ids(piece)]
        else:
            expected += [(i, False) for i in ids(f"{role}\n{content}")]
        expected += [(END, said), *((i, False) for i in ids("\n"))]
    assert list(zip(found.row.input_ids, found.row.loss_mask, strict=True)) == expected
    assert found.row.input_ids.count(END) == 7
    assert found.row.input_ids[:42] == WORKED


@pytest.mark.slow
def test_on_real_chats_the_rows_are_the_template_text_tokenized_in_one(tokenizer):
    ours = encoder(tokenizer)
    for name, chats in chat_sets():
        messages = [[{"role": m.role, "content": m.content} for m in chat.messages] for chat in chats]
        answered = [turns[: max(i + 1 for i, m in enumerate(turns) if m["role"] == "assistant")] for turns in messages]
        texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in answered]
        before = ours.renderer.calls
        rows = [found.row for found in ours.encode(chats)]
        shapes = len({len(turns) for turns in answered}) * max(map(len, answered)) * 4
        assert ours.renderer.calls - before < len(chats) + shapes, "a row is rendered once"
        different = [
            i
            for i, (row, whole) in enumerate(
                zip(rows, tokenizer(texts, add_special_tokens=False).input_ids, strict=True)
            )
            if row.input_ids != whole
        ]
        assert len(rows) == len(chats) and different == [], name


def test_calls_of_tools_and_what_they_return_as_lmdeploy_writes_them(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "上海"}}}
    item = conversation(
        [
            Message("system", "Help."),
            Message("user", "天气?"),
            Message("assistant", "Let me see.", extra={"tool_calls": [call]}),
            Message("tool", '{"temp": 22}', extra={"name": "weather"}),
            Message("assistant", "22."),
        ],
        tools=[{"name": "weather"}],
    )
    [found] = encoder(tokenizer).encode([item])
    assert tokenizer.decode(found.row.input_ids) == (
        "<s><|im_start|>system\nHelp.<|im_end|>\n"
        '<|im_start|>system name=<|plugin|>\n[{"name": "weather"}]<|im_end|>\n'
        "<|im_start|>user\n天气?<|im_end|>\n"
        '<|im_start|>assistant\nLet me see.<|action_start|><|plugin|>\n{"name": "weather", "parameters": '
        '{"city": "上海"}}<|action_end|><|im_end|>\n'
        '<|im_start|>environment name=<|plugin|>\n{"temp": 22}<|im_end|>\n'
        "<|im_start|>assistant\n22.<|im_end|>\n"
    )
    learned = [tokenizer.decode(found.row.input_ids[s.begin : s.end]) for s in found.spans if s.learned]
    assert [text[-20:] for text in learned] == ["action_end|><|im_end|>"[-20:], "22.<|im_end|>"]
    assert [s.role for s in found.spans if s.turn == 1] == ["tool", "assistant", "assistant", "assistant"]


def test_documents_stand_between_the_tokens_of_texts(tokenizer):
    for name in ("internlm2_chat", "none", "auto"):
        assert document_texts(tokenizer, template_config(name)) == ("<s>", "</s>")
    [found] = Encoder(tokenizer, template_config("none"), "assistant").encode([conversation([("text", "你好")])])
    assert found.row.input_ids == [1, 77230, 2]
