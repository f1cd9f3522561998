"""The loss ledger: exact counts for every format under every template, and the faults that it stops.

The golden counts are in golden_ledgers.json. After adding a format to FORMATS or a template to TEMPLATES, write them
anew, and read the difference before committing it:

    PYTHONPATH=src:. python -m tests.data.test_ledger
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import EvalConfig
from sweeptune.data.conversation import TEXT, Conversation, conversation
from sweeptune.data.formats import to_conversation
from sweeptune.data.ledger import Ledger, raise_on_problems
from sweeptune.data.splits import load_splits
from sweeptune.data.tokenize import Encoded, Encoder, Row, Span
from sweeptune.models.tiny import CHATML, tiny_tokenizer
from tests.data.helpers import data_config, template_config

GOLDEN = Path(__file__).with_name("golden_ledgers.json")
END, START = 256, 257

FORMATS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": "世界?"},
                {"role": "assistant", "content": "world 🙂"},
                {"role": "user", "content": "Bye\n"},
                {"role": "assistant", "content": " ok "},
            ]
        },
        {"messages": [{"role": "user", "content": "<|im_end|>?"}, {"role": "assistant", "content": "<|im_start|>"}]},
    ],
    "sharegpt": [
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "1+1?"},
                {"from": "gpt", "value": "2"},
                {"from": "human", "value": "世界?"},
                {"from": "gpt", "value": "world 🙂"},
                {"from": "human", "value": "Bye\n"},
                {"from": "gpt", "value": " ok "},
            ],
        },
        {"conversations": [{"from": "human", "value": "<|im_end|>?"}, {"from": "gpt", "value": "<|im_start|>"}]},
    ],
    "xtuner": [
        {
            "conversation": [
                {"system": "Be brief.", "input": "1+1?", "output": "2"},
                {"input": "世界?", "output": "world 🙂"},
                {"input": "Bye\n", "output": " ok "},
            ]
        },
        {"conversation": [{"input": "<|im_end|>?", "output": "<|im_start|>"}]},
    ],
    "alpaca": [
        {"instruction": "Add.", "input": "1+1", "output": "2"},
        {"instruction": "Say hi.", "input": "", "output": "\nhi"},
    ],
    "alpaca_zh": [
        {"instruction_zh": "加。", "input_zh": "1+1", "output_zh": "二"},
        {
            "instruction_zh": "你好",
            "input_zh": "",
            "output_zh": "\n好",
            "instruction": "not read",
            "output": "not read",
        },
    ],
    "prompt_completion": [
        {"prompt": "1+1=", "completion": " 2"},
        {
            "prompt": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2, but not learned"},
                {"role": "user", "content": "3+3?"},
            ],
            "completion": [{"role": "assistant", "content": "6"}],
        },
    ],
    "text": [{"text": "Once upon a time.\n"}, {"text": "世界"}, {"text": " <|im_end|> is text "}],
    "qa": [{"question": f"{n}+{n}?", "answer": f"{n + n}"} for n in range(12)],
}


def tokenizer_with(template: str, *tokens: str, bos: str | None = None) -> PreTrainedTokenizerBase:
    """Bytes, with more special tokens and another template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)} if tokens else {})
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    return tokenizer


LLAMA3_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALPACA_LIKE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
)
ALPACA_LIKE = ALPACA_LIKE.replace("{{ m['content'] + eos", "{{ '### Response:\n' + m['content'] + eos")
ALPACA_LIKE += "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def plain() -> PreTrainedTokenizerBase:
    """Bytes without a begin-of-text, and ChatML as the model's own template."""
    return tiny_tokenizer()


def opening() -> PreTrainedTokenizerBase:
    """Bytes with a begin-of-text."""
    return tokenizer_with(CHATML, bos="<s>")


def llama3(template: str = CHATML) -> PreTrainedTokenizerBase:
    """Bytes with Llama 3's markup; its stop is not the end-of-text."""
    return tokenizer_with(template, *LLAMA3_TOKENS, bos="<|begin_of_text|>")


