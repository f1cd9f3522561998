"""Docstrings of the standard library: many, real, always the same ones, and none of them imported."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation
from sweeptune.data.pydocs import MIN_WORDS, load_pydocs
from tests.data.helpers import data_config, split

LONG = "This docstring has certainly more words than are needed to be worth learning it."


@pytest.fixture(scope="module")
def rows() -> list[Conversation]:
    before = set(sys.modules)
    found = load_pydocs()
    assert set(sys.modules) - before == set(), "reading must import nothing"
    return found


def name(row: Conversation) -> str:
    return row.messages[0].content.split("`")[1]


def test_there_are_enough_of_them(rows):
    low, high = (2750, 2950) if sys.version_info[:2] == (3, 11) else (2000, 4000)
    assert low < len(rows) < high


def test_they_are_public_long_enough_and_all_different(rows):
    answers = [row.messages[1].content for row in rows]
    assert len(set(answers)) == len({row.id for row in rows}) == len({name(row) for row in rows}) == len(rows)
    assert min(len(answer.split()) for answer in answers) == MIN_WORDS
    assert not [name(row) for row in rows if any(part.startswith("_") for part in name(row).split("."))]
    assert not [name(row) for row in rows if name(row).split(".")[0] in ("test", "idlelib", "lib2to3")]


def test_the_question_names_the_object_and_its_kind(rows):
    by_name = {name(row): row for row in rows}
    assert by_name["shutil.copytree"].messages[0].content == "What does the function `shutil.copytree` do in Python?"
    assert by_name["textwrap.TextWrapper"].messages[0].content.startswith("What does the class ")
    assert by_name["textwrap.TextWrapper.wrap"].messages[0].content.startswith("What does the method ")
    assert by_name["shutil.copytree"].messages[1].content.startswith("Recursively copy a directory tree")
    assert by_name["shutil.copytree"].split_key == "shutil"
    assert {message.role for row in rows for message in row.messages} == {"user", "assistant"}


def test_no_module_is_in_two_splits(rows):
    modules = {part: {row.split_key for row in found} for part, found in split(rows, data_config()).items()}
    assert all(modules.values())
    assert sum(map(len, modules.values())) == len(set.union(*modules.values()))


def library(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str | bytes]) -> list[Conversation]:
    """Read a made-up standard library."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return load_pydocs()


def documented(head: str, text: str = LONG) -> str:
    return f'{head}\n    """{text}"""\n'


def test_what_is_left_out(monkeypatch, tmp_path):
    function = documented("def f():")
    found = library(
        monkeypatch,
        tmp_path,
        {
            "kept.py": function,
            "package/__init__.py": documented("def g():", "Another. " + LONG),
            "_private.py": documented("def f():", "Private. " + LONG),
            "package/_private/x.py": documented("def f():", "Also private. " + LONG),
            "package/__main__.py": documented("def f():", "A program. " + LONG),
            "test/x.py": documented("def f():", "A test. " + LONG),
            "site-packages/other/x.py": documented("def f():", "Installed. " + LONG),
            "broken.py": "def f(:\n",
            "latin.py": b'def f():\n    "\xe9"\n',
            "names.py": documented("def _f():", "Hidden. " + LONG) + documented("class _C:", "Hidden too. " + LONG),
            "short.py": documented("def f():", "Does it."),
            "later.py": function,
        },
    )
    assert [(name(row), row.split_key) for row in found] == [("kept.f", "kept"), ("package.g", "package")]


def test_reading_neither_runs_the_sources_nor_warns(monkeypatch, tmp_path, recwarn):
    source = f'raise SystemExit("imported")\n\nasync def f():\n    "{LONG}"\n    return "\\d"\n'
    [row] = library(monkeypatch, tmp_path, {"module.py": source})
    assert row.messages[0].content == "What does the function `module.f` do in Python?"
    assert not recwarn.list


def test_indentation_is_cleaned(monkeypatch, tmp_path):
    text = f"\n    {LONG}\n\n        Deeper.\n    "
    [row] = library(monkeypatch, tmp_path, {"m.py": documented("class C:", text)})
    assert row.messages[1].content == f"{LONG}\n\n    Deeper."


def test_the_order_is_that_of_files_and_definitions(monkeypatch, tmp_path):
    files = {f"{letter}.py": documented("def f():", f"{letter} {LONG}") for letter in "dbac"}
    first = library(monkeypatch, tmp_path, files)
    assert [name(row) for row in first] == ["a.f", "b.f", "c.f", "d.f"]
    assert load_pydocs() == first


def test_a_python_without_sources(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"no sources in .*use a file of your own: data=jsonl"):
        library(monkeypatch, tmp_path, {"readme.txt": "nothing"})
