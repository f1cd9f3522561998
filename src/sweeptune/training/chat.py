"""Talking to a run's model, before and after its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from sweeptune.config.compose import load
from sweeptune.data import load_run_tokenizer, stop_ids
from sweeptune.training.restore import load_base, load_trained

HELP = "Type a message; /before and /after choose who answers, /both asks both, /new forgets, /quit ends."


class Speakers:
    """The model of a run before and after training; loaded when first asked, one copy where adapters can be left out.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = load(folder / "config.yaml")
        self.tokenizer: PreTrainedTokenizerBase = load_run_tokenizer(self.config.model, self.config.template)
        self._after: PreTrainedModel | None = None
        self._before: PreTrainedModel | None = None

    @contextmanager
    def model(self, who: str) -> Iterator[PreTrainedModel]:
        """The model ``before`` or ``after`` training."""
        if who == "after" or self._shared():
            self._after = self._after or load_trained(self.folder).model
        if who == "after":
            yield self._after
        elif self._shared() and isinstance(self._after, PeftModel):
            with self._after.disable_adapter():
                yield self._after
        else:
            self._before = self._before or load_base(self.config)
            yield self._before

    def _shared(self) -> bool:
        # PiSSA took its start out of the base, so leaving the adapter out is not the model before training.
        return self.config.method.name not in ("full", "pissa") and self._before is None


def answer(
    speakers: Speakers,
    who: str,
    messages: list[dict[str, str]],
    max_new_tokens: int,
    streamer: TextStreamer | None = None,
) -> str:
    """Continue a conversation greedily.

    Args:
        speakers: The run's models.
        who: ``before`` or ``after``.
        messages: Roles and contents, the last one the user's.
        max_new_tokens: Longest answer.
        streamer: Shows the answer as it grows.
    """
    tokenizer = speakers.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with speakers.model(who) as model, torch.no_grad():
        ids = encoded.input_ids.to(model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=stop_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=streamer,
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def chat(folder: Path, *, prompt: str | None, before_only: bool, max_new_tokens: int) -> None:
    """Answer one prompt, before and after training, or hold a conversation on the terminal."""
    speakers = Speakers(folder)
    who = ["before"] if before_only else ["after"] if prompt is None else ["before", "after"]
    if prompt is not None:
        say(speakers, who, [{"role": "user", "content": prompt}], max_new_tokens)
        return
    print(HELP)
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        if line == "/new":
            messages = []
        elif line in ("/before", "/after", "/both"):
            who = ["before", "after"] if line == "/both" else [line[1:]]
        elif line.startswith("/"):
            print(HELP)
        elif line:
            messages.append({"role": "user", "content": line})
            text = say(speakers, who, messages, max_new_tokens)
            messages.append({"role": "assistant", "content": text})


def say(speakers: Speakers, who: list[str], messages: list[dict[str, str]], max_new_tokens: int) -> str:
    """Print the answers of those asked; return the last one."""
    text = ""
    for name in who:
        print(f"{name} training> ", end="", flush=True)
        streamer = TextStreamer(speakers.tokenizer, skip_prompt=True, skip_special_tokens=True)
        text = answer(speakers, name, messages, max_new_tokens, streamer)
    return text
