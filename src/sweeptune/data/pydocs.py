"""``data=pydocs``: real questions and answers that every Python carries, the docstrings of its standard library.

The sources are parsed with `ast`; nothing is imported. A question names a public function, class or method, the answer
is its docstring. On CPython 3.11 that is 2,842 rows from 282 modules.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import Conversation, conversation

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}  # installed beside it, and tests
LEFT_OUT |= {"idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data"}  # programs and data, not a library
MIN_WORDS = 12  # shorter docstrings mostly repeat the name
KINDS = {ast.FunctionDef: "function", ast.AsyncFunctionDef: "function", ast.ClassDef: "class"}


def load_pydocs() -> list[Conversation]:
    """Read all rows, in the order of modules and of definitions; a docstring that stands twice counts once.

    Raises:
        ConfigError: This Python comes without its sources.
    """
    rows: dict[str, Conversation] = {}
    for path, parts in modules():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in old sources are nobody's concern here
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, OSError, ValueError):
            continue  # templates and deliberately broken files are no modules
        module = ".".join(part for part in parts if part != "__init__")
        for name, kind, doc in _documented(tree, f"{module}."):
            if len(doc.split()) >= MIN_WORDS:
                question = f"What does the {kind} `{name}` do in Python?"
                turns = [("user", question), ("assistant", doc)]
                rows.setdefault(doc, conversation(turns, split_key=module, place=name))
    if not rows:
        raise ConfigError(
            f"data=pydocs: there are no sources in {_root()}, so this Python has no docstrings to read; "
            "use a file of your own: data=jsonl data.path=<file>.jsonl"
        )
    return list(rows.values())


def modules() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The files that are read, in order, each with the parts of its module's name."""
    root = _root()
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = filter(_read, inner)  # site-packages may hold a hundred times as many
        found += [Path(folder, name) for name in files if name.endswith(".py") and _read(name.removesuffix(".py"))]
    for path in sorted(found):
        yield path, path.relative_to(root).with_suffix("").parts


def _read(part: str) -> bool:
    """Whether a file or folder of this name is read."""
    return part not in LEFT_OUT and (part == "__init__" or not part.startswith("_"))


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Full name, kind and docstring of every public definition, outer ones first."""
    for child in node.body:
        kind = KINDS.get(type(child))
        if kind is None or child.name.startswith("_"):  # type: ignore[attr-defined]
            continue
        name = prefix + child.name  # type: ignore[attr-defined]
        if isinstance(node, ast.ClassDef) and kind == "function":
            kind = "method"
        doc = ast.get_docstring(child, clean=False)  # type: ignore[arg-type]
        if doc and doc.strip():
            yield name, kind, inspect.cleandoc(doc).strip()
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.")
