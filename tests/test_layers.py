"""Rooms import only from rooms to their left, so that each can be read and tested with what lies before it alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweeptune

ROOMS = ["config", "kernels", "models", "methods", "data", "tracking", "training", "launch", "study", "report", "cli"]
SOURCE = Path(sweeptune.__file__).parent
HEAVY = {"torch", "transformers"}
ASKS_FOR_GPUS = ("rules.py", "gpu_count")
"""The one place in config that imports torch: inside a function that is called only when a setting needs the answer."""


def imports(path: Path, package: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, dotted name and enclosing function of every import in a file, wherever it stands.

    Args:
        path: The file.
        package: Dotted name of the package that the file lies in, for relative imports.
    """

    def walk(node: ast.AST, function: str | None) -> Iterator[tuple[int, str, str | None]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) + 1 - child.level] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                yield from ((child.lineno, f"{base}.{alias.name}", function) for alias in child.names)
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), None)


def files(source: Path) -> Iterator[tuple[Path, str, str]]:
    """Every Python file of the package, its room, and the dotted name of its package."""
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0], ".".join(["sweeptune", *parts[:-1]])


def wrong_way(source: Path) -> list[str]:
    """Imports that point to the right, and rooms that the order does not know."""
    found = []
    for path, room, package in files(source):
        where = path.relative_to(source).as_posix()
        if room not in ROOMS:
            found.append(f"{where}: {room} has no place in the order {' < '.join(ROOMS)}")
            continue
        for line, name, _ in imports(path, package):
            head, *rest = name.split(".")
            if head == "hydra_plugins":
                found.append(f"{where}:{line}: imports {name}; plugins delegate to sweeptune, never the reverse")
            if head != "sweeptune" or not rest:
                continue
            if rest[0] not in ROOMS:
                found.append(f"{where}:{line}: imports {name}, which is in no room")
            elif ROOMS.index(rest[0]) > ROOMS.index(room):
                found.append(f"{where}:{line}: {room} imports {name}, which lies to its right")
    return found


def heavy_in_config(source: Path) -> list[str]:
    """Imports of torch or transformers in config, inside functions too, but for the one that is allowed."""
    return [
        f"{path.relative_to(source).as_posix()}:{line}: imports {name}"
        for path, room, package in files(source)
        if room == "config"
        for line, name, function in imports(path, package)
        if name.split(".")[0] in HEAVY and (path.name, function) != ASKS_FOR_GPUS
    ]


def plant(root: Path, name: str, text: str) -> Path:
    """A package with one file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def test_rooms_import_only_from_their_left() -> None:
    assert len(list(files(SOURCE))) > 40, "the package was not found"
    assert wrong_way(SOURCE) == []


def test_config_imports_neither_torch_nor_transformers() -> None:
    assert heavy_in_config(SOURCE) == []


def test_checking_settings_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from sweeptune.config.check import check; "
        "assert check(['method=lorra', 'optim.lr=fast'], multirun=False); "
        "print(*{'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config/a.py", "from sweeptune.models import load_model"),
        ("models/a.py", "import sweeptune.tracking.console as console"),
        ("models/a.py", "from sweeptune import tracking"),
        ("models/a.py", "from ..tracking import console"),
        ("models/deeper/a.py", "from ...training.loop import train"),
        ("data/a.py", "def f():\n    from sweeptune.training import run"),
        ("data/a.py", "class A:\n    async def f(self):\n        if self:\n            import sweeptune.report"),
        ("methods/a.py", "try:\n    from sweeptune.data import Row\nexcept ImportError:\n    pass"),
        ("training/a.py", "from sweeptune.cli import app"),
        ("launch/a.py", "from hydra_plugins.sweeptune import isolated_launcher"),
        ("helpers/a.py", "import os"),
        ("data/a.py", "from sweeptune.helpers import a"),
    ],
)
def test_an_import_to_the_right_is_found(tmp_path: Path, name: str, text: str) -> None:
    found = wrong_way(plant(tmp_path, name, text))
    assert len(found) == 1 and found[0].startswith(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cli.py", "def f():\n    from sweeptune.report import render"),
        ("training/a.py", "from . import loop\nfrom .loop import train\nfrom ..data import Row\nimport torch"),
        ("models/__init__.py", "from .load import load_model\nfrom ..config import schema"),
        ("report/a.py", "import sweeptune\nfrom sweeptune.launch.grid import run_grid"),
    ],
)
def test_an_import_to_the_left_is_not(tmp_path: Path, name: str, text: str) -> None:
    assert wrong_way(plant(tmp_path, name, text)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config/a.py", "import torch"),
        ("config/a.py", "import torch.nn as nn"),
        ("config/a.py", "def f():\n    from transformers import AutoConfig"),
        ("config/rules.py", "import torch"),
        ("config/rules.py", "def other():\n    import torch"),
    ],
)
def test_a_heavy_import_in_config_is_found(tmp_path: Path, name: str, text: str) -> None:
    assert len(heavy_in_config(plant(tmp_path, name, text))) == 1


def test_the_planted_files_alone_are_to_blame(tmp_path: Path) -> None:
    assert heavy_in_config(plant(tmp_path, "config/a.py", "import yaml")) == []
    assert heavy_in_config(plant(tmp_path, "data/a.py", "import torch")) == []
