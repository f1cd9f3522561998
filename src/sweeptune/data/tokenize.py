"""From a conversation to token ids and the mask of what is learned.

The model's own chat template renders it, segment by segment, so that no token crosses the mask's edge. Loss is on what
the assistant says and on the token that ends its turn; what the template puts after that token is never learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation

BATCH = 512


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized example.

    Attributes:
        id: The conversation's hash.
        input_ids: Token ids.
        loss_mask: Whether token i is predicted with loss; the first never is.
        loss_bytes: UTF-8 bytes of the text that bears loss; special tokens count none.
    """

    id: str
    input_ids: list[int]
    loss_mask: list[bool]
    loss_bytes: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that bear loss."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text; ``answer`` marks the assistant's content with what follows it in its turn."""

    text: str
    answer: bool


def tokenize(conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase) -> Iterable[Row]:
    """Tokenize conversations, in order.

    Args:
        conversations: What to tokenize.
        tokenizer: With a chat template.

    Raises:
        ConfigError: The template is missing, fails, or does not end the assistant's turn with a special token.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "template=auto: this model's tokenizer has no chat template; fine-tune an instruct model, or one whose "
            "folder holds a chat_template.jinja"
        )
    batch: list[Conversation] = []
    for item in conversations:
        batch.append(item)
        if len(batch) == BATCH:
            yield from _tokenize_batch(batch, tokenizer)
            batch = []
    if batch:
        yield from _tokenize_batch(batch, tokenizer)


def segments(item: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Render a conversation and cut it where the assistant begins and ends.

    Raises:
        ConfigError: The template does not render a conversation as an extension of its beginning.
    """
    messages = [{"role": message.role, "content": message.content} for message in item.messages]
    found: list[Segment] = []
    done = ""
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(messages[:k], tokenizer, add_generation_prompt=True)
        whole = _render(messages[: k + 1], tokenizer, add_generation_prompt=False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ConfigError(
                f"template=auto: this model's chat template changes earlier text when turn {k + 1} is added, so the "
                "assistant's tokens cannot be told apart; give the model a template that only appends"
            )
        found += [Segment(prompt[len(done) :], False), Segment(whole[len(prompt) :], True)]
        done = whole
    return found


def _render(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"template=auto: the model's chat template refuses the turns {roles}: {error}") from error


def _tokenize_batch(batch: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> Iterable[Row]:
    cut = [segments(item, tokenizer) for item in batch]
    encoded = iter(tokenizer([s.text for item in cut for s in item], add_special_tokens=False)["input_ids"])
    special = set(tokenizer.all_special_ids)
    for item, parts in zip(batch, cut, strict=True):
        ids: list[int] = []
        mask: list[bool] = []
        for part in parts:
            tokens = next(encoded)
            ids += tokens
            mask += [True] * _learned(tokens, special, part.text) if part.answer else []
            mask += [False] * (len(ids) - len(mask))
        mask[0] = False
        size = sum(len(m.content.encode()) for m in item.messages if m.role == "assistant")
        yield Row(item.id, ids, mask, size)


def _learned(tokens: list[int], special: set[int], text: str) -> int:
    """How many tokens of an answer are learned: all up to the last special one, which ends the turn."""
    for count in range(len(tokens), 0, -1):
        if tokens[count - 1] in special:
            return count
    raise ConfigError(
        f"template=auto: the assistant's turn ends with no special token ({text[-20:]!r}), so the model would never "
        "learn to stop; give the tokenizer a chat template that ends turns with its end-of-turn token"
    )