TEMPLATES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], str]] = {
    "chatml_like": (plain, "auto"),
    "llama3_like": (lambda: llama3(LLAMA3_LIKE), "auto"),
    "alpaca_like": (lambda: tokenizer_with(ALPACA_LIKE), "auto"),
    "internlm2_like": (lambda: tokenizer_with("{{ bos_token }}" + CHATML, bos="<s>"), "auto"),
    "chatml": (plain, "chatml"),
    "internlm2_chat": (opening, "internlm2_chat"),
    "alpaca": (opening, "alpaca"),
    "llama3": (llama3, "llama3"),
    "none": (opening, "none"),
}
"""Models' own templates and ours: the tokenizer, and the setting ``template``."""
WITH_BOS = {"llama3_like", "internlm2_like", "internlm2_chat", "alpaca", "llama3", "none"}
CASES = [(form, template, "assistant") for form in FORMATS for template in TEMPLATES]
CASES += [("messages", template, loss_on) for template in TEMPLATES for loss_on in ("last", "all")]


def read(form: str) -> list[Conversation]:
    return [to_conversation(row, form) for row in FORMATS[form]]


def fill(items: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Ledger:
    ledger = Ledger(tokenizer, **options)
    for found in Encoder(tokenizer, template_config(), "assistant").encode(items):
        ledger.add(found)
    return ledger


def counts(form: str, template: str, loss_on: str) -> dict[str, Any]:
    make, name = TEMPLATES[template]
    tokenizer = make()
    ledger = Ledger(tokenizer, name)
    for found in Encoder(tokenizer, template_config(name), loss_on).encode(read(form)):
        ledger.add(found)
    assert ledger.problems() == []
    [part] = ledger.as_dict()["parts"]
    return dict(part)


def golden() -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(key.split("/")): part for key, part in json.loads(GOLDEN.read_text()).items()}


def tokens_of(parts: Sequence[int | str] | str) -> list[int]:
    """Texts as bytes, with special tokens between them by number: ``["ab", END]``."""
    encode = tiny_tokenizer().encode
    return [
        t
        for part in ([parts] if isinstance(parts, str) else parts)
        for t in ([part] if isinstance(part, int) else encode(part))
    ]


def encoded(
    *spans: tuple[str, int, Sequence[int | str] | str, bool, int], place: str = "rows.jsonl:7", source: int = 0
) -> Encoded:
    """A row by hand: (role, turn, what it says, learned, stops) for each stretch."""
    ids: list[int] = []
    mask: list[bool] = []
    found = []
    for role, turn, content, learned, stops in spans:
        tokens = tokens_of(content)
        found.append(Span(role, turn, len(ids), len(ids) + len(tokens), learned, stops))
        ids += tokens
        mask += [learned] * len(tokens)
    mask[0] = False
    role = TEXT if spans[0][0] == TEXT else "user"
    item = conversation([(role, "by hand")], place=place, source=source)
    return Encoded(Row(item.id, ids, mask, 0), tuple(found), item)


def ledger_of(*rows: Encoded, **options: Any) -> Ledger:
    ledger = Ledger(options.pop("tokenizer", None) or tiny_tokenizer(), **options)
    for row in rows:
        ledger.add(row)
    return ledger


