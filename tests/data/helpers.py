"""Rows, settings and conversations for the data tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from sweeptune.config.schema import DataConfig, TemplateConfig, TrainConfig
from sweeptune.data.conversation import Conversation, conversation
from sweeptune.data.fit import HoldOut
from sweeptune.data.sources import Found, read
from sweeptune.data.store import StoreWriter, TokenStore, open_parts
from sweeptune.data.tokenize import Row

GOOD = {"question": "What is 1+1?", "answer": "It is 2."}


def data_config(path: Path | None = None, **changed: Any) -> DataConfig:
    """Settings of ``data=jsonl`` (``data=pydocs`` without a path)."""
    values: dict[str, Any] = {
        "name": "jsonl" if path else "pydocs",
        "path": str(path) if path else None,
        "format": "auto",
        "mix": None,
        "split": "train",
        "subset": None,
        "revision": None,
        "streaming": False,
        "loss_on": "assistant",
        "packing": "none",
        "cache": False,
        "max_length": 64,
        "on_long_row": "truncate",
        "on_bad_row": "error",
        "eval_fraction": 0.1,
        "test_fraction": 0.1,
    }
    return DataConfig(**(values | changed))


def template_config(name: str = "auto", **changed: Any) -> TemplateConfig:
    """Settings of a template."""
    values = {"name": name, "path": None, "document_start": "auto", "document_end": "auto"}
    return TemplateConfig(**(values | changed))


def train_config(tokens_per_step: int, **limits: Any) -> TrainConfig:
    """Settings of ``train`` with the limits given, and no other."""
    limits = {"max_steps": None, "max_tokens": None, "epochs": None} | limits
    return TrainConfig(
        tokens_per_step=tokens_per_step,
        eval_every=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        keep_best=False,
        **limits,
    )


def rows_of(*lengths: int, learned: int = 1) -> list[Row]:
    """Rows of these lengths; the last ``learned`` tokens of each bear loss."""
    return [
        Row(f"{i:04d}", list(range(i, i + n)), [False] * (n - learned) + [True] * learned, learned)
        for i, n in enumerate(lengths)
    ]


def pairs(count: int) -> list[Conversation]:
    """Short questions with answers, all different."""
    return [conversation([("user", f"What is {i}?"), ("assistant", f"It is {i}.")]) for i in range(count)]


def split(rows: Sequence[Conversation], data: DataConfig) -> dict[str, list[Conversation]]:
    """Cut rows as the pipeline does."""
    held = HoldOut(data)
    parts: dict[str, list[Conversation]] = {"train": [], "eval": [], "test": []}
    for row in rows:
        parts[held.count(row.split_key)].append(row)
    held.check()
    return parts


def ids(rows: Sequence[Row] | Sequence[Conversation]) -> list[str]:
    """Which rows these are."""
    return [row.id for row in rows]


def write(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    """Write rows to a file, a line each; what is text is written as it stands."""
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def load(data: DataConfig) -> tuple[list[Conversation], Found]:
    """Read all rows."""
    found = Found()
    return list(read(data, found)), found


def shared(name: str) -> Path:
    """A file of the real data beside the repository; where there is none, the test is skipped."""
    root = Path(os.environ.get("SWEEPTUNE_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    path = (root / "data" if (root / "data").is_dir() else root) / name
    if not path.exists():
        pytest.skip(f"needs {path}, which is absent; SWEEPTUNE_SHARED=<folder> names another place")
    return path


CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")


def internlm2_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The real InternLM2 tokenizer as transformers reads it, without a chat template."""
    model = shared("internlm2/tokenizer.model")
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | {92538 + i: text for i, text in enumerate(CHAT_TOKENS)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(i): {"content": text, **flags} for i, text in tokens.items()},
        "additional_special_tokens": list(CHAT_TOKENS),
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "TokenizersBackend",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    tokenizer = TokenizersBackend.from_pretrained(folder)
    assert len(tokenizer) == 92544
    return tokenizer


def chat_sets() -> Iterator[tuple[str, list[Conversation]]]:
    """The real chat data, each set as conversations."""
    rows = [json.loads(line) for line in shared("gsm8k/train.jsonl").read_text().splitlines()]
    yield "gsm8k", [conversation([("user", row["question"]), ("assistant", row["answer"])]) for row in rows]
    lines = shared("crosswoz_chat/crosswoz_val_test_messages.jsonl").read_text().splitlines()
    chats = [[(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in lines]
    yield "crosswoz", [conversation(turns) for turns in chats]
    found = []
    for row in json.loads(shared("emollm_zh/conversations_zh.json").read_text()):
        turns: list[tuple[str, str]] = []
        for part in row["conversation"]:
            turns += [("system", part["system"])] if part.get("system") else []
            turns += [("user", part["input"]), ("assistant", part["output"])]
        found.append(conversation(turns))
    yield "emollm", found
    rows = json.loads(shared("emollm_zh/self_cognition_zh.json").read_text())
    yield "self", [conversation([("user", row["instruction"]), ("assistant", row["output"])]) for row in rows]


def store_of(
    folder: Path,
    rows: Sequence[Row],
    vocabulary: int = 1000,
    source: int = 0,
    meta: dict[str, Any] | None = None,
) -> TokenStore:
    """Rows on disk."""
    with StoreWriter(folder, ["rows"], vocabulary) as writer:
        for row in rows:
            writer.append("rows", row, source)
        writer.finish(meta or {})
    found = open_parts(folder)
    assert found is not None
    return found[0]["rows"]
