"""What the loss ledger says: its lines in the log, and its problems with the override that mends each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sweeptune.data.conversation import TEXT
from sweeptune.data.ledger_part import Part

if TYPE_CHECKING:
    from sweeptune.data.ledger import Ledger

OTHER_TEMPLATE = "template=chatml, or with your own: template=jinja template.path=<file>"


def problems(ledger: Ledger) -> list[str]:
    """What is wrong with the rows; see `Ledger.problems`."""
    parts = [ledger.parts[key] for key in sorted(ledger.parts)]
    found: list[str] = []
    unstopped = [part for part in parts if part.unstopped and part.has_turns]
    for part, others in _first(unstopped):
        found.append(
            f"{_of(part)}: {part.unstopped} of {part.answers} answers train no token that ends the turn{others}, so "
            f"the model would never learn to stop (the template leaves the end to what follows, as GLM's does). "
            f"{_shown(ledger, 'unstopped')}Train with a template that ends turns itself: {OTHER_TEMPLATE}"
        )
    for part, others in _first([part for part in parts if part.doubled_bos]):
        mend = "template.document_start=null" if part.template == TEXT else OTHER_TEMPLATE
        found.append(
            f"{_of(part)}: {part.doubled_bos} of {part.rows} rows have two begin-of-text tokens in a row{others}, "
            f"which the model has never seen. {_shown(ledger, 'doubled_bos')}Have it written once: {mend}"
        )
    # A ledger that skips has left these rows out.
    for part, others in _first([part for part in parts if part.without_loss > part.left_out]):
        whole = part.without_loss - part.left_out == part.rows
        mend = "data.loss_on=all learns everything" if whole else "data.on_bad_row=skip leaves them out"
        found.append(
            f"{_of(part)}: {part.without_loss - part.left_out} of {part.rows} rows have no token that is learned"
            f"{others} (answers that are empty or marked loss=false). {_shown(ledger, 'without_loss')}{mend}"
        )
    if parts and not any(part.rows for part in parts):
        found.append(
            f"data.on_bad_row=skip: all {sum(part.left_out for part in parts)} rows were left out, because nothing is "
            f"learned of any. {_shown(ledger, 'without_loss')}data.loss_on=all learns everything"
        )
    return found + _faults(ledger, parts)


def _faults(ledger: Ledger, parts: list[Part]) -> list[str]:
    """Rows that are not what they claim to be: no setting mends that, another template may."""
    found = []
    for part, others in _first([part for part in parts if part.first_learned]):
        found.append(
            f"{_of(part)}: in {part.first_learned} of {part.rows} rows the very first token bears loss{others}, though "
            f"nothing comes before it. {_shown(ledger, 'first_learned')}Please report this; until then {OTHER_TEMPLATE}"
        )
    for part, others in _first([part for part in parts if part.uneven]):
        found.append(
            f"{_of(part)}: in {part.uneven} of {part.rows} rows the loss mask is not what was meant to be learned"
            f"{others}. {_shown(ledger, 'uneven')}Please report this; until then {OTHER_TEMPLATE}"
        )
    if ledger.rendering and ledger.rendering.texts:
        look = ledger.rendering
        found.append(
            f"template={ledger.template}: {look.texts} of {look.rows} rows looked at are not the text that the "
            f"template writes. First: {look.first_text}. Train with another template: {OTHER_TEMPLATE}"
        )
    return found


def lines(ledger: Ledger) -> list[str]:
    """The ledger for a log; see `Ledger.lines`."""
    found: list[str] = []
    for part in (ledger.parts[key] for key in sorted(ledger.parts)):
        found.append(f"loss ledger, {summary(ledger, part)}")
        if part.rows:
            found.append(f"  loss by role: {', '.join(f'{role} {share}' for role, share in by_role(part).items())}")
            turns = by_turn(part)
            if len(turns) > 1:
                found.append(f"  loss by answer: {', '.join(f'{turn}: {share}' for turn, share in turns.items())}")
        found += [f"  {line}" for line in ends(part)]
    return found + [f"  {line}" for line in costs(ledger)]


def summary(ledger: Ledger, part: Part) -> str:
    """One line on a dataset under a template; the dataset is named where there are several."""
    several = len({source for source, _ in ledger.parts}) > 1
    name = f"dataset {part.source + 1}, " * several + _of(part)
    if not part.rows:
        return f"{name}: no row is left"
    share = percent(part.loss_tokens, part.tokens)
    return f"{name}: {part.rows:,} rows, {part.tokens:,} tokens, {share} with loss; longest row {part.longest:,}"


def ends(part: Part) -> list[str]:
    """How answers begin and end, and what was left out."""
    found = []
    if part.rows:
        found.append(f"{stops(part)}; {begins(part)}")
    if part.inside:
        found.append(f"learned in front of the stop: {_listed(part.inside)}")
    if part.left_out:
        found.append(f"{part.left_out:,} rows left out: nothing of them is learned (data.on_bad_row=skip)")
    return found


def costs(ledger: Ledger) -> list[str]:
    """What making rows fit cost, and how they compare with the template's own text."""
    found = []
    for kind, counts in sorted(ledger.cuts.items()):
        if counts["rows"]:
            found.append(f"{counts['rows']:,} rows {kind}: {_cost(kind, counts)}")
    look = ledger.rendering
    if look and look.rows:
        merged = f", {look.merges} the same in other tokens ({look.first_merge})" if look.merges else ""
        found.append(f"the template's own text: {look.equal} of {look.rows} rows equal{merged}")
    return found


