"""How fast the encoder is, against the `tokenizers` library alone on the texts that the template writes.

    RAYON_NUM_THREADS=1 python bench/encoder.py chats.jsonl model=smollm2_135m_q4 template=auto
    RAYON_NUM_THREADS=1 python bench/encoder.py chats.jsonl model.tokenizer=<folder> template=internlm2_chat

The first argument is a file of JSON lines with messages, or with question and answer; the others are settings as
train.py takes them. Both sides give lists
of token ids, in turn; the best round of each counts. With one thread the ratio says what rendering, cutting and masking
cost; it can pass 1, because markup that returns in every row is tokenized once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeptune.config.compose import compose
from sweeptune.data import Conversation, Encoder, load_run_tokenizer
from sweeptune.data.conversation import conversation

ROUNDS = 5
BATCH = 1024


def main(path: str, overrides: list[str]) -> None:
    config = compose(overrides)
    tokenizer = load_run_tokenizer(config.model, config.template)
    rows = [read(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    messages = [[{"role": m.role, "content": m.content} for m in row.messages] for row in rows]
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in messages]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def alone() -> int:
        batches = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        encoded = (found for batch in batches for found in backend.encode_batch_fast(batch, add_special_tokens=False))
        return sum(len(found.ids) for found in encoded)

    def ours() -> int:
        encoder = Encoder(tokenizer, config.template, config.data.loss_on)  # a new one: nothing is known yet
        return sum(len(found.row.input_ids) for found in encoder.encode(rows))

    best: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for _ in range(ROUNDS):
        for name, side in {"tokenizers alone": alone, "encoder": ours}.items():
            seconds, tokens[name] = timed(side)
            best[name] = min(best.get(name, seconds), seconds)
    print(f"{len(rows)} rows, {config.model.name}, template={config.template.name}, best of {ROUNDS} rounds")
    for name, seconds in best.items():
        print(f"{name:17s} {seconds:7.2f} s   {tokens[name]:9d} tokens   {tokens[name] / seconds:10.0f} tokens/s")
    print(f"ratio             {best['tokenizers alone'] / best['encoder']:7.2f}   (target: 0.9)")


def read(row: dict[str, Any]) -> Conversation:
    turns = row.get("messages") or [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return conversation([(turn["role"], turn["content"]) for turn in turns])


def timed(side: Callable[[], int]) -> tuple[float, int]:
    begin = time.perf_counter()
    tokens = side()
    return time.perf_counter() - begin, tokens


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(str(__doc__))
    main(sys.argv[1], sys.argv[2:])