ASKED = ("user", 0, "q?", False, 0)
GOOD = encoded(ASKED, ("assistant", 0, ["ab", END], True, 1))


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_the_golden_ledgers_are_met_to_the_last_count(case: tuple[str, str, str]) -> None:
    assert counts(*case) == golden()[case]


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_the_golden_loss_is_what_the_answers_weigh(case: tuple[str, str, str]) -> None:
    """A token is a byte here, so that the sum can be done without the encoder: answers, and a stop for each."""
    form, template, loss_on = case
    part, items = golden()[case], read(form)
    rows = len(FORMATS[form])
    said = [[m.content for m in item.messages if m.role == "assistant" and m.loss is not False] for item in items]
    said = [answers[-1:] if loss_on == "last" else answers for answers in said]
    weights = [len((text.strip() if template == "llama3" else text).encode()) for texts in said for text in texts]
    stops = rows if template == "none" else len(weights)
    loss = sum(weights) + stops
    if form == "text":  # all is learned but the first token, which is the begin-of-text where there is one
        texts = [item.messages[0].content for item in items]
        weights, stops = [0] * rows, rows
        loss = sum(len(text.encode()) for text in texts) + rows - (0 if template in WITH_BOS else rows)
    elif loss_on == "all":
        loss = part["tokens"] - rows
    assert (part["rows"], part["answers"], sum(part["stops"].values())) == (rows, len(weights), stops)
    assert part["loss_tokens"] == loss
    assert part["unstopped"] == len(weights) - stops
    assert [part[fault] for fault in ("doubled_bos", "without_loss", "uneven", "first_learned")] == [0, 0, 0, 0]
    assert sum(part["bos"].values()) == (rows if template in WITH_BOS else 0)


def test_equal_text_has_equal_counts_whichever_the_format_and_whoever_brings_the_template() -> None:
    parts = golden()
    bare = {case: {key: part[key] for key in part if key != "template"} for case, part in parts.items()}
    for template in TEMPLATES:
        first, *others = (bare[form, template, "assistant"] for form in ("messages", "sharegpt", "xtuner"))
        assert others == [first, first]
    for form, template, loss_on in CASES:
        if template in ("chatml", "internlm2_chat"):
            other = {"chatml": "chatml_like", "internlm2_chat": "internlm2_like"}[template]
            assert bare[form, template, loss_on] == bare[form, other, loss_on]
        if template == "internlm2_chat":
            one = parts[form, "chatml", loss_on]
            assert parts[form, template, loss_on]["tokens"] == one["tokens"] + one["rows"], "a begin-of-text a row"
    for template in TEMPLATES:
        sizes = {parts["messages", template, loss_on]["tokens"] for loss_on in ("assistant", "last", "all")}
        assert len(sizes) == 1, "what is learned does not change the tokens"


def test_without_a_template_there_is_what_is_said_and_no_more() -> None:
    for form, rows in FORMATS.items():
        size = sum(len(message.content.encode()) for item in read(form) for message in item.messages)
        assert golden()[form, "none", "assistant"]["tokens"] == size + 2 * len(rows)


def test_the_golden_file_has_no_other_cases() -> None:
    assert set(golden()) == set(CASES)


def test_roles_turns_and_ends_are_told_apart() -> None:
    row = encoded(
        ("system", 0, [START, "be brief"], False, 0),
        ("user", 0, "q?", False, 0),
        ("assistant", 0, [" 12", END], True, 1),
        ("tool", 1, "42", False, 0),
        ("assistant", 1, ["34", END], False, 1),
        ("user", 2, "r?", True, 0),
        ("assistant", 2, [START, "5", START, END], True, 2),
    )
    [part] = ledger_of(row, tokenizer=tokenizer_with(CHATML)).as_dict()["parts"]
    assert part["roles"] == {
        "assistant": {"1": [4, 4], "2": [3, 0], "3": [4, 4]},
        "system": {"1": [9, 0]},
        "tool": {"2": [2, 0]},
        "user": {"1": [2, 0], "3": [2, 2]},
    }
    assert (part["answers"], part["stops"]) == (2, {"<|im_end|>": 1, "<|im_start|><|im_end|>": 1})
    assert part["opened"] == {"space": 1, "special": 1}
    assert part["inside"] == {"<|im_start|>": 1}
    assert (part["tokens"], part["loss_tokens"], part["longest"], part["unstopped"]) == (26, 10, 26, 0)


def test_the_first_token_of_all_is_not_counted_as_learned() -> None:
    [part] = ledger_of(encoded((TEXT, 0, ["abc", END], True, 1))).as_dict()["parts"]
    assert (part["loss_tokens"], part["roles"], part["uneven"]) == (3, {TEXT: {"1": [4, 3]}}, 0)


