"""Files are whole or absent: when the power goes, when the disk is full, when a process is killed in a line."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from sweeptune.tracking import files
from sweeptune.tracking.files import DiskFull, JsonLines, is_disk_full, write_json, write_text

FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def raising(error: BaseException):
    def fail(*arguments: object, **named: object) -> None:
        raise error

    return fail


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "first 世界\n")
    write_text(path, "second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "notes.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "result.json"
    write_text(path, "old")
    monkeypatch.setattr(os, step, raising(error))
    with pytest.raises(type(error)):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch, step, number):
    path = tmp_path / "result.json"
    write_text(path, "old")
    monkeypatch.setattr(os, step, raising(OSError(number, "full")))
    with pytest.raises(DiskFull, match=r"no room to write .*result\.json .*GiB free.*resume=") as error:
        write_text(path, "new")
    assert error.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_folder_that_is_not_there_is_no_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "x", "text")


def test_a_reader_never_sees_a_part(tmp_path):
    path, contents = tmp_path / "x", ["a" * 200_000, "b" * 100_000]
    write_text(path, contents[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        write_text(path, contents[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_json_is_for_people_and_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None], "ü": 0.5})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1, None], "ü": 0.5}
    assert text.startswith('{\n  "a"') and text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert (tmp_path / "x.json").read_text() == text


def test_lines_are_in_the_file_before_append_returns(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    assert lines.offset == 0
    assert not lines.path.exists()
    offsets = []
    for step in range(3):
        lines.append({"step": step, "text": "line\nbreak\u2028 ü"})
        offsets.append(lines.offset)
    content = lines.path.read_bytes()
    assert [json.loads(line)["step"] for line in content.splitlines()] == [0, 1, 2]
    assert offsets == [i + 1 for i, byte in enumerate(content) if byte == 10]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_line_without_a_finite_number_is_refused_and_not_half_written(tmp_path, value):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append({"step": 1, "loss": value})
    assert lines.path.read_text() == '{"step": 0}\n'


def test_lines_past_a_checkpoint_are_set_aside(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 0})
    kept = lines.offset
    lines.append({"step": 1})
    lines.append({"step": 2})
    lines.truncate_to(kept)
    lines.append({"step": 1, "again": True})
    aside = tmp_path / "metrics.jsonl.discarded"
    assert lines.path.read_text() == '{"step": 0}\n{"step": 1, "again": true}\n'
    assert aside.read_text() == '{"step": 1}\n{"step": 2}\n'
    lines.truncate_to(kept)
    assert aside.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 1, "again": true}\n'


def test_nothing_behind_the_offset_means_nothing_to_do(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.truncate_to(0)
    assert os.listdir(tmp_path) == []
    lines.append({"step": 0})
    for offset in (lines.offset, lines.offset + 100):
        lines.truncate_to(offset)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert lines.path.read_text() == '{"step": 0}\n'


def test_a_torn_line_of_a_killed_process_is_set_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo')
    JsonLines(path).append({"step": 1})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert (tmp_path / "metrics.jsonl.discarded").read_text() == '{"step": 1, "lo\n'


@needs_full_device
def test_a_full_disk_under_lines(tmp_path):
    full = tmp_path / "metrics.jsonl"
    full.symlink_to(FULL)
    lines = JsonLines(full)
    lines._whole = True  # a device has no last line to look for
    with pytest.raises(DiskFull, match=r"no room to write .*metrics\.jsonl"):
        lines.append({"step": 0})


def test_a_line_that_was_half_written_is_taken_back(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 0})
    real = Path.open

    class Torn:
        """Writes half of what it is given; then the disk is full."""

        def __init__(self, path: Path) -> None:
            self.file = real(path, "a", encoding="utf-8")

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *what: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **named: Torn(path) if mode == "a" else real(path, mode, **named)
    )
    with pytest.raises(DiskFull):
        lines.append({"step": 1})
    monkeypatch.undo()
    assert lines.path.read_text() == '{"step": 0}\n'
    lines.append({"step": 1})
    assert lines.path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_setting_aside_on_a_full_disk_cuts_nothing_off(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append({"step": 0})
    lines.append({"step": 1})
    real = Path.open

    def full(path: Path, mode: str = "r", **named: object):
        if path.name.endswith(".discarded"):
            raise OSError(errno.ENOSPC, "full")
        return real(path, mode, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull, match="discarded"):
        lines.truncate_to(0)
    assert len(lines.path.read_text().splitlines()) == 2


def test_which_errors_mean_a_full_disk(tmp_path, monkeypatch):
    torch_says = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0 (write failed)")
    assert is_disk_full(OSError(errno.ENOSPC, "x"), tmp_path)
    assert not is_disk_full(OSError(errno.EACCES, "x"), tmp_path)
    assert not is_disk_full(torch_says, tmp_path)  # there is room, so it is something else
    monkeypatch.setattr(files, "NEARLY_FULL_BYTES", 2**63)
    assert is_disk_full(torch_says, tmp_path / "not" / "there")
    assert not is_disk_full(RuntimeError("shape mismatch"), tmp_path)
    caused = RuntimeError("wrapped")
    caused.__context__ = OSError(errno.ENOSPC, "x")
    assert is_disk_full(caused, tmp_path)


def test_a_torn_line_of_another_writer_is_set_aside_too(tmp_path):
    path = tmp_path / "trials.jsonl"
    mine = JsonLines(path)
    mine.append({"number": 0})
    with path.open("a") as file:
        file.write('{"number": 1, "sta')  # another process, which then dies
    mine.append({"number": 2})
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 2]
