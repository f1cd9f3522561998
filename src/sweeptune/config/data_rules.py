"""Rules about where the data comes from: paths, mixtures, hub datasets (a part of `sweeptune.config.rules`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sweeptune.config.datafiles import TEXTS, kind, trouble
from sweeptune.config.schema import Config, DataConfig

FILES = ("jsonl", "text")
EMBEDDED = {"pydocs": "Python's own docstrings", "pydocs_text": "the topics of Python's own manual"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NAME_ONE = {
    "jsonl": "data=jsonl: reads files of rows, and none is given. Name one: data=jsonl data.path=<file>.jsonl",
    "text": (
        "data=text: reads text files, and none is given. Name one: data=text data.path=<file>.txt (or a folder), "
        "or take the text that Python carries: data=pydocs_text"
    ),
    "hub": "data=hub: reads a dataset of the hub, and none is given. Name one: data=hub data.path=<owner>/<name>",
}


def data_source(config: Config) -> Iterator[str]:
    """Whether there is one source, and it can be read."""
    data = config.data
    if data.name in EMBEDDED:
        yield from _embedded(data)
    elif data.path is not None and data.mix is not None:
        yield (
            f"data.path={_shown(data.path)} and data.mix are both given: the data is either one dataset or several. "
            "Leave one out: data.mix=null, or data.path=null with the path as a part of data.mix"
        )
    elif data.name == "hub":
        yield from _hub(data)
    elif data.path is not None:
        yield from _files(f"data.path={_shown(data.path)}", data.path, _texts(data, data.format))
    elif data.mix is None:
        yield NAME_ONE[data.name]
    else:
        yield from _mix(data)


def data_format(config: Config) -> Iterator[str]:
    """``data=text`` knows one format only."""
    data = config.data
    if data.name != "text":
        return
    given = [("data.format", data.format)]
    given += [(f"data.mix[{at}].format", part.format) for at, part in enumerate(data.mix or [])]
    for key, value in given:
        if value not in ("auto", "text"):
            yield f"{key}={value}: data=text reads raw text only. Rows of other formats are read by data=jsonl"


def hub_only(config: Config) -> Iterator[str]:
    """Settings that mean nothing for files must not be taken without a word."""
    data = config.data
    if data.name == "hub":
        return
    plain: dict[str, object] = {"split": "train", "subset": None, "revision": None, "streaming": False}
    for key, value in plain.items():
        seen = getattr(data, key)
        if seen != value:
            default = {None: "null", False: "false"}.get(value, value)  # type: ignore[call-overload]
            yield (
                f"data.{key}={str(seen).lower() if isinstance(seen, bool) else seen}: is for hub datasets, and this is "
                f"data={data.name}. Leave it out (data.{key}={default}), or use data=hub data.path=<owner>/<name>"
            )


def _embedded(data: DataConfig) -> Iterator[str]:
    what = EMBEDDED[data.name]
    if data.mix is not None:
        yield f"data.mix: data={data.name} reads {what} and no file. Files are mixed by data=jsonl data.mix=[...]"
    if data.path is None:
        return
    reader = "jsonl" if data.name == "pydocs" else "text"
    wrong = trouble(data.path, texts=True)
    also = f"Besides, {' and '.join(wrong)}. " if wrong else ""
    path = _shown(data.path)
    yield (
        f"data.path={path}: data={data.name} reads {what} and no file. {also}"
        f"A file is read by data={reader} data.path={path}; for {data.name} leave data.path out."
    )


def _files(key: str, path: str | list[str], texts: bool) -> Iterator[str]:
    if not path:
        yield f"{key}: names no file. Give data.path=<an existing file or folder>"
        return
    if isinstance(path, str) and not texts and kind(Path(path)) in TEXTS and Path(path).expanduser().is_file():
        # Beside rows, in a list or a mixture, raw text is meant; alone it is mostly the wrong file.
        yield f"{key}: this is a text file, not rows. Raw text is read by data=text data.path={path}"
    for problem in trouble(path, texts=texts):
        yield f"{key}: {problem}. Give data.path=<an existing file or folder>"


def _mix(data: DataConfig) -> Iterator[str]:
    parts = data.mix or []
    if not parts:
        yield "data.mix=[]: names no dataset. Give data.mix=[{path: a.jsonl, weight: 2}, {path: b.jsonl, weight: 1}]"
    for at, part in enumerate(parts):
        for problem in trouble(part.path, texts=_texts(data, part.format)):
            yield f"data.mix[{at}].path={part.path}: {problem}. Give every part an existing file or folder"
    without = [part.path for part in parts if part.weight is None]
    if 0 < len(without) < len(parts):
        yield (
            f"data.mix: some parts have a weight and others do not ({', '.join(without)}). Give weights to all of "
            "them, {path: ..., weight: 1}, or to none, which reads each row once"
        )


def _hub(data: DataConfig) -> Iterator[str]:
    if data.mix is not None:
        yield "data.mix: mixes files and folders, and data=hub reads one dataset. Use data=jsonl data.mix=[...]"
    elif data.path is None:
        yield NAME_ONE["hub"]
    elif not isinstance(data.path, str):
        yield f"data.path={_shown(data.path)}: data=hub reads one dataset. Give data.path=<owner>/<name>"
    elif not Path(data.path).expanduser().is_dir() and not HUB_ID.fullmatch(data.path):
        yield (
            f"data.path={data.path}: is neither a hub id nor a folder on this machine. Give data.path=<owner>/<name>; "
            f"a file is read by data=jsonl data.path={data.path}"
        )


def _texts(data: DataConfig, form: str) -> bool:
    return data.name == "text" or form == "text"


def _shown(path: str | list[str]) -> str:
    return path if isinstance(path, str) else f"[{','.join(path)}]"
