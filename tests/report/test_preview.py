"""A preview shows every token of a row with its owner, and what a dataset says never as markup or control codes."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.data import Ledger
from sweeptune.data.conversation import TEXT, Message, conversation
from sweeptune.data.ledger import LedgerError
from sweeptune.data.tokenize import Encoded, Encoder, Row, Span
from sweeptune.models.tiny import tiny_tokenizer
from sweeptune.report.preview import MOST, Preview, parse_split, preview, show_row
from sweeptune.report.preview_html import to_html, write_html
from sweeptune.report.preview_text import render
from tests.data.helpers import data_config, template_config

NASTY = "<script>alert('&')</script> \x1b[31m \u202e \"' 世界 🙂 <|im_end|> [bold]x[/bold]\nend"


def shown(*pairs: tuple[str, str], limit: int | None = None, place: str = "", **data: Any) -> Preview:
    """The preview of one conversation."""
    tokenizer = tiny_tokenizer()
    item = conversation(pairs or [("user", "1+1?"), ("assistant", "2")], place=place)
    [found] = Encoder(tokenizer, template_config(), "assistant").encode([item])
    ledger = Ledger(tokenizer)
    ledger.add(found)
    row = show_row(found, tokenizer, limit, data_config(**({"max_length": limit or 1000} | data)))
    return Preview("model tiny", "train", ledger, (row,))


def printed(seen: Preview, colour: str | None = None, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=colour, force_terminal=colour is not None)  # type: ignore[arg-type]
    render(seen, console)
    return out.getvalue()


PLAIN = "html head meta title style body h1 h2 ul li div p span table thead tbody tr th td section"


class Page(HTMLParser):
    """Collects tags, attributes and the text of tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.tokens: list[tuple[str, str]] = []
        self.kinds: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        values = dict(attrs)
        self.kinds = values.get("class") if tag == "span" and "data-t" in values else None

    def handle_endtag(self, tag: str) -> None:
        self.kinds = None

    def handle_data(self, data: str) -> None:
        if self.kinds is not None:
            self.tokens.append((self.kinds, data))


def test_without_colour_bars_and_brackets_tell_what_colour_would() -> None:
    text = printed(shown(place="rows.jsonl:3"))
    assert "train row 1, rows.jsonl:3: 26 tokens, 2 with loss (8 %)" in text
    assert "user 1: <|im_start|>|u|s|e|r|↵\n|1|+|1|?|<|im_end|>|↵\n" in text
    assert "assistant 1: <|im_start|>|a|s|s|i|s|t|a|n|t|↵\n[loss]2|<|im_end|>[/loss]↵\n" in text
    assert "\x1b" not in text
    assert re.search(r"auto +assistant +14 +2 +100 %", text)
    assert "stop trained in 1 of 1 answers: '<|im_end|>' 1" in text


def test_with_colour_the_loss_is_on_green_and_no_bar_is_needed() -> None:
    text = printed(shown(), "truecolor")
    assert re.search(r"\x1b\[30;48;2;(165;232;165|130;212;130)m2\x1b\[0m", text), "the answer, black on green"
    assert re.search(r"\x1b\[1;97;48;2;(22;98;39|30;125;50)m<\|im_end\|>\x1b\[0m", text), "its end, on dark green"
    assert "|u|s|" not in text


def test_what_a_dataset_says_is_never_obeyed() -> None:
    seen = shown(("user", NASTY), ("assistant", NASTY), place="\x1b]0;x\x07.jsonl:1")
    text = printed(seen)
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
    joined = text.replace("|", "")
    assert r"\x1b[31m \u202e" in joined and "[bold]x[/bold]↵\nend" in joined
    assert r"\x1b]0;x\x07.jsonl:1" in text


def test_the_page_holds_no_script_and_asks_nobody() -> None:
    text = to_html(shown(("user", NASTY), ("assistant", NASTY), place="<img src=x>"))
    page = Page(text)
    assert page.tags == set(PLAIN.split())
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text and "url(" not in text
    assert ("name", "viewport") in page.attributes and "prefers-color-scheme: dark" in text
    assert not [char for char in text if not char.isprintable() and char != "\n"]


def test_the_page_shows_every_token_with_its_id() -> None:
    page = Page(to_html(shown(("user", NASTY), ("assistant", "yes <b>"))))
    labels = [value for name, value in page.attributes if name == "data-t"]
    assert labels[0] == "257 <|im_start|>"
    assert "".join(text for kinds, text in page.tokens if kinds.startswith("t l")) == "yes <b><|im_end|>"
    assert ("t l s", "<|im_end|>") in page.tokens and ("t s", "<|im_start|>") in page.tokens
    said = "".join(text for _, text in page.tokens)
    assert "<script>alert('&')</script>" in said and "世界 🙂 <|im_end|>" in said
    wide = next(label for label in labels if label and len(label.split()) == 6)
    assert len([part for part in wide.split() if part.isdigit()]) == 3, "a Chinese character is three tokens here"


