"""The database of a study (``study.storage``), which it may share with others: opened, and one study of it claimed.

Optuna knows a study by its name alone, so two folders with studies of one name would fill each other's trials. Each
study of ours therefore carries the mark of its folder.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage

OWNER = "sweeptune"
"""User attribute of Optuna's study: the mark ``{"id", "folder"}`` of the folder that it belongs to."""
BUSY = ("exists", "unique", "duplicate", "locked", "no such table")
"""Words in the errors of databases in which somebody else makes the tables at this moment."""
PATIENCE_S = 20.0
CLAIM_S = 3.0
"""How long whoever makes a study may take to put its mark there; without one after that, its process has died."""


def open_database(url: str) -> BaseStorage:
    """Open a database, and make Optuna's tables where they are missing.

    Optuna makes them step by step and fails where another process does so at the same moment; a moment later they are
    there.

    Raises:
        Exception: The database's own, where it cannot be opened.
    """
    from sqlalchemy.exc import DBAPIError  # a third of a second, which studies with a journal need not wait

    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return optuna.storages.get_storage(url)
        except DBAPIError as error:
            if time.monotonic() > until or not any(word in str(error.orig).lower() for word in BUSY):
                raise
            time.sleep(random.uniform(0.02, 0.2))  # apart from those that failed at the same moment


def owner_of(storage: BaseStorage, name: str) -> dict[str, Any] | None:
    """The mark of the folder that a study belongs to; None where there is no such study, or nobody has marked it."""
    try:
        mark = optuna.load_study(study_name=name, storage=storage).user_attrs.get(OWNER)
    except KeyError:
        return None
    return mark if isinstance(mark, dict) else None


def claim(
    storage: BaseStorage, name: str, directions: Sequence[Literal["minimize", "maximize"]], mark: dict[str, Any]
) -> dict[str, Any]:
    """Make a study, or see whose it is; of several processes that try at once one makes it.

    Args:
        storage: From `open_database`.
        name: The study's.
        directions: Of its objectives.
        mark: The caller's.

    Returns:
        The mark that it bears: the caller's, or that of another folder.
    """
    try:
        made = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
        made.set_user_attr(OWNER, mark)  # names are unique: nobody else has come this far
        return mark
    except DuplicatedStudyError:
        until = time.monotonic() + CLAIM_S
    while (found := owner_of(storage, name)) is None:
        if time.monotonic() > until:
            optuna.load_study(study_name=name, storage=storage).set_user_attr(OWNER, mark)
            return mark
        time.sleep(0.05)
    return found
