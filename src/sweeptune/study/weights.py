"""Whose weights stay on disk: a checkpoint of a full 1.8B model is 22 GB, so by default only each method's best."""

from __future__ import annotations

import shutil

from sweeptune.study.confirm import best_of
from sweeptune.study.store import Store


class Weights:
    """Removes the weights of trials that are not the best of their method.

    Args:
        store: The study's folder.
        all_: Keep everything.
    """

    def __init__(self, store: Store, all_: bool) -> None:
        self.store, self.all_ = store, all_
        self._removed: set[int] = set()

    def keep_best(self) -> None:
        """Only each method's best of the ended trials keeps its weights, whoever ran the others, unless all shall."""
        if self.all_:
            return
        best = best_of(self.store).values()
        for number in self.store.trials.keys() - self._removed - set(best):
            self._removed.add(number)
            for path in (self.store.folder / str(number)).rglob("checkpoints"):
                shutil.rmtree(path, ignore_errors=True)
