"""How fast the encoder is, against the `tokenizers` library alone on the texts that the template writes.

    RAYON_NUM_THREADS=1 python bench/encoder.py chats.jsonl model=smollm2_135m_q4 template=auto
    RAYON_NUM_THREADS=1 python bench/encoder.py chats.jsonl model.tokenizer=<folder> template=internlm2_chat

The first argument is a file of JSON lines with messages, or with question and answer; the others are settings as
train.py takes them. Both sides give lists of token ids, batch by batch in turn; of each batch the best round counts.
With one thread the ratio says what rendering, cutting and masking cost; it can pass 1, because markup that returns in
every row is tokenized once. On a busy machine the CPU seconds are the ones to trust.
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

    def alone(begin: int) -> int:
        encoded = backend.encode_batch_fast(texts[begin : begin + BATCH], add_special_tokens=False)
        return sum(len(found.ids) for found in encoded)

    best: dict[tuple[str, int], tuple[float, float]] = {}
    tokens: dict[tuple[str, int], int] = {}
    for _ in range(ROUNDS):
        encoder = Encoder(tokenizer, config.template, config.data.loss_on)  # a new one: nothing is known yet

        def ours(begin: int, encoder: Encoder = encoder) -> int:
            return sum(len(found.row.input_ids) for found in encoder.encode(rows[begin : begin + BATCH]))

        for begin in range(0, len(rows), BATCH):
            for name, side in {"tokenizers alone": alone, "encoder": ours}.items():
                at = (name, begin)
                forget(backend.model)
                seconds, tokens[at] = timed(lambda side=side, begin=begin: side(begin))
                best[at] = min(best.get(at, seconds), seconds, key=lambda pair: pair[1])
    print(f"{len(rows)} rows, {config.model.name}, template={config.template.name}, best of {ROUNDS} rounds")
    sums = {name: [sum(best[at][i] for at in best if at[0] == name) for i in (0, 1)] for name, _ in best}
    for name, (wall, cpu) in sums.items():
        count = sum(tokens[at] for at in tokens if at[0] == name)
        print(f"{name:17s} {wall:7.2f} s   CPU {cpu:7.2f} s   {count:9d} tokens   {count / wall:10.0f} tokens/s")
    ratios = [sums["tokenizers alone"][i] / sums["encoder"][i] for i in (0, 1)]
    print(f"ratio             {ratios[0]:7.2f}     CPU {ratios[1]:7.2f}   (target: 0.9)")


def read(row: dict[str, Any]) -> Conversation:
    turns = row.get("messages") or [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return conversation([(turn["role"], turn["content"]) for turn in turns])


def forget(model: Any) -> None:
    """Empty the library's memory of words, so that neither side lives on what the other, or the last round, has met."""
    clear = getattr(model, "_clear_cache", None)
    if clear is not None:
        clear()


def timed(side: Callable[[], int]) -> tuple[tuple[float, float], int]:
    """Wall and CPU seconds (all threads), and what was counted."""
    begin = time.perf_counter(), time.process_time()
    tokens = side()
    return (time.perf_counter() - begin[0], time.process_time() - begin[1]), tokens


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(str(__doc__))
    main(sys.argv[1], sys.argv[2:])