def _cost(kind: str, counts: dict[str, int]) -> str:
    """What cutting cost; a piece that begins inside a row keeps its first token and only loses the loss on it."""
    tokens, learned = counts["tokens"], counts["loss_tokens"]
    if kind == "split" and learned:
        return f"{tokens:,} tokens lost, {learned:,} no longer with loss, as the first of a piece"
    return f"{tokens:,} tokens lost, {learned:,} of them with loss" if tokens else "no token lost"


def by_role(part: Part) -> dict[str, str]:
    """Share of all loss tokens that each role has, and how much of the role's tokens that is."""
    found = {}
    for role, turns in sorted(part.roles.items()):
        tokens, learned = (sum(cell[i] for cell in turns.values()) for i in (0, 1))
        share = f"{percent(learned, part.loss_tokens)} ({percent(learned, tokens)} of its tokens)"
        found[role] = share if learned else "none"
    return found


def by_turn(part: Part) -> dict[str, str]:
    """Share of all loss tokens that each answer has, with what leads up to it, by number."""
    shares: dict[str, int] = {}
    for turns in part.roles.values():
        for turn, (_, learned) in turns.items():
            shares[turn] = shares.get(turn, 0) + learned
    return {turn: percent(learned, part.loss_tokens) for turn, learned in sorted(shares.items())}


def stops(part: Part) -> str:
    """Which stop tokens are trained, in how many answers."""
    if part.template == TEXT:
        return f"ends of documents: {_listed(part.stops)}" if part.stops else "no token ends a document"
    if not part.has_turns:
        count = f"{sum(part.stops.values()):,} of {part.rows:,}"
        return f"{count} documents train the token that ends them{': ' * bool(part.stops)}{_listed(part.stops)}"
    if not part.stops:
        return f"no stop token is trained in {part.answers:,} answers"
    return f"stop trained in {sum(part.stops.values()):,} of {part.answers:,} answers: {_listed(part.stops)}"


def begins(part: Part) -> str:
    """Begin-of-text tokens, and answers that do not begin with plain text."""
    found = f"begin-of-text: {_listed(part.bos)}" if part.bos else "no begin-of-text"
    if sum(part.bos.values()) > part.rows:
        found += " (this token also begins turns)"
    if part.template == TEXT:
        return found  # windows begin anywhere
    names = {"space": "white space", "special": "a special token"}
    opened = "".join(f", {count:,} answers begin with {names[kind]}" for kind, count in sorted(part.opened.items()))
    return found + opened


def percent(part: int, whole: int) -> str:
    """``41 %``; what is not quite nothing or all is not called so."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    return f"{share:.0f} %" if part in (0, whole) or 1 <= share < 99 else f"{share:.2g} %" if share < 1 else "99 %"


def _listed(counts: Mapping[str, int]) -> str:
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(top) - 4} others" if len(top) > 4 else ""
    return ", ".join(f"{text!r} {count:,}" for text, count in top[:4]) + more


def _first(parts: list[Part]) -> list[tuple[Part, str]]:
    """The first part, and words on the others: one sentence a problem, however many datasets have it."""
    if not parts:
        return []
    others = f" ({len(parts) - 1} more datasets have them too)" if len(parts) > 1 else ""
    return [(parts[0], others)]


def _of(part: Part) -> str:
    return "raw text" if part.template == TEXT else f"template={part.template}"


def _shown(ledger: Ledger, kind: str) -> str:
    return f"First: {ledger.examples[kind]}. " if kind in ledger.examples else ""
