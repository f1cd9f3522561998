"""Whose text is whose: a rendered conversation, cut into turns. No template is known by name here.

For each answer the template is rendered twice: up to the generation prompt, which is what the model sees when it is
asked, and with the answer. What the second adds is what the model has to say, up to the token that ends the turn.
The whole conversation is rendered once, too, and it is what is learned: each answer must stand in it behind the very
text that asks for it. So a template that writes a turn differently once others follow is usable where what it says is
still told apart (Qwen3 puts an empty ``<think>`` block before the last answer only), and refused where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.data.render import Renderer, Special

SENTINEL = "Qq{}qQ"  # letters and digits, which no template takes apart
Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn's text, in three parts.

    Attributes:
        role: Whose it is; ``prompt`` where several turns that lead to an answer are not told apart.
        head: Markup before what is said.
        body: What is said, with what ends the turn; it is tokenized by itself where it is learned.
        tail: What follows the end of the turn.
        message: Number of the message; None for text that no message wrote.
        stops: Special tokens at the body's end that end the turn: 1, or 0 where a turn of others has none.
    """

    role: str
    head: str
    body: str
    tail: str
    message: int | None
    stops: int


@dataclass(frozen=True)
class Cutter:
    """Cuts conversations under one template into turns.

    Attributes:
        renderer: The template.
        special: Of the same tokenizer.
        preamble: What the template writes of its own before a first user's turn, such as a default system prompt.
        stop: What ends an answer; empty where nothing does.
    """

    renderer: Renderer
    special: Special
    preamble: str
    stop: str

    def cut(
        self, messages: Messages, learned: Sequence[bool], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Turn]:
        """Cut a conversation into turns, whose texts together are the template's.

        Args:
            messages: As the template reads them; to be cut before what no loss depends on.
            learned: Whether each is learned.
            tools: What the assistant may call.

        Raises:
            ConfigError: The template refuses the turns, rewrites what is learned, or does not tell where an answer
                begins or ends.
        """
        full = self._whole(messages, tools)
        turns: list[Turn] = []
        at = start = 0
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                begin, end = self._answer(messages, k, full, tools)
            except ConfigError:
                if learned[k]:
                    raise
                continue  # it is context only, so it need not be told apart
            turns += self._between(full, (at, begin), messages, (start, k), learned, tools)
            head = turns.pop().head if turns and turns[-1].message == k else ""
            turns.append(Turn("assistant", head, full[begin:end], "", k, 1))
            at, start = end, k + 1
        return turns + self._between(full, (at, len(full)), messages, (start, len(messages)), learned, tools)

    def _whole(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None) -> str:
        try:
            return self.renderer.text(messages, False, tools)
        except ConfigError:
            # The shortest beginning that is refused says more.
            for k, message in enumerate(messages):
                if message["role"] == "assistant":
                    self.renderer.text(messages[:k], True, tools)
                    self.renderer.text(messages[: k + 1], False, tools)
            raise

    def _answer(
        self, messages: Messages, k: int, full: str, tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[int, int]:
        """Where answer ``k`` begins in the whole text, and where the token that ends its turn does."""
        prompt = self.renderer.text(messages[:k], True, tools)
        whole = full if k + 1 == len(messages) else self.renderer.text(messages[: k + 1], False, tools)
        if not full.startswith(prompt) or not whole.startswith(prompt):
            raise ConfigError(self._rewrites(k))
        answer, begin = whole[len(prompt) :], len(prompt)
        self._check_prompt(prompt, answer, messages[: k + 1], tools)
        end = self._end_of_turn(answer, messages[k])
        if full.startswith(answer[:end], begin):
            return begin, begin + end
        content, rest = messages[k]["content"].strip(), full[begin:]
        if not content or not rest.lstrip().startswith(content):
            raise ConfigError(self._rewrites(k))
        return begin, begin + self._end_of_turn(rest, messages[k])

    def _end_of_turn(self, answer: str, message: dict[str, Any]) -> int:
        said = message["content"].strip()
        behind = answer.find(said) + len(said) if said in answer else 0
        if len(message) > 2 and self.stop and answer.rfind(self.stop) >= behind:
            behind = answer.rfind(self.stop)  # calls of tools may be written with special tokens of their own
        end = self.special.end(answer, behind)
        if end is None:
            raise ConfigError(
                f"template={self.renderer.name}: the assistant's turn ends with no special token ({answer[-20:]!r}), "
                "so the model would never learn to stop; choose a template that ends turns with an end-of-turn token "
                "of this tokenizer: template=chatml, llama3 or alpaca, or template=jinja template.path=<file>"
            )
        return end

    def _check_prompt(
        self, prompt: str, answer: str, messages: Messages, tools: Sequence[Mapping[str, Any]] | None
    ) -> None:
        """A template may lead up to an answer (an empty ``<think>`` block), but not with what begins every turn."""
        if answer.lstrip().startswith(messages[-1]["content"].strip()):
            return
        if prompt == self.renderer.text(messages[:-1], False, tools):
            raise ConfigError(
                f"template={self.renderer.name}: this chat template ignores add_generation_prompt: an answer begins "
                f"with {answer[:20]!r}, so the loss would fall on markup; give the model a template that writes one, "
                "for example template=jinja template.path=<file>"
            )

    def _rewrites(self, k: int) -> str:
        return (
            f"template={self.renderer.name}: this chat template changes earlier text when turn {k + 1} is added (it "
            "may leave out the reasoning of earlier answers), so that what the model would learn is not what it sees "
            "when it is asked; learn the last answers only (data.loss_on=last), or give the model a template that only "
            "appends, such as template=chatml"
        )

    def _between(
        self,
        full: str,
        place: tuple[int, int],
        messages: Messages,
        numbers: tuple[int, int],
        learned: Sequence[bool],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[Turn]:
        """What stands between two answers: the tail of the one before, the turns of messages ``numbers``, and the head
        of the one behind; tail and head are turns that have nothing else."""
        (at, to), (first, last) = place, numbers
        answered = last < len(messages)
        begin = end = self._tail(full, messages[:first], place, tools) if answered or first < last else to
        turns = [Turn("assistant", "", "", full[at:begin], first - 1, 0)] if begin > at else []
        if first < last:
            ends = [self._bound(full, messages[:j], place, tools) for j in range(first + 1, last + answered)]
            points = [begin, *ends] if answered else [begin, *ends, to]
            known = [point for point in points if point is not None]
            end = to if points[-1] is None else points[-1]
            parts = [full[a:b] for a, b in pairwise(known)]
            told = len(known) == len(points) and known == sorted(known)
            if told and all(m["content"].strip() in part for m, part in zip(messages[first:], parts, strict=False)):
                for j, part in enumerate(parts, first):
                    turns += self._turn(part, messages, j, learned[j], tools)
            elif end > begin:
                turns.append(Turn("prompt", full[begin:end], "", "", None, 0))
        return [*turns, Turn("assistant", full[end:to], "", "", last, 0)] if answered else turns

    def _tail(
        self, full: str, messages: Messages, place: tuple[int, int], tools: Sequence[Mapping[str, Any]] | None
    ) -> int:
        """Where the text of answered messages ends: told by the template, else behind the white space."""
        bound = self._bound(full, messages, place, tools)
        if bound is not None:
            return bound
        rest = full[place[0] : place[1]]
        return place[0] + len(rest) - len(rest.lstrip())

    def _bound(
        self, full: str, messages: Messages, place: tuple[int, int], tools: Sequence[Mapping[str, Any]] | None
    ) -> int | None:
        """Where the text of some first messages ends; None where the template does not tell."""
        if not messages:
            return 0
        try:
            text = self.renderer.text(messages, False, tools)
        except ConfigError:
            return None
        return len(text) if full.startswith(text) and place[0] <= len(text) <= place[1] else None

    def _turn(
        self, text: str, messages: Messages, j: int, learned: bool, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[Turn]:
        """The turn of another role than the assistant's; what the template puts before the first is a system's."""
        role, turns = messages[j]["role"], []
        if j == 0 and role != "system" and self.preamble and text.startswith(self.preamble):
            turns, text = [Turn("system", self.preamble, "", "", None, 0)], text[len(self.preamble) :]
        begin = self._said_at(text, messages, j, tools) if learned else None
        if begin is None:
            return [*turns, Turn(role, text, "", "", j, 0)]
        found = self.special.end(text, begin + len(messages[j]["content"].strip()))
        end = len(text) if found is None else found
        return [*turns, Turn(role, text[:begin], text[begin:end], text[end:], j, int(found is not None))]

    def _said_at(self, text: str, messages: Messages, j: int, tools: Sequence[Mapping[str, Any]] | None) -> int | None:
        """Where the content begins in a turn's text: behind what stands before another content in its place."""
        content, other = messages[j]["content"].strip(), SENTINEL.format("x")
        if text.count(content) == 1:
            return text.find(content)
        whole = self.renderer.text([*messages[:j], messages[j] | {"content": other}], False, tools)
        head = whole[: whole.rfind(other)]
        begin = next((i for i in range(len(head)) if text.startswith(head[i:])), len(head))
        size = len(head) - begin
        return size if text[size:].lstrip().startswith(content) else None


def cutter(renderer: Renderer, special: Special) -> Cutter:
    """Ask a template what it writes of its own, with questions that no dataset holds."""
    a, b, c = (SENTINEL.format(i) for i in range(3))
    messages = [{"role": "user", "content": a}, {"role": "assistant", "content": b}, {"role": "user", "content": c}]
    return Cutter(renderer, special, _preamble(renderer, special, messages), turn_end(renderer, special))


def _preamble(renderer: Renderer, special: Special, messages: Messages) -> str:
    """What stands before the first user's turn and not before a later one; empty where that is special tokens only."""
    try:
        first, second, third = (renderer.text(messages[:n], False) for n in (1, 2, 3))
    except ConfigError:
        return ""
    a, b, c = (message["content"] for message in messages)
    behind = third.find(b) + len(b)
    if third.startswith(second):
        behind = len(second)
    else:
        behind = special.end(third, behind) or behind
        behind += len(third[behind:]) - len(third[behind:].lstrip())
    before, later = first[: first.find(a)], third[behind : third.find(c)]
    preamble = before.removesuffix(later) if later else ""
    return preamble if preamble != before and special.without(preamble).strip() else ""


def turn_end(renderer: Renderer, special: Special) -> str:
    """The special token that ends an answer; empty where the template fails or there is none."""
    question, answer = SENTINEL.format(0), SENTINEL.format(1)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        text = renderer.text(messages, False)
    except ConfigError:
        return ""
    found = special.pattern.search(text, max(text.find(answer), 0))
    return found["token"] if found else ""