def test_answers_beyond_the_bound_are_counted_together() -> None:
    spans = [("assistant", turn, ["a", END], True, 1) for turn in range(11)]
    [part] = ledger_of(encoded(ASKED, *spans)).as_dict()["parts"]
    assert list(part["roles"]["assistant"]) == [*"12345678", "9+"]
    assert part["roles"]["assistant"]["9+"] == [6, 6]
    assert part["answers"] == 11


def test_an_answer_in_several_stretches_is_one_answer() -> None:
    row = encoded(ASKED, ("assistant", 0, "think", True, 0), ("assistant", 0, ["ab", END], True, 1))
    [part] = ledger_of(row).as_dict()["parts"]
    assert (part["answers"], part["unstopped"]) == (1, 0)


def test_datasets_and_raw_text_are_counted_apart() -> None:
    rows = [GOOD, encoded(ASKED, ("assistant", 0, ["e", END], True, 1), source=1), encoded((TEXT, 0, "abc", True, 0))]
    ledger = ledger_of(*rows, template="chatml")
    assert list(ledger.parts) == [(0, "chatml"), (1, "chatml"), (0, "text")]
    assert [part["template"] for part in ledger.as_dict()["parts"]] == ["chatml", "text", "chatml"]
    assert ledger.problems() == [], "a stretch of a document needs no end"
    assert [line.split(":")[0] for line in ledger.lines() if line.startswith("loss")] == [
        "loss ledger, dataset 1, template=chatml",
        "loss ledger, dataset 1, raw text",
        "loss ledger, dataset 2, template=chatml",
    ]


def glm_like() -> Encoded:
    """What an encoder makes of a template whose only stop is the markup of the next turn."""
    return encoded(
        ("user", 0, "<|user|>q\x1b[31m?", False, 0),
        ("assistant", 0, "answer", True, 0),
        ("user", 1, "<|user|>r?", False, 0),
        ("assistant", 1, "last", True, 0),
    )


def test_a_template_whose_stop_is_never_trained_is_stopped_with_the_row_shown() -> None:
    ledger = ledger_of(GOOD, glm_like())
    assert ledger.as_dict()["parts"][0]["unstopped"] == 2
    with pytest.raises(ConfigError) as error:
        raise_on_problems(ledger)
    [problem] = error.value.problems
    assert "2 of 3 answers train no token that ends the turn" in problem
    assert r"First: rows.jsonl:7: <|user|>q\x1b[31m?[loss]answer[/loss]<|user|>r?[loss]last[/loss]" in problem
    assert "template=jinja template.path=<file>" in problem
    assert "\x1b" not in problem


def test_a_stop_that_is_there_but_bears_no_loss_is_not_trained() -> None:
    row = encoded(ASKED, ("assistant", 0, "ab", True, 0), ("assistant", 0, [END], False, 1))
    assert "1 of 1 answers train no token" in ledger_of(row).problems()[0]


@pytest.mark.parametrize("place", ["start", "behind another document"])
def test_a_doubled_begin_of_text_is_stopped_with_the_row_shown(place: str) -> None:
    tokenizer = tokenizer_with(CHATML, bos="<s>")
    bos = tokenizer.bos_token_id
    head = [bos, bos] if place == "start" else [bos, "abc", bos, bos]
    row = encoded(("user", 0, [*head, "q"], False, 0), ("assistant", 0, ["ab", END], True, 1))
    ledger = ledger_of(row, tokenizer=tokenizer)
    [problem] = ledger.problems()
    assert "1 of 1 rows have two begin-of-text tokens in a row" in problem
    assert "<s><s>q[loss]ab<|im_end|>[/loss]" in problem
    assert ledger.as_dict()["parts"][0]["bos"] == {"<s>": head.count(bos)}


