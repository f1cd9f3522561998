"""Reads an offline ``.wandb`` file record by record: a seven-byte header, then blocks of 32 KiB as in LevelDB's log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def payloads(path: Path) -> Iterator[bytes]:
    """The whole records of a file, put together from their pieces; one that a kill tore off is left out."""
    data = path.read_bytes()
    name, magic, version = struct.unpack("<4sHB", data[:HEAD])
    assert (name, magic, version) == (b":W&B", 0xBEE1, 0)
    at, piece = HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        if kind not in (FULL, FIRST, MIDDLE, LAST) or at + HEAD + length > len(data):
            return
        piece = (b"" if kind in (FULL, FIRST) else piece) + data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (FULL, LAST):
            yield piece


def records(path: Path) -> list[Any]:
    """Protocol buffers of a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(payload) for payload in payloads(path)]


def the_file(folder: Path) -> Path:
    """The one .wandb file of a run folder."""
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    return found


def rows(found: list[Any]) -> list[dict[str, Any]]:
    """What was logged."""
    history = [record.history for record in found if record.WhichOneof("record_type") == "history"]
    return [{_key(item): json.loads(item.value_json) for item in one.item} for one in history]


def summary(found: list[Any]) -> dict[str, Any]:
    """The summary in the end."""
    updates = [record.summary.update for record in found if record.WhichOneof("record_type") == "summary"]
    return {_key(item): json.loads(item.value_json) for update in updates for item in update}


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
