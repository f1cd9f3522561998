"""``data=hub``: a dataset of the hub, or a folder that holds one, through the library ``datasets``.

No code of a dataset is run: since version 4 the library knows none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import DataConfig
from sweeptune.data.files import without_nulls
from sweeptune.data.formats import KNOWN_KEYS


def hub_rows(data: DataConfig) -> Iterator[tuple[str, Any]]:
    """The rows of the split, in order, each with its place; only columns that a format reads.

    Raises:
        ConfigError: The dataset, its configuration, revision or split is not there, or cannot be reached.
    """
    dataset = load(data)
    columns = [name for name in dataset.column_names or [] if name in KNOWN_KEYS]
    if columns:  # images and the like are not even decoded
        dataset = dataset.select_columns(columns)
    number = 0
    try:
        for number, row in enumerate(dataset, 1):
            yield f"{data.path}, {data.split}, row {number}", without_nulls(row)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.path={data.path}: reading stopped behind row {number}: {_first_line(error)}"
        ) from error


def fingerprint(data: DataConfig) -> str | None:
    """What names the content of the split; None where that is not known before reading."""
    if data.streaming:
        return None
    found = getattr(load(data), "_fingerprint", None)
    return str(found) if found else None


def load(data: DataConfig) -> Any:
    """The dataset as ``datasets.load_dataset`` gives it.

    Raises:
        ConfigError: It says what is missing, and how to get it on a machine without network.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("data=hub: is read by the library datasets. Install it: pip install datasets") from error
    try:
        return datasets.load_dataset(
            data.path, name=data.subset, split=data.split, revision=data.revision, streaming=data.streaming
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ConfigError(
            f"data.path={data.path}: there is no such dataset on the hub, or it is closed to you"
            f"{f' (data.revision={data.revision})' if data.revision else ''}: {_first_line(error)}. Check the name at "
            f"huggingface.co/datasets; for a closed one log in first (hf auth login)"
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(_offline(data, error)) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        settings = f"data.path={data.path} data.subset={data.subset or 'null'} data.split={data.split}"
        raise ConfigError(
            f"{settings}: {' '.join(str(error).split())[:600]}. Choose with data.split=<split> and data.subset=<name>"
        ) from error


def _offline(data: DataConfig, error: Exception) -> str:
    return (
        f"data.path={data.path}: is not on this machine and the hub cannot be reached ({_first_line(error)}). Fetch it "
        f"where there is a network, hf download {data.path} --repo-type dataset --local-dir <folder>, bring the folder "
        f"here and read it with data=hub data.path=<folder>, or its files with data=jsonl data.path=<folder>"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
