"""Which configuration a study tries next, and what it learns from how a trial ended: Optuna's ask and tell.

Optuna keeps the trials (numbers, parameters, states); what was measured is in trials.jsonl, whose lines are told here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from sweeptune.config.schema import StudyConfig
from sweeptune.config.study_rules import chosen_sampler, grows
from sweeptune.study.grid import Merged, firsts, rest
from sweeptune.study.sampler import PARTIAL, Seeded
from sweeptune.study.space import Choice, Domain, FloatRange, IntRange, Point, Space, Value
from sweeptune.study.tpe import METHOD

LESSONS = ("oom", "diverged", "timeout")
"""Ways to end that teach the sampler to stay away: told as a violated constraint of that name."""
STATES = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    **dict.fromkeys(LESSONS, TrialState.PRUNED),
}
NONE: Merged = {}
EXHAUSTED = 25
"""So many proposals in a row that were known or predicted not to fit: the method has nothing new to try."""


def directions(objectives: Sequence[str]) -> list[Literal["minimize", "maximize"]]:
    """Speeds grow better, all else falls.

    Example:
        >>> directions(["eval_loss", "speed.tokens_per_s"])
        ['minimize', 'maximize']
    """
    return ["maximize" if grows(name) else "minimize" for name in objectives]


def ask(
    study: optuna.Study, space: Space, settings: StudyConfig, seed: int, method: str | None, merged: Merged = NONE
) -> tuple[optuna.Trial, Point]:
    """A new trial and the configuration it tries.

    Args:
        study: From storage; its own sampler is replaced.
        space: What may change.
        settings: The study's.
        seed: The study's first seed. Draws depend on it, the trial's number and what has been told, on nothing else.
        method: The method to try (`next_method`), whose trials alone the sampler then sees; None lets it choose.
        merged: Points of a grid that baselines stand for.

    Raises:
        ValueError: The sampler is a grid and all of its points have been asked.

    Example:
        >>> trial, point = ask(study, space, settings, seed=0, method="lora")
        >>> point
        {'method': 'lora', 'optim.lr': 0.00031, 'method.rank': 16}
    """
    return _fill(study, study.ask(), space, settings, seed, method, merged)


def sample_again(
    study: optuna.Study,
    number: int,
    space: Space,
    settings: StudyConfig,
    seed: int,
    method: str | None,
    merged: Merged = NONE,
) -> tuple[optuna.Trial, Point]:
    """Finish the asking of a trial whose process died meanwhile: it gets what an unbroken study would have given it.

    Args:
        study: From storage.
        number: The trial, which exists; what was already drawn for it stands, its method, too.
        space: As for `ask`, like the rest.
        settings: The study's.
        seed: The study's first seed.
        method: The method to try, unless the trial has one already; None lets the sampler choose.
        merged: As for `ask`.
    """
    return _fill(study, _trial(study, number), space, settings, seed, method, merged)


def ask_for(study: optuna.Study, space: Space, point: Mapping[str, Value], number: int | None = None) -> optuna.Trial:
    """A trial at a given point, such as a baseline.

    Args:
        study: From storage.
        space: What may change.
        point: A value for each swept setting that applies. One that is missing or lies outside of its domain is not
            written to Optuna, and samplers are not shown the trial: they could not place it.
        number: The trial, where it exists since its process died while asking.
    """
    fixed: dict[str, Any] = {}
    study.sampler = Seeded("random", 0, fixed, None)
    trial = study.ask() if number is None else _trial(study, number)
    draw = _suggest(trial)

    def suggest(name: str, domain: Domain) -> Value:
        key = name.partition("[")[0]
        if key not in point or not _contains(domain, point[key]):
            trial.set_user_attr(PARTIAL, True)
            return point.get(key)
        fixed[name] = _shown(point[key])
        return draw(name, domain)

    space.sample(suggest)
    return trial


def next_method(
    lines: Sequence[Mapping[str, Any]],
    running: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    allocate: str,
) -> str | None:
    """The method that the next trial tries: under ``equal`` the one that has had the fewest training tokens.

    Tokens that pruning saved stay with the method. A trial that failed or broke a constraint counts as a whole one,
    or a method that never fits would be tried for ever; a proposal that was not tried counts as nothing.

    Args:
        lines: Of trials.jsonl; the last one of a number counts.
        running: Trials that have not ended: ``{"method", "tokens": planned}``.
        methods: Those in play, in declared order, which decides ties.
        allocate: ``study.allocate``.

    Returns:
        None where the sampler is to choose.
    """
    if allocate != "equal":
        return None
    last = latest(lines)
    # Of one seed: a baseline may have more of them than a trial.
    whole = max([(line["tokens"] or 0) // _seeds(line) for line in [*last, *running]], default=0) or 1
    had = dict.fromkeys(methods, 0)
    for line in last:
        if line["method"] in had:
            had[line["method"]] += _charge(line, whole)
    for trial in running:
        had[trial["method"]] = had.get(trial["method"], 0) + (trial["tokens"] or whole)
    done = exhausted(last, methods)
    return min([m for m in methods if m not in done] or methods, key=lambda method: had[method])


def exhausted(lines: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Collection[str]:
    """Methods whose last 25 proposals were all known already or predicted not to fit; a study of such methods is over.

    Args:
        lines: Of trials.jsonl.
        methods: Those in play.
    """
    kinds: dict[str, list[bool]] = {method: [] for method in methods}
    for line in latest(lines):
        kinds.setdefault(line["method"], []).append(line["kind"] in ("duplicate", "misfit"))
    return {m for m in methods if len(kinds[m]) >= EXHAUSTED and all(kinds[m][-EXHAUSTED:])}


def latest(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The line that counts of each trial, in the order of their numbers."""
    return [line for _, line in sorted({line["number"]: line for line in lines}.items())]