def test_the_page_and_the_terminal_count_the_same() -> None:
    seen = shown()
    assert "26 tokens, 2 with loss (8 %)" in to_html(seen)
    assert '<td class="left">assistant</td><td>14</td><td>2</td><td>100 %</td>' in to_html(seen)


def test_rows_are_shown_even_where_loading_stops_at_the_ledger(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise LedgerError(ledger)

    ledger = Ledger(tiny_tokenizer())
    monkeypatch.setattr("sweeptune.report.preview.load_splits", refuse)
    found = preview(compose(["model=tiny", "data=jsonl", f"data.path={jsonl}"]), rows=2)
    assert found.ledger is ledger and len(found.rows) == 2


def test_problems_stand_on_the_page() -> None:
    tokenizer = tiny_tokenizer()
    item = conversation([("user", "q")], place="<b>.jsonl:1")
    ledger = Ledger(tokenizer)
    ledger.add(Encoded(Row("x", [70, 71], [False, True], 1), (Span("assistant", 0, 0, 2, True, 0),), item))
    assert '<li class="bad">template=auto: 1 of 1 answers train no token' in to_html(Preview("", "train", ledger, ()))
    assert "&lt;b&gt;.jsonl:1" in to_html(Preview("", "train", ledger, ()))


def test_what_truncation_takes_is_struck_out() -> None:
    seen = shown(("user", "q"), ("assistant", "abcdef"), limit=24)
    assert "longer than data.max_length=24: the rest is cut away" in printed(seen)
    cut = [token for stretch in seen.rows[0].stretches for token in stretch.tokens if token.cut]
    assert len(cut) == seen.rows[0].tokens - 24
    assert "a|b|c|d|[cut here]e|f|<|im_end|>[/loss]" in printed(seen)
    assert printed(seen).count("[cut here]") == 1
    assert ("t l c", "e") in Page(to_html(seen)).tokens


@pytest.mark.parametrize(
    ("limit", "settings", "note"),
    [
        (None, {}, ""),
        (1000, {}, ""),
        (24, {"on_long_row": "drop"}, "it is left out"),
        (24, {"on_long_row": "auto", "packing": "pack"}, "it becomes several rows"),
        (24, {"on_long_row": "auto"}, "the rest is cut away"),
        (24, {"on_long_row": "error"}, "an error"),
    ],
)
def test_a_long_row_says_what_happens_to_it(limit: int | None, settings: dict[str, Any], note: str) -> None:
    row = shown(("user", "q"), ("assistant", "abcdef"), limit=limit, **settings).rows[0]
    assert row.note.endswith(note) and bool(row.note) == bool(note)


def test_a_turns_markup_and_what_is_said_in_it_stand_together() -> None:
    spans = (Span("assistant", 0, 0, 2, False), Span("assistant", 0, 2, 4, True, 1), Span("user", 1, 4, 5, False))
    row = Row("x", [257, 64, 65, 256, 66], [False, False, True, True, False], 1)
    found = show_row(Encoded(row, spans, conversation([("user", "q")])), tiny_tokenizer(), None, data_config())
    assert [(stretch.owner, len(stretch.tokens)) for stretch in found.stretches] == [("assistant 1", 4), ("user 2", 1)]
    seen = printed(Preview("", "train", Ledger(tiny_tokenizer()), (found,)))
    assert "assistant 1: <|im_start|>|a[loss]b|<|im_end|>[/loss]\n" in seen


def test_a_very_long_row_is_shown_from_both_ends() -> None:
    tokenizer = tiny_tokenizer()
    body = tokenizer.encode("a" * 3000 + "b" * 3000)
    item = conversation([Message(TEXT, "by hand")])
    row = Row("x", body, [False] + [True] * 5999, 5999)
    row_shown = show_row(Encoded(row, (Span(TEXT, 0, 0, 6000, True),), item), tokenizer, None, data_config())
    first, last = row_shown.stretches
    assert (len(first.tokens), len(last.tokens), last.omitted) == (3 * MOST // 4, MOST // 4, 2000)
    seen = Preview("", "train", Ledger(tokenizer), (row_shown,))
    assert "... 5,400 not shown ..." in printed(seen)
    assert "... 2,000 tokens not shown ..." in to_html(seen)


def test_a_page_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written .*give a file in an existing folder"):
        write_html(shown(), tmp_path / "missing" / "preview.html")


def test_the_splits_have_names() -> None:
    assert [parse_split(name) for name in ("train", "eval", "test")] == ["train", "eval", "test"]
    with pytest.raises(ConfigError, match="--split trian: use train, eval, test"):
        parse_split("trian")
