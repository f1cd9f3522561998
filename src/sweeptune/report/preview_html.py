"""A preview as one HTML file: it asks no server for anything, runs no script, and shows text of a dataset as text."""

from __future__ import annotations

from html import escape as html_escape
from pathlib import Path

from sweeptune.config.errors import ConfigError
from sweeptune.data.excerpt import escape
from sweeptune.report.preview import Preview, ShownRow, Stretch, Token
from sweeptune.report.preview_text import heading, remarks, table_cells
from sweeptune.tracking.files import DiskFull, write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --soft: #6b6f76; --line: #d9dce1;
  --a: #f3f4f6; --b: #dde0e5; --la: #c8f3cc; --lb: #98dfa3; --mark: #5b6470; --lmark: #17682b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --paper: #15171b; --soft: #9aa0a8; --line: #343840;
  --a: #22252b; --b: #343943; --la: #1a4224; --lb: #28693a; --mark: #aab2bd; --lmark: #8ee29c; --bad: #ff8f86; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; } h2 { font-size: 1rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } .left { text-align: left; }
ul { padding-left: 1.1rem; margin: .75rem 0; overflow-wrap: anywhere; } .bad { color: var(--bad); }
.who { font-size: .8rem; color: var(--soft); margin-top: .6rem; } .soft { color: var(--soft); }
.row { font: 14px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.t { position: relative; background: var(--a); unicode-bidi: isolate; border-radius: 2px; padding: .1em 0; }
.t:nth-child(even) { background: var(--b); } .l { background: var(--la); } .l:nth-child(even) { background: var(--lb); }
.s { color: var(--mark); font-weight: 600; } .l.s { color: var(--lmark); } .c { text-decoration: line-through; }
.t:hover, .t:focus { outline: 1px solid var(--ink); }
.t:hover::after, .t:focus::after { content: attr(data-t); position: absolute; left: 0; bottom: 1.7em; z-index: 1;
  padding: .1rem .45rem; font: 12px/1.5 ui-monospace, monospace; white-space: pre; pointer-events: none;
  color: var(--paper); background: var(--ink); border-radius: 4px; text-decoration: none; }
.key .t { display: inline-block; padding: .1rem .5rem; margin-right: .4rem; }
"""
# The policy makes the promise checkable: a browser refuses every script and every request of this page.
HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
)
LEFT = ("dataset", "template", "role")


def write_html(preview: Preview, path: Path) -> None:
    """Write a preview as a page of its own.

    Args:
        preview: From `sweeptune.report.preview.preview`.
        path: The file.

    Raises:
        ConfigError: It cannot be written there.
    """
    try:
        write_text(path, to_html(preview))
    except DiskFull:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"--html {path}: cannot be written ({reason}); give a file in an existing folder") from error


def to_html(preview: Preview) -> str:
    """The whole page."""
    title = _safe(f"Preview: {preview.title}")
    problems = "".join(f'<li class="bad">{_safe(text)}</li>' for text in preview.ledger.problems())
    said = "".join(f"<li>{_safe(text.strip())}</li>" for text in remarks(preview.ledger))
    rows = "".join(_row(row, number, preview.split) for number, row in enumerate(preview.rows, 1))
    return (
        f"{HEAD}<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"{f'<ul>{problems}</ul>' if problems else ''}<div class='wide'>{_table(preview)}</div>\n<ul>{said}</ul>\n{KEY}"
        f"{rows or f'<p>no row of {preview.split} to show</p>'}</body></html>\n"
    )


KEY = (
    '<p class="key"><span class="t l">learned</span><span class="t l s">learned markup</span>'
    '<span class="t">not learned</span><span class="t s">markup</span>'
    '<span class="soft">Shades change where tokens meet; point at one for its id.</span></p>\n'
)


def _table(preview: Preview) -> str:
    words, rows = table_cells(preview.ledger)
    kinds = [' class="left"' if word in LEFT else "" for word in words]

    def cells(tag: str, texts: list[str]) -> str:
        return "".join(f"<{tag}{kind}>{_safe(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', words)}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: ShownRow, number: int, split: str) -> str:
    return f"<section><h2>{_safe(heading(row, number, split))}</h2>{''.join(map(_stretch, row.stretches))}</section>\n"


def _stretch(stretch: Stretch) -> str:
    gap = f'<p class="soft">... {stretch.omitted:,} tokens not shown ...</p>' if stretch.omitted else ""
    tokens = "".join(map(_token, stretch.tokens))
    return f'{gap}<div class="who">{_safe(stretch.owner)}</div><p class="row">{tokens}</p>'


def _token(token: Token) -> str:
    kinds = "t" + " l" * token.learned + " s" * token.special + " c" * token.cut
    text = "↵\n".join(map(_safe, token.text.split("\n")))
    return f'<span class="{kinds}" tabindex="-1" data-t="{_safe(token.label)}">{text}</span>'


def _safe(text: str) -> str:
    """Text that is no markup and holds nothing invisible."""
    return html_escape(escape(text), quote=True)
