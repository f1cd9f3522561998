"""Whether rows say what the template says: their ids against the template's own text, tokenized in one pass.

Rows are tokenized stretch by stretch, so that no token crosses the mask's edge. At such an edge one pass may merge what
is kept apart here; that is reported. Another text is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeptune.data.conversation import TEXT, Conversation
from sweeptune.data.excerpt import cut_to_pieces, escape
from sweeptune.data.render import plain, rendered
from sweeptune.data.tokenize import Encoder

SAMPLE = 64
"""Conversations that say whether a template is rendered as it should be."""
AROUND = 3
"""Tokens shown on each side of the first difference."""


@dataclass(frozen=True)
class Rendering:
    """What a sample of rows showed.

    Attributes:
        rows: Conversations looked at; raw text has no template.
        equal: How many have the ids that one pass over the template's text gives.
        merges: How many say the same with other tokens.
        texts: How many say something else.
        first_merge: The first difference of tokens, as text; empty where there is none.
        first_text: The first difference of text.
    """

    rows: int = 0
    equal: int = 0
    merges: int = 0
    texts: int = 0
    first_merge: str = ""
    first_text: str = ""


def check_rendering(encoder: Encoder, conversations: Iterable[Conversation]) -> Rendering:
    """Compare rows with one-pass tokenization of the template's own text.

    Args:
        encoder: What makes the rows.
        conversations: A sample; a few dozen rows say what all will.

    Raises:
        ConfigError: The template refuses a conversation.

    Example:
        >>> check_rendering(encoder, conversations[:64]).equal
        64
    """
    items = [item for item in conversations if item.messages[0].role != TEXT]
    counts = {"equal": 0, "merges": 0, "texts": 0}
    first = {"merges": "", "texts": ""}
    for item, found in zip(items, encoder.encode(items), strict=True):
        ours = found.row.input_ids
        own: list[int] = encoder.tokenizer(template_text(encoder, item), add_special_tokens=False)["input_ids"]
        kind = "equal" if ours == own else "merges" if _decode(encoder, ours) == _decode(encoder, own) else "texts"
        counts[kind] += 1
        if kind != "equal" and not first[kind]:
            # A merge is no fault, so it is kept with the rows, for others whose files lie elsewhere.
            place = item.place if kind == "texts" else ""
            first[kind] = f"{escape(place or f'row {item.id}')}: {_difference(encoder, ours, own)}"
    return Rendering(len(items), **counts, first_merge=first["merges"], first_text=first["texts"])


def template_text(encoder: Encoder, item: Conversation) -> str:
    """What the template makes, in one piece, of the turns of a conversation that the encoder keeps."""
    return rendered(encoder.tokenizer, [plain(message) for message in encoder.turns(item)], item.tools)


def _decode(encoder: Encoder, ids: Sequence[int]) -> str:
    return str(encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _difference(encoder: Encoder, ours: Sequence[int], own: Sequence[int]) -> str:
    """The tokens around the first difference, with a bar where they meet."""
    at = next((i for i, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b), min(len(ours), len(own)))
    begin = max(0, at - AROUND)
    shown = [
        "|".join(escape(piece.text) for piece in cut_to_pieces(encoder.tokenizer, ids[begin : at + AROUND + 1]))
        for ids in (ours, own)
    ]
    return f"at token {at} the row has {shown[0]!r}, one pass gives {shown[1]!r}".replace("\\\\", "\\")
