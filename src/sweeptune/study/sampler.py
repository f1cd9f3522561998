"""The sampler behind `sweeptune.study.ask`: Optuna's, seeded anew for each trial and shown the trials that matter."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeptune.study.tpe import ENDED, METHOD, Lent, Tpe, good_share

PARTIAL = "partial"
"""User attribute of a trial, such as a baseline, whose settings lie outside of the space: no sampler is shown it."""
SEEN = 2000
"""How many of the newest finished trials a sampler is shown; of older ones only the Pareto front."""
STARTUP = 10
"""Random trials before a model is built, as in Optuna."""
STARTUP_OF_A_METHOD = 4
"""The same for a search inside one method, which has only its share of the trials."""
STARTUP_WITH_OTHERS = 2
"""The same where other methods with the same settings have been tried (`sweeptune.study.tpe.Lent`)."""


class Seeded(BaseSampler):
    """Draws for one trial that depend on seed, trial number and the trials told so far alone.

    A new inner sampler is made for each trial, seeded with (seed, number), so that a resumed study asks what an
    unbroken one would have asked. A parameter that is drawn by itself has a generator of its own, seeded with its name,
    too: a trial whose process died between two parameters gets the missing one that it would have got.

    Args:
        name: tpe, nsga2 or random (also the name for a grid, whose points are all fixed).
        seed: The study's first seed.
        fixed: Parameters that are not drawn, by their name in Optuna.
        method: Show only the trials of this method; None shows all.
    """

    def __init__(self, name: str, seed: int, fixed: Mapping[str, Any], method: str | None) -> None:
        self._name, self._seed, self._fixed, self._method = name, seed, fixed, method
        self._view: optuna.Study | None = None

    def _inner(self, study: optuna.Study, trial: FrozenTrial, parameter: str = "") -> BaseSampler:
        words = [self._seed, trial.number, zlib.crc32(parameter.encode())]
        chosen = int(np.random.SeedSequence(words).generate_state(1)[0])
        return _make(self._name, chosen, self._method, self._study(study))

    def _study(self, study: optuna.Study) -> optuna.Study:
        """What the sampler may see; read once a trial, since other workers write meanwhile."""
        if self._view is None:
            self._view = cast(optuna.Study, View(study, self._method))
        return self._view

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._relative = self._inner(study, trial)
        space = self._relative.infer_relative_search_space(self._study(study), trial)
        return {name: domain for name, domain in space.items() if name not in self._fixed}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._relative.sample_relative(self._study(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._fixed:
            return self._fixed[param_name]
        inner = self._inner(study, trial, param_name)
        return inner.sample_independent(self._study(study), trial, param_name, param_distribution)


class View:
    """A study of which only some trials are seen: one method's, the newest and the front, none with settings outside
    of the space. Everything else is the study's own.

    Attributes:
        others: What the other methods have tried, by method, where only one's trials are seen.

    Args:
        study: The whole study.
        method: Whose trials; None is everyone's.
    """

    def __init__(self, study: optuna.Study, method: str | None) -> None:
        self._whole = study
        trials = [trial for trial in study.get_trials(deepcopy=False) if not trial.user_attrs.get(PARTIAL)]
        self.others: dict[str, list[FrozenTrial]] = {}
        if method is not None:
            for trial in trials:
                if trial.params.get(METHOD, method) != method and trial.state in ENDED:
                    self.others.setdefault(trial.params[METHOD], []).append(trial)
            trials = [trial for trial in trials if trial.params.get(METHOD, method) == method]
        self._trials = newest_and_front(trials, study.directions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials that are seen, in the order of their numbers."""
        return [trial for trial in self._trials if states is None or trial.state in states]

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return self.get_trials(deepcopy, states)


def newest_and_front(
    trials: list[FrozenTrial], directions: Sequence[StudyDirection], seen: int = SEEN
) -> list[FrozenTrial]:
    """The trials that a sampler is shown: unfinished ones, the newest finished ones and the front of the older ones.

    Args:
        trials: In the order of their numbers.
        directions: The study's.
        seen: How many of the newest finished ones.
    """
    finished = [trial for trial in trials if trial.state in ENDED]
    if len(finished) <= seen:
        return trials
    older = [
        t for t in finished[:-seen] if t.state == TrialState.COMPLETE and max(t.constraints.values(), default=0) <= 0
    ]
    signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
    best = front(np.array([trial.values for trial in older]).reshape(len(older), len(signs)) * signs)
    hidden = {t.number for t in finished[:-seen]} - {older[i].number for i in best}
    return [trial for trial in trials if trial.number not in hidden]


def front(values: np.ndarray) -> list[int]:
    """Rows that no other row is at least as good as in every column, smaller being better; of equal rows one.

    Args:
        values: (points, objectives).

    Example:
        >>> front(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]))
        [0, 1]
    """
    left = np.argsort(values.sum(axis=1), kind="stable")
    found = []
    while left.size:
        found.append(int(left[0]))  # nothing has a smaller sum, so nothing dominates it
        left = left[~(values[left] >= values[left[0]]).all(axis=1)]
    return sorted(found)


def _make(name: str, seed: int, method: str | None, study: optuna.Study) -> BaseSampler:
    """Optuna's sampler of a name, for what `View` shows."""
    if name == "nsga2":
        # Optuna keeps the parents of a generation under the class's name: each method needs generations of its own.
        kind = type(f"NSGAII_{method}", (NSGAIISampler,), {}) if method else NSGAIISampler
        return cast(BaseSampler, kind(seed=seed))
    if name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group, since Optuna 2.8
            sampler = Tpe(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP)
        sampler._gamma = good_share(study)  # the constructor's argument is deprecated
        if method is not None:
            sampler.lent = Lent.by(study, method)
            sampler._n_startup_trials = STARTUP_WITH_OTHERS if sampler.lent else STARTUP_OF_A_METHOD
        return sampler
    return RandomSampler(seed=seed)
