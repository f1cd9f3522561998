"""Whose weights stay on disk: a checkpoint of a full 1.8B model is 22 GB, so by default only each method's best."""

from __future__ import annotations

import shutil
from typing import Any

from sweeptune.study.store import Store, eligible


class Weights:
    """Removes the weights of trials that are not the best of their method.

    Args:
        store: The study's folder.
        all_: Keep everything.
    """

    def __init__(self, store: Store, all_: bool) -> None:
        self.store, self.all_ = store, all_
        self.best: dict[str, int] = {}

    def find(self) -> None:
        for line in self.store.trials.values():
            self._note(line)

    def _note(self, line: dict[str, Any]) -> bool:
        if not eligible(line):
            return False
        known = self.store.trials.get(self.best.get(line["method"], -1))
        if known is None or line["eval_loss"] < known["eval_loss"]:
            self.best[line["method"]] = line["number"]
            return True
        return False

    def keep(self, line: dict[str, Any]) -> None:
        """Only each method's best keeps its weights, unless all shall."""
        if self.all_:
            return
        before = self.best.get(line["method"])
        loser = before if self._note(line) else line["number"]
        if loser is not None:
            for path in (self.store.folder / str(loser)).rglob("checkpoints"):
                shutil.rmtree(path, ignore_errors=True)
