"""Templates by name and by file; who says what in them; and the ones that are stopped."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation, Message, conversation
from sweeptune.data.template import NEEDS, apply_template, own_template, stop_ids
from sweeptune.data.tokenize import Encoded, Encoder
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from tests.data.helpers import pairs, template_config
from tests.data.test_windows import consistent

TURNS = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def tokenizer(*more: str, template: str | None = CHATML, bos: str | None = None) -> PreTrainedTokenizerBase:
    made = tiny_tokenizer()
    made._tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in more])
    if bos:
        made.add_special_tokens({"bos_token": bos})
    made.chat_template = template
    return made


def encode(
    item: Conversation, made: PreTrainedTokenizerBase, name: str = "auto", loss_on: str = "assistant", **changed: object
) -> Encoded:
    [found] = Encoder(made, template_config(name, **changed), loss_on).encode([item])
    consistent(found)
    return found


def stretches(found: Encoded, made: PreTrainedTokenizerBase) -> list[tuple[str, int, str, bool]]:
    return [(s.role, s.turn, made.decode(found.row.input_ids[s.begin : s.end]), s.learned) for s in found.spans]


def learned(found: Encoded, made: PreTrainedTokenizerBase) -> list[str]:
    return [text for _, _, text, loss in stretches(found, made) if loss]


def chat(*turns: tuple[str, str] | Message, tools: Sequence[dict[str, object]] | None = None) -> Conversation:
    return conversation(turns, tools=tools)


# What each shipped template writes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "made", "text"),
    [
        (
            "chatml",
            tokenizer(template=None),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
        ),
        (
            "internlm2_chat",
            tokenizer(bos="<s>"),
            "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
        ),
        (
            "llama3",
            tokenizer(*LLAMA3, bos="<s>"),
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nr<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>",
        ),
        (
            "alpaca",
            tokenizer(bos="<s>"),
            "<s>S\n\n### Instruction:\nq\n\n### Response:\na<|im_end|>"
            "\n\n### Instruction:\nr\n\n### Response:\nb<|im_end|>",
        ),
        ("none", tokenizer("</s>", bos="<s>"), "<s>Sqarb</s>"),
    ],
)
def test_each_template_writes_its_text_and_the_answers_bear_loss(name, made, text):
    found = encode(chat(*TURNS), made, name)
    assert made.decode(found.row.input_ids) == text
    written = made.apply_chat_template([{"role": r, "content": c} for r, c in TURNS], tokenize=False)
    assert written == text, "chat and export use the trained template"
    stop = {"llama3": "<|eot_id|>", "none": ""}.get(name, "<|im_end|>")
    last = "b</s>" if name == "none" else f"b{stop}"
    assert learned(found, made) == [f"a{stop}", last]
    assert found.row.loss_bytes == 2
    roles = [(role, turn) for role, turn, _, _ in stretches(found, made)]
    assert list(dict.fromkeys(roles)) == [
        ("system", 0), ("user", 0), ("assistant", 0), ("user", 1), ("assistant", 1)
    ]  # fmt: skip
    others = [part for role, _, part, _ in stretches(found, made) if role != "assistant"]
    bare = [part.strip().removesuffix("<|im_end|>").removesuffix("<|eot_id|>") for part in others if part != "<s>"]
    assert [part[-1] for part in bare] == ["S", "q", "r"]


def test_alpacas_opening_sentences_are_a_system_turn_of_the_templates_own():
    made = tokenizer()
    found = encode(chat(("user", "q"), ("assistant", "a")), made, "alpaca")
    [system, user, head, said] = stretches(found, made)
    assert system[0] == "system" and system[2].startswith("Below is") and system[2].endswith("the request.")
    assert user[::2] == ("user", "\n\n### Instruction:\nq")
    assert head[::2] == ("assistant", "\n\n### Response:\n")
    assert said == ("assistant", 0, "a<|im_end|>", True)


@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("llama3", tokenizer(), r"no token <\|start_header_id\|> and .*work template=auto, chatml, alpaca, none"),
        ("internlm2_chat", tokenizer(), "begin-of-text token, and the tokenizer's is none; .*auto, chatml"),
        ("internlm2_chat", tokenizer(bos="<|im_start|>"), "the tokenizer's is <.im_start.>; with"),
        ("alpaca", tokenizer(), None),
    ],
)
def test_markup_that_the_tokenizer_does_not_know_is_an_error_that_names_what_works(name, made, reason):
    if reason is None:
        assert apply_template(made, template_config(name)).chat_template
        return
    with pytest.raises(ConfigError, match=f"template={name}: .*{reason}"):
        Encoder(made, template_config(name), "assistant")


def test_a_tokenizer_without_a_template_says_which_would_work_and_still_reads_raw_text():
    made = tokenizer(template=None)
    assert encode(chat(("text", "raw")), made).row.loss_tokens == 3
    with pytest.raises(ConfigError, match=r"template=auto: .*no chat template.*work template=chatml, alpaca, none;"):
        encode(chat(*TURNS), made)


def test_tools_are_not_dropped_by_a_template_that_has_no_place_for_them():
    for name in ("chatml", "alpaca", "llama3"):
        made = tokenizer(*LLAMA3, bos="<s>")
        with pytest.raises(ConfigError, match=f"template={name}: .*no place for tools"):
            encode(chat(*TURNS, tools=[{"name": "x"}]), made, name)
    assert set(NEEDS) == {"internlm2_chat", "chatml", "llama3", "alpaca"}


def test_a_template_of_ones_own_from_a_file(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    made = tokenizer()
    found = encode(chat(*TURNS), made, "jinja", path=str(path))
    assert made.decode(found.row.input_ids).startswith("<|im_start|>the system\nS<|im_end|>")
    assert learned(found, made) == ["a<|im_end|>", "b<|im_end|>"]
    apply_template(made, template_config("auto"))
    assert made.chat_template == CHATML == own_template(made)
    for text, reason in (("", "is empty"), (None, "cannot be read")):
        path.write_text(text) if text is not None else path.unlink()
        with pytest.raises(ConfigError, match=rf"template\.path=.*{reason}"):
            encode(chat(*TURNS), made, "jinja", path=str(path))


# What is learned ------------------------------------------------------------------------------------------------------


def test_loss_on_last_and_all():
    made = tokenizer()
    base = encode(chat(*TURNS), made)
    last, everything = (encode(chat(*TURNS), made, loss_on=loss_on) for loss_on in ("last", "all"))
    assert learned(last, made) == ["b<|im_end|>"]
    assert everything.row.loss_mask == [False] + [True] * (everything.row.length - 1)
    assert everything.row.loss_bytes == sum(len(f"\n{role}\n{text}") for role, text in TURNS)  # without special tokens
    assert base.row.input_ids == last.row.input_ids == everything.row.input_ids
    assert [s.stops for s in everything.spans if s.stops] == [1, 1]


def test_with_loss_on_everything_turns_behind_the_last_answer_stay():
    made = tokenizer()
    longer = chat(*TURNS, ("user", "more"))
    assert made.decode(encode(longer, made, loss_on="all").row.input_ids).endswith("user\nmore<|im_end|>\n")
    assert encode(longer, made).row.input_ids == encode(chat(*TURNS), made).row.input_ids


def test_a_message_may_decide_for_itself():
    made = tokenizer()
    turns = [
        Message("user", "user", loss=True),  # the word stands in the markup, too
        Message("assistant", "a", loss=False),
        Message("user", "r"),
        Message("assistant", "b"),
        Message("user", "s", loss=True),
    ]
    found = encode(chat(*turns), made)
    assert learned(found, made) == ["user<|im_end|>", "b<|im_end|>", "s<|im_end|>"]
    assert found.row.loss_bytes == len("userbs")
    kept = encode(chat(*turns), made, loss_on="all")
    assert [text for _, _, text, loss in stretches(kept, made) if not loss] == [
        "<|im_start|>", "<|im_start|>assistant\na<|im_end|>\n"
    ]  # fmt: skip


def test_a_row_without_loss_is_not_hidden():
    made = tokenizer()
    found = encode(chat(("user", "q"), Message("assistant", "a", loss=False)), made)
    assert (found.row.loss_tokens, found.row.loss_bytes) == (0, 0)
    assert found.row.input_ids == encode(chat(("user", "q"), ("assistant", "a")), made).row.input_ids


def test_a_doubled_begin_of_text_that_the_template_writes_is_not_hidden():
    made = tokenizer(bos="<s>", template="{{ bos_token }}{{ bos_token }}" + CHATML)
    assert encode(chat(*TURNS), made).row.input_ids[:2] == [made.bos_token_id] * 2


def test_tools_and_calls_reach_the_template_and_their_markup_stays_text():
    calls = "(message['tool_calls'] | tojson if message['tool_calls'] else '')"
    offer = "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}"
    template = offer + CHATML.replace("+ '<|im_end|>'", f"+ {calls} + '<|im_end|>'")
    made = tokenizer(template=template)
    call = {"function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    item = chat(
        ("user", "q"),
        Message("assistant", "", extra={"tool_calls": [call]}),
        Message("tool", "7", extra={"name": "f"}),
        ("assistant", "b"),
        tools=[{"name": "f <|im_start|>"}],
    )
    found = encode(item, made)
    assert [r for r, _, _, _ in stretches(found, made)] == ["user", *["assistant"] * 3, "tool", *["assistant"] * 3]
    first, second = learned(found, made)
    assert first.startswith('[{"function"') and first.endswith('"<|im_end|>"}}}]<|im_end|>') and second == "b<|im_end|>"
    end, start = made.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    assert (found.row.input_ids.count(end), found.row.input_ids.count(start)) == (5, 5)


def test_a_default_system_prompt_is_the_systems():
    default = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}" + CHATML
    )
    made = tokenizer(template=default)
    found = encode(chat(("user", "q"), ("assistant", "a")), made)
    assert stretches(found, made)[:2] == [
        ("system", 0, "<|im_start|>system\nBe good.<|im_end|>\n", False),
        ("user", 0, "<|im_start|>user\nq<|im_end|>\n", False),
    ]


# Templates that rewrite, and traps ------------------------------------------------------------------------------------

QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or r) %}"
    "{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{{ c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_plain_rows_under_a_template_that_thinks_before_the_last_answer_only():
    made = tokenizer(template=QWEN3)
    found = encode(chat(*TURNS), made)
    assert learned(found, made) == ["a<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]
    assert [r for r, _, _, _ in stretches(found, made)] == [
        "system", "user", *["assistant"] * 3, "user", *["assistant"] * 3
    ]  # fmt: skip


def test_reasoning_that_a_template_strips_from_earlier_answers_is_learned_in_the_last_only():
    made = tokenizer(template=QWEN3)
    first, last = "<think>\nhm\n</think>\n\na", "<think>\nx\n</think>\n\nb"
    thinking = chat(("user", "q"), ("assistant", first), ("user", "r"), ("assistant", last))
    with pytest.raises(ConfigError, match=r"template=auto: .*turn 2 is added.*reasoning.*data\.loss_on=last"):
        encode(thinking, made)
    found = encode(thinking, made, loss_on="last")
    assert learned(found, made) == [f"{last}<|im_end|>"]
    assert "hm" not in made.decode(found.row.input_ids)


GLM = (
    "<s>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("loss_on", ["assistant", "last", "all"])
def test_a_template_whose_stop_token_is_only_the_next_turns_beginning_is_stopped(loss_on):
    made = tokenizer("<|user|>", "<|assistant|>", "<|system|>", "<s>", template=GLM)
    with pytest.raises(ConfigError, match=r"template=auto: .*ends with no special token.*never learn to stop"):
        encode(chat(*TURNS), made, loss_on=loss_on)


def test_errors_name_the_template_that_was_chosen(tmp_path):
    path = tmp_path / "glm.jinja"
    path.write_text(CHATML.replace("<|im_end|>", ""))
    with pytest.raises(ConfigError, match="template=jinja: "):
        encode(chat(*TURNS), tokenizer(), "jinja", path=str(path))


def test_generation_stops_where_the_trained_template_ends_a_turn():
    made = apply_template(tokenizer(*LLAMA3, bos="<s>"), template_config("llama3"))
    assert stop_ids(made) == sorted(made.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>"]))
    assert stop_ids(apply_template(made, template_config("auto"))) == [made.eos_token_id]


# What it costs, and what it depends on --------------------------------------------------------------------------------


def test_a_shape_is_rendered_a_few_times_and_a_row_once_unless_contents_are_proved_to_be_written_as_they_are():
    for name, made, for_the_rows in (("chatml", tokenizer(), 0), ("llama3", tokenizer(*LLAMA3, bos="<s>"), 500)):
        encoder = Encoder(made, template_config(name), "assistant")
        list(encoder.encode(pairs(1)))
        for_the_shape = encoder.renderer.calls
        assert for_the_shape < 15
        list(encoder.encode(pairs(500)))
        assert encoder.renderer.calls == for_the_shape + for_the_rows


def test_rows_cut_with_their_shape_and_rows_cut_alone_are_the_same(monkeypatch):
    rows = [
        *pairs(3),
        chat(*TURNS),
        chat(("user", ""), ("assistant", "")),
        chat(("user", " a\n"), ("assistant", "\n b ")),
    ]
    for name, made in (("auto", tokenizer()), ("llama3", tokenizer(*LLAMA3)), ("alpaca", tokenizer())):
        for loss_on in ("assistant", "last", "all"):
            quick = list(Encoder(made, template_config(name), loss_on).encode(rows))
            slow = Encoder(made, template_config(name), loss_on)
            monkeypatch.setattr(slow, "_shape", lambda roles, learned: None)
            assert list(slow.encode(rows)) == quick


def test_the_digest_changes_with_what_ids_and_masks_depend_on_and_with_nothing_else():
    def digest(made: PreTrainedTokenizerBase, name: str = "auto", loss_on: str = "assistant", **changed: object) -> str:
        return Encoder(made, template_config(name, **changed), loss_on).digest

    base = digest(tokenizer())
    padded = tokenizer()
    padded(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert digest(padded) == base
    others = [
        digest(tokenizer(), loss_on="last"),
        digest(tokenizer(), "alpaca"),
        digest(tokenizer(), "none"),
        digest(tokenizer(template=CHATML + " ")),
        digest(tokenizer("</s>")),
        digest(tokenizer(), document_end=None),
    ]
    assert len({base, *others}) == 7
