"""A chat template at work: messages to text, compiled once, and the marks that keep a dataset's own text apart.

Text of a dataset stays text: where a message contains, say, ``<|im_end|>``, a mark is put inside it before rendering,
and the text is later tokenized in pieces, cut at the mark, so that no piece holds a whole special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation, Message
from sweeptune.data.verbatim import verbatim

TRAINING_DAY = datetime(2024, 7, 26)
"""What "today" is for a template that asks (``strftime_now``): the same rows on every day, fresh or from the cache, so
that runs can be compared. It is the date that Llama 3.1's own template writes where it cannot ask."""
MARK = "\ufdd0"  # a noncharacter: Unicode promises that it never stands in text that is exchanged


class Special:
    """The texts of a tokenizer's special tokens: markup, such as the end of a turn.

    Attributes:
        texts: All of them that are longer than a character.
        swallowing: Those that take the white space behind them into themselves.
        pattern: Finds one; the groups are ``token`` and its first character, ``first``. It looks ahead only, so that
            it also finds tokens that overlap.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Llama 3's <|eot_id|>, for one, is marked as special but not among all_special_tokens.
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.swallowing = frozenset(token.content for token in added if token.rstrip)
        texts = {text for text in [*(token.content for token in added), *tokenizer.all_special_tokens] if len(text) > 1}
        self.texts = frozenset(texts)
        self.pattern = special_pattern(texts)
        self._beginnings = sorted({text[: 1 if text[0] in "<[" else 2] for text in texts})
        self._any = re.compile("|".join(map(re.escape, sorted(texts))) or r"(?!)")

    def inside(self, text: str) -> bool:
        """Whether the text holds one; quick where it does not, as with nearly every text of a dataset."""
        for beginning in self._beginnings:  # a plain loop: this is asked of every text there is
            if beginning in text:
                return self._any.search(text) is not None
        return False

    def without(self, text: str) -> str:
        """The text without its special tokens."""
        kept, at = [], 0
        while found := self.pattern.search(text, at):
            kept.append(text[at : found.start()])
            at = found.end("token")
        return "".join([*kept, text[at:]])

    def end(self, text: str, at: int) -> int | None:
        """Where the first special token from ``at`` on ends, with the white space that it swallows."""
        found = self.pattern.search(text, at)
        if found is None:
            return None
        end = found.end("token")
        if found["token"] in self.swallowing:
            end += len(text[end:]) - len(text[end:].lstrip())
        return end


def special_pattern(texts: Sequence[str] | set[str]) -> re.Pattern[str]:
    """Finds any of the texts, the longest first, by looking ahead."""
    alternatives = "|".join(map(re.escape, sorted(texts, reverse=True)))
    return re.compile(rf"(?=(?P<token>{alternatives}))(?P<first>.)" if alternatives else r"(?!)(?P<first>.)", re.DOTALL)


class Renderer:
    """A tokenizer's chat template, compiled once.

    Args:
        tokenizer: Whose special tokens the template may write.
        name: The option's name, for messages.
        chat_template: Another template than the tokenizer's.

    Attributes:
        calls: How many texts have been rendered: what the encoder saves on.
        verbatim: Whether contents of plain messages are proved to be written as they are, whatever they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.template = chat_template or tokenizer.chat_template
        self.calls = 0
        self._tokens = dict(tokenizer.special_tokens_map)
        self._compiled = _compile(self.template, self._tokens)
        self.verbatim = self._compiled is not None and verbatim(self.template)

    def text(
        self, messages: list[dict[str, Any]], prompt: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Render messages; with ``prompt``, up to where the assistant is asked to speak.

        Raises:
            ConfigError: The template refuses them.
        """
        self.calls += 1
        try:
            if self._compiled and not tools and all(len(message) == 2 for message in messages):
                found = self._compiled(messages, prompt)
            else:
                found = rendered(self.tokenizer, messages, tools, self.template, add_generation_prompt=prompt)
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(f"template={self.name}: {self._refusal(messages, tools)}: {error}") from error
        return str(found)

    def _refusal(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        roles = ", ".join(message["role"] for message in messages)
        return f"this chat template refuses the turns {roles}{' with tools' if tools else ''}"


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    template: Any = None,
    **options: Any,
) -> str:
    """What ``apply_chat_template`` gives on `TRAINING_DAY`.

    Args:
        tokenizer: Whose special tokens the template may write.
        messages: As templates read them.
        tools: What the assistant may call.
        template: Another template than the tokenizer's; of texts by name, the tokenizer's own choice is taken.
        options: Of ``apply_chat_template``.
    """
    given: dict[str, Any] = {
        "tools": [dict(tool) for tool in tools] if tools else None,
        "chat_template": template if isinstance(template, str) else None,
    }
    with _on_training_day(tokenizer.get_chat_template(**given)):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **given, **options))


@contextmanager
def _on_training_day(template: str) -> Iterator[None]:
    """Let a template see `TRAINING_DAY`. transformers takes no function from its callers, but keeps what it compiled,
    and what that knows can be changed; it is put back, because chat is to see the real day."""
    if "strftime_now" not in template:
        yield
        return
    from transformers.utils.chat_template_utils import _compile_jinja_template

    known = _compile_jinja_template(template).globals
    real = known["strftime_now"]
    known["strftime_now"] = TRAINING_DAY.strftime
    try:
        yield
    finally:
        known["strftime_now"] = real


def _compile(template: Any, tokens: dict[str, Any]) -> Callable[[list[dict[str, Any]], bool], str] | None:
    """What apply_chat_template does with plain messages, without its copies and look-ups; None where it is asked.

    The template is compiled by transformers, in its sandbox.
    """
    if not isinstance(template, str):
        return None
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        compiled = _compile_jinja_template(template)
    except (ImportError, TemplateError):  # a template that is no jinja fails again, with words, when it is rendered
        return None
    known = {**compiled.globals, "strftime_now": TRAINING_DAY.strftime, "tools": None, "documents": None, **tokens}

    def render(messages: list[dict[str, Any]], prompt: bool) -> str:
        # With `shared`, jinja takes the names as they are instead of looking its own up again for every text.
        context = compiled.new_context({**known, "messages": messages, "add_generation_prompt": prompt}, shared=True)
        return "".join(compiled.root_render_func(context))

    return render


def unwritten(
    renderer: Renderer | None, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[str]:
    """Which of ``tools`` and ``tool_calls`` a conversation has that change nothing of its text; without a template, all
    that it has."""
    bare = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
    without: dict[str, tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]] = {}
    without |= {"tools": (messages, None)} if tools else {}
    without |= {"tool_calls": (bare, tools)} if bare != messages else {}
    if renderer is None or not without:
        return list(without)
    whole = renderer.text(messages, False, tools)
    lost = []
    for name, (others, offered) in without.items():
        try:
            lost += [name] if renderer.text(others, False, offered) == whole else []
        except ConfigError:
            continue  # refused without them, so they are read
    return lost


def mark_for(item: Conversation) -> str:
    """A mark that stands nowhere in a conversation."""
    extras = [json.dumps([m.extra for m in item.messages if m.extra] + [item.tools], ensure_ascii=False)]
    texts = [m.content for m in item.messages] + extras
    mark = MARK
    while any(mark in text for text in texts):
        mark += MARK
    return mark


def marked(value: Any, special: Special, mark: str) -> Any:
    """A JSON value with the mark inside everything that looks like a special token."""
    if isinstance(value, str):
        return special.pattern.sub(rf"\g<first>{mark}", value) if special.inside(value) else value
    if isinstance(value, Mapping):
        return {key: marked(inner, special, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [marked(inner, special, mark) for inner in value]
    return value


def plain(message: Message) -> dict[str, Any]:
    """A message as chat templates read it."""
    return {"role": message.role, "content": message.content, **(message.extra or {})}
