"""How a conversation becomes text: the model's own chat template, cut where the loss begins and ends.

For each answer the template is rendered twice: up to the generation prompt, which is what the model sees when it is
asked, and with the answer. What the second adds is what the model has to say. No template is known by name here.

Text of a dataset stays text: where a message contains, say, ``<|im_end|>``, a mark is put inside it before rendering,
and the text is later tokenized in pieces, cut at the mark, so that no piece holds a whole special token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation

MARK = "\ufdd0"  # a noncharacter: Unicode promises that it never stands in text that is exchanged


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text; ``learned`` marks what the assistant says with the token that ends its turn.

    Attributes:
        pieces: The text, cut inside whatever looks like a special token in the dataset's own text.
        learned: Whether it bears loss.
        role: Whose turn it is: an answer is the assistant's, what leads up to it is named ``prompt``.
        turn: Number of the answer it belongs to, from 0.
    """

    pieces: tuple[str, ...]
    learned: bool
    role: str = "prompt"
    turn: int = 0

    @property
    def text(self) -> str:
        """The text as the template writes it."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, up to the end of its last answer's turn.

    Attributes:
        segments: In order; together they are the template's text.
        loss_bytes: UTF-8 bytes of the text that bears loss, without special tokens.
    """

    segments: tuple[Segment, ...]
    loss_bytes: int


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the texts of tokens that are markup, such as the end of a turn; the group ``first`` is a first character.

    It looks ahead only, so that it also finds tokens that overlap.
    """
    # Llama 3's <|eot_id|>, for one, is marked as special but not among all_special_tokens.
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = sorted({text for text in [*added, *tokenizer.all_special_tokens] if len(text) > 1}, reverse=True)
    alternatives = "|".join(map(re.escape, texts))
    return re.compile(rf"(?=(?P<token>{alternatives}))(?P<first>.)" if texts else r"(?!)(?P<first>.)", re.DOTALL)


def render(item: Conversation, tokenizer: PreTrainedTokenizerBase, special: re.Pattern[str]) -> Rendered:
    """Render a conversation and cut it where the loss begins and ends.

    Args:
        item: The conversation.
        tokenizer: With a chat template.
        special: Of the same tokenizer, from `special_pattern`.

    Raises:
        ConfigError: The template refuses the turns, rewrites earlier text, or does not tell where an answer begins or
            ends.

    Example:
        >>> item = conversation([("user", "1+1?"), ("assistant", "2")])
        >>> [segment.text for segment in render(item, tokenizer, special_pattern(tokenizer)).segments][1:]
        ['2<|im_end|>', '\\n']
    """
    mark = MARK
    while any(mark in message.content for message in item.messages):
        mark += MARK
    messages = [{"role": m.role, "content": special.sub(rf"\g<first>{mark}", m.content)} for m in item.messages]
    segments: list[Segment] = []
    done = tail = ""
    loss_bytes = turn = 0
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = _apply(messages[:k], tokenizer, True), _apply(messages[: k + 1], tokenizer, False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ConfigError(_rewrites(k))
        answer = whole[len(prompt) :]
        _check_prompt(prompt, answer, messages[: k + 1], tokenizer)
        said = answer[: _end_of_turn(answer, message["content"], special)]
        segments.append(_segment(tail + prompt[len(done) :], mark, learned=False, turn=turn))
        segments.append(_segment(said, mark, learned=True, turn=turn))
        loss_bytes += len(_without_special(said, special).replace(mark, "").encode())
        done, tail = whole, answer[len(said) :]
        turn += 1
    segments.append(_segment(tail, mark, learned=False, turn=turn - 1))
    return Rendered(tuple(segments), loss_bytes)


def _segment(text: str, mark: str, *, learned: bool, turn: int) -> Segment:
    return Segment(tuple(text.split(mark)), learned, "assistant" if learned else "prompt", turn)


def _end_of_turn(answer: str, content: str, special: re.Pattern[str]) -> int:
    """Where the first special token behind the content ends."""
    said = content.strip()
    behind = answer.find(said) + len(said) if said in answer else 0
    found = special.search(answer, behind)
    if found is None:
        raise ConfigError(
            f"template=auto: the assistant's turn ends with no special token ({answer[-20:]!r}), so the model would "
            "never learn to stop; give the tokenizer a chat template that ends turns with its end-of-turn token"
        )
    return found.end("token")


def _without_special(text: str, special: re.Pattern[str]) -> str:
    kept, at = [], 0
    while found := special.search(text, at):
        kept.append(text[at : found.start()])
        at = found.end("token")
    return "".join([*kept, text[at:]])


def _apply(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"template=auto: the model's chat template refuses the turns {roles}: {error}") from error


def _check_prompt(prompt: str, answer: str, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> None:
    """A template may lead up to the answer (an empty ``<think>`` block), but not with what begins every turn."""
    if answer.lstrip().startswith(messages[-1]["content"].strip()) or prompt != _apply(messages[:-1], tokenizer, False):
        return
    raise ConfigError(
        f"template=auto: this model's chat template ignores add_generation_prompt: an answer begins with "
        f"{answer[:20]!r}, so the loss would fall on markup; give the model a template that writes one"
    )


def _rewrites(k: int) -> str:
    return (
        f"template=auto: this model's chat template changes earlier text when turn {k + 1} is added, so the "
        "assistant's tokens cannot be told apart; give the model a template that only appends"
    )