def test_a_begin_of_text_that_two_stretches_write_is_doubled_too() -> None:
    tokenizer = tokenizer_with(CHATML, bos="<s>")
    bos = tokenizer.bos_token_id
    answer = ("assistant", 0, ["ab", END], True, 1)
    row = encoded(("system", 0, [bos], False, 0), ("user", 0, [bos, "q"], False, 0), answer)
    assert "1 of 1 rows have two begin-of-text" in ledger_of(row, tokenizer=tokenizer).problems()[0]
    apart = encoded(("system", 0, [bos, "x"], False, 0), ("user", 0, [bos, "q"], False, 0), answer)
    assert ledger_of(apart, tokenizer=tokenizer).problems() == []


def test_a_template_that_writes_begin_of_text_twice_is_stopped() -> None:
    tokenizer = tokenizer_with("{{ bos_token }}<s>" + CHATML, bos="<s>")
    ledger = fill(read("qa"), tokenizer)
    assert [problem for problem in ledger.problems() if "12 of 12 rows have two begin-of-text" in problem]


def test_begin_of_text_in_front_of_every_turn_is_no_doubling() -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.bos_token = "<|im_start|>"  # as SmolLM2 names it
    ledger = fill(read("messages"), tokenizer)
    assert ledger.as_dict()["parts"][0]["bos"] == {"<|im_start|>": 9}
    assert ledger.problems() == []


def test_a_token_that_begins_and_ends_texts_may_follow_itself_inside_a_row() -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.bos_token = "<|im_end|>"  # as GPT-2 does
    inside = encoded((TEXT, 0, [END, "ab", END, END, "cd", END], False, 0), (TEXT, 0, ["e", END], True, 1))
    assert ledger_of(inside, tokenizer=tokenizer).problems() == []
    start = encoded((TEXT, 0, [END, END, "ab"], False, 0), (TEXT, 0, ["e", END], True, 1))
    assert "template.document_start=null" in ledger_of(start, tokenizer=tokenizer).problems()[0]


MASKED = encoded(ASKED, ("assistant", 0, ["hidden", END], False, 1), place="rows.jsonl:9")


def test_rows_of_which_nothing_is_learned_are_stopped_with_the_first_shown() -> None:
    ledger = ledger_of(GOOD, MASKED, MASKED)
    [problem] = ledger.problems()
    assert "2 of 3 rows have no token that is learned" in problem
    assert "First: rows.jsonl:9: q?hidden<|im_end|>" in problem
    assert "data.on_bad_row=skip" in problem


def test_they_are_left_out_and_counted_where_bad_rows_are_skipped() -> None:
    ledger = Ledger(tiny_tokenizer(), skip=True)
    assert [ledger.add(row) for row in (GOOD, MASKED, GOOD)] == [True, False, True]
    part = ledger.as_dict()["parts"][0]
    assert (part["rows"], part["without_loss"], part["left_out"], part["tokens"]) == (2, 1, 1, 10)
    assert ledger.problems() == []
    assert "  1 rows left out: nothing of them is learned (data.on_bad_row=skip)" in ledger.lines()


def test_leaving_out_every_row_is_a_problem_all_the_same() -> None:
    [problem] = ledger_of(MASKED, skip=True).problems()
    assert "all 1 rows were left out" in problem and "rows.jsonl:9" in problem
    assert "data.loss_on=all" in ledger_of(MASKED).problems()[0]


def test_a_mask_that_is_not_what_the_spans_say_is_stopped() -> None:
    row = encoded(ASKED, ("assistant", 0, ["ab", END], True, 1))
    row.row.loss_mask[-2] = False
    assert "the loss mask is not what was meant" in ledger_of(row).problems()[0]
    first = encoded(("assistant", 0, ["ab", END], True, 1))
    first.row.loss_mask[0] = True
    assert "the very first token bears loss" in ledger_of(first).problems()[0]


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        raise_on_problems(ledger_of(GOOD, glm_like(), MASKED))
    assert len(error.value.problems) == 2
    raise_on_problems(ledger_of(GOOD))