def state_of(status: str) -> TrialState:
    """Optuna's state for a status of the record (DESIGN section 3): what the sampler shall learn from is COMPLETE or
    PRUNED, what says nothing about the configuration is FAIL."""
    return STATES.get(status, TrialState.FAIL)


def tell(study: optuna.Study, number: int, line: Mapping[str, Any], settings: StudyConfig) -> None:
    """Tell Optuna how a trial ended; telling it again changes nothing.

    A duplicate and a predicted misfit become PRUNED as well: the sampler is to look elsewhere.

    Args:
        study: From storage.
        number: The trial.
        line: Its line of trials.jsonl.
        settings: The study's, which name the objectives.
    """
    trial = _trial(study, number)
    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():
        return
    state = TrialState.PRUNED if line["kind"] in ("duplicate", "misfit") else state_of(line["status"])
    values = [line["values"].get(name) for name in settings.objectives]
    if state == TrialState.COMPLETE and not all(value is not None and math.isfinite(value) for value in values):
        state = TrialState.FAIL  # it has no place among the others
    try:
        for name, excess in _constraints(line).items():
            if name not in frozen.constraints:
                trial.set_constraint(name, excess)
        study.tell(number, values if state == TrialState.COMPLETE else None, state, skip_if_finished=True)
    except UpdateFinishedTrialError:
        pass  # another process told it between the two looks


def _constraints(line: Mapping[str, Any]) -> dict[str, float]:
    """Every constraint of a line, > 0 where violated."""
    found = {name: float(excess) for name, excess in (line["constraints"] or {}).items() if excess is not None}
    if line["status"] in LESSONS:
        found[line["status"]] = 1.0
    if line["kind"] == "misfit" and max(found.values(), default=0.0) <= 0:
        found["misfit"] = 1.0
    return found


def _charge(line: Mapping[str, Any], whole: int) -> int:
    """Tokens that a trial counts as having had of its method's share."""
    if line["kind"] in ("duplicate", "misfit"):
        return 0
    spent, whole = line["tokens"] or 0, whole * _seeds(line)
    return spent if line["status"] == "completed" or line["pruned_by"] else max(spent, whole)


def _seeds(line: Mapping[str, Any]) -> int:
    return max(1, len(line.get("seeds") or ()))


def _fill(
    study: optuna.Study,
    trial: optuna.Trial,
    space: Space,
    settings: StudyConfig,
    seed: int,
    method: str | None,
    merged: Merged,
) -> tuple[optuna.Trial, Point]:
    """Draw every parameter of a trial that it does not have yet."""
    name = chosen_sampler(space, settings)
    if name == "grid":
        point = _grid_point(space, settings, trial.number, merged)
        return ask_for(study, space, point, trial.number), point
    if method is not None:
        method = trial.params.get(METHOD, method)
    study.sampler = Seeded(name, seed, {} if method is None else {METHOD: method}, method)
    return trial, space.sample(_suggest(trial))


def _grid_point(space: Space, settings: StudyConfig, number: int, merged: Merged) -> Point:
    """Points go by number, so that no two processes take the same one; baselines come first."""
    points = rest(space, merged)
    index = number - len(firsts(space, settings, merged))
    if not 0 <= index < len(points):
        raise ValueError(f"trial {number} has no point: the grid has {len(points)}")
    return points[index]


def note(study: optuna.Study, number: int, key: str, value: Any) -> None:
    """Set a user attribute of a trial without waking its sampler; one that Optuna was told of keeps what it has."""
    with suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(_identity(study, number), key, value)


def _trial(study: optuna.Study, number: int) -> optuna.Trial:
    return optuna.Trial(study, _identity(study, number))


def _identity(study: optuna.Study, number: int) -> int:
    return study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)


def _suggest(trial: optuna.Trial) -> Callable[[str, Domain], Value]:
    """A function that draws one parameter of a trial."""

    def suggest(name: str, domain: Domain) -> Value:
        if isinstance(domain, Choice):
            shown = [_shown(value) for value in domain.values]
            return domain.values[shown.index(trial.suggest_categorical(name, shown))]
        if isinstance(domain, IntRange):
            return trial.suggest_int(name, domain.low, domain.high, log=domain.log, step=domain.step)
        return trial.suggest_float(name, domain.low, domain.high, log=domain.log)

    return suggest


def _shown(value: Value) -> Any:
    """A choice as Optuna takes it, which knows no lists and mappings."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _contains(domain: Domain, value: Value) -> bool:
    if isinstance(domain, Choice):
        return value in domain.values
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(domain, FloatRange):
        return domain.low <= value <= domain.high
    return isinstance(value, int) and domain.low <= value <= domain.high and (value - domain.low) % domain.step == 0