def test_a_ledger_survives_json_and_parts_add_up_in_any_cut() -> None:
    rows = [GOOD, glm_like(), MASKED, encoded((TEXT, 0, ["text", END], True, 1), source=1)] * 3
    whole = ledger_of(*rows)
    whole.cut("truncated", rows=2, tokens=30, loss_tokens=5)
    again = Ledger.from_dict(json.loads(json.dumps(whole.as_dict())))
    assert (again.as_dict(), again.digest) == (whole.as_dict(), whole.digest)
    assert (again.problems(), again.lines()) == (whole.problems(), whole.lines())
    for at in (0, 1, 5, len(rows)):
        first, second = ledger_of(*rows[:at]), ledger_of(*rows[at:])
        second.cut("truncated", rows=2, tokens=30, loss_tokens=5)
        first.merge(Ledger.from_dict(second.as_dict()))
        assert first.as_dict() == whole.as_dict()


def test_the_digest_is_of_the_counts_alone() -> None:
    elsewhere = encoded(ASKED, ("assistant", 0, ["ab", END], True, 1), place="/another/folder.jsonl:1")
    assert ledger_of(GOOD).digest == ledger_of(elsewhere).digest
    assert len(ledger_of(GOOD).digest) == 16
    other = encoded(ASKED, ("assistant", 0, ["abc", END], True, 1))
    cut = ledger_of(GOOD)
    cut.cut("dropped", rows=1, tokens=1, loss_tokens=1)
    assert len({ledger.digest for ledger in (ledger_of(), ledger_of(GOOD), ledger_of(other), cut)}) == 4


def test_the_log_tells_whose_the_loss_is() -> None:
    ledger = fill(read("messages"), tiny_tokenizer())
    ledger.cut("truncated", rows=1, tokens=1234, loss_tokens=7)
    ledger.cut("split", rows=3, tokens=0, loss_tokens=0)
    text = "\n".join(ledger.lines())
    assert "loss ledger, template=auto: 2 rows" in text
    assert "assistant 100 % (39 % of its tokens), system none, user none" in text
    assert "stop trained in 4 of 4 answers: '<|im_end|>' 4; no begin-of-text, 1 answers begin with white space" in text
    assert "1 rows truncated: 1,234 tokens lost, 7 of them with loss" in text
    assert "3 rows split: no token lost" in text


def judged() -> EvalConfig:
    return EvalConfig(batch_size=1, max_samples=None, test=False)


def test_loading_a_dataset_fills_the_ledger_with_every_row_and_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}. " * (i % 9 + 1)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(data_config(path, max_length=100), judged(), template_config(), tiny_tokenizer())
    values = splits.ledger.as_dict()
    cut = values["cut"]["truncated"]
    held = sum(row.length for row in [*splits.train, *splits.eval, *splits.test])
    learned = sum(row.loss_tokens for row in [*splits.train, *splits.eval, *splits.test])
    assert values["parts"][0]["rows"] == 200
    assert values["parts"][0]["tokens"] == held + cut["tokens"]
    assert values["parts"][0]["loss_tokens"] == learned + cut["loss_tokens"]
    assert 0 < cut["loss_tokens"] <= cut["tokens"]
    assert values["rendering"]["equal"] == values["rendering"]["rows"] == 64
    assert splits.ledger.problems() == []


@pytest.mark.slow
def test_counting_is_cheap_beside_encoding() -> None:
    """A few hundredths with a real vocabulary; bytes as tokens make encoding cheap, so a quarter here."""
    tokenizer = tiny_tokenizer()
    items = [conversation([("user", f"{i} " * 40), ("assistant", f"{i} is the answer " * 10)]) for i in range(2000)]
    encoder = Encoder(tokenizer, template_config(), "assistant")
    began = time.process_time()
    found = list(encoder.encode(items))
    encoding = time.process_time() - began
    times = []
    for _ in range(5):
        ledger = Ledger(tokenizer)
        began = time.process_time()
        for row in found:
            ledger.add(row)
        times.append(time.process_time() - began)
    assert min(times) < 0.25 * encoding


if __name__ == "__main__":
    lines = [f'"{"/".join(case)}": {json.dumps(counts(*case))}' for case in CASES]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
