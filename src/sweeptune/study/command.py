"""From a ``--multirun`` command line to a study in its folder: begun once, gone on with by the same command."""

from __future__ import annotations

import filecmp
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sweeptune.config.compose import compose, conf_from, dump
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config, StudyConfig
from sweeptune.config.secrets import masked
from sweeptune.config.study_rules import chosen_sampler, pruning_trouble, search_problems
from sweeptune.study.display import Display
from sweeptune.study.engine import Engine
from sweeptune.study.grid import Merged, firsts, from_header, merge, rest
from sweeptune.study.space import Point, Space, fixed_overrides, read_space
from sweeptune.study.store import PACKAGE, Identity, Store, as_json, begun, differences, git_state
from sweeptune.study.trial import compose_trial, flat
from sweeptune.study.working import at_work, set_over
from sweeptune.tracking.follow import await_senders, offline_words
from sweeptune.tracking.sync import find_runs
from sweeptune.tracking.wandb_run import goes_online

log = logging.getLogger("sweeptune")

CONFIRM_SEEDS = 3
"""Seeds of a confirmation that is asked for without a number: the fewest that give an interval of use."""


@dataclass(frozen=True)
class Ended:
    """How a command's work on a study ended.

    Attributes:
        folder: The study's.
        lines: Of all its trials, by number.
        interrupted: Whether the user ended it early.
        search: Whether settings were searched for, so that failed trials are part of the answer.
    """

    folder: Path
    lines: list[dict[str, Any]]
    interrupted: bool
    search: bool


def run_study(overrides: Sequence[str], folder: Path) -> Ended:
    """Begin the study in a folder, or go on with it.

    Args:
        overrides: As typed, sweeps included, checked before.
        folder: ``multirun/<study.name>``.

    Raises:
        ConfigError: The folder holds another study; the differences are listed.
    """
    store = Store(folder)
    identity = _identity(overrides, folder)
    with at_work(folder):  # from before there is a study.json: who watches from then on must see somebody at work
        _begin(store, identity)
        return _work(store, identity)


def _begin(store: Store, identity: Identity) -> None:
    """Make the study, or see that it is this one."""
    with store.lock():
        if not store.exists():
            store.check_storage(identity.settings)
            merged = merge(identity.space, identity.settings, partial(_run_of, identity))
            extra = {"fixed": shared_settings(identity), "merged": merged, "git": git_state(), "versions": versions()}
            store.create(identity, extra)
            if not identity.space.parameters:
                log.info("nothing is swept: a study of one trial; lists of values make more: method=full,lora,qlora")
            return
        if found := differences(store.read(), as_json(identity)):
            raise ConfigError(
                [f"{problem}" for problem in found]
                + [
                    f"{store.folder}: holds a study that differs so; choose another with study.name=<name>, or remove "
                    "it"
                ]
            )


def _run_of(identity: Identity, point: Point) -> dict[str, Any]:
    return flat(compose_trial(identity.overrides, identity.space, point, identity.settings))


def confirm(folder: Path, seeds: int | None = None) -> Ended:
    """Add the runs that confirm a finished study.

    Args:
        folder: The study's.
        seeds: How many unseen seeds each method's best is trained with, those of earlier confirmations included; by
            default ``study.confirm_seeds``, else 3.

    Raises:
        ConfigError: It is no study.
    """
    store = Store(folder)
    known = store.read()
    seeds = seeds or known["study"]["confirm_seeds"] or CONFIRM_SEEDS
    settings = StudyConfig(**{**known["study"], "confirm_seeds": seeds, "trials": max(1, _counted(store))})
    identity = Identity(
        known["name"],
        known["command"],
        tuple(known["overrides"]),
        known["seed"],
        Space.from_dict(known["space"]),
        settings,
    )
    with at_work(folder):
        return _work(store, identity)


def _counted(store: Store) -> int:
    store.refresh()
    return store.counted


def _work(store: Store, identity: Identity) -> Ended:
    settings = identity.settings
    with conf_from(store.conf):
        base = _base(identity.overrides, identity.space)
    _see_that_its_code_takes(base, store)
    set_over(store.folder, False)
    header = store.read()
    merged = from_header(header)
    total, done = _total(identity.space, settings, merged), _counted(store)
    # Interrupted trials are finished, however few are asked for.
    shown = max(total, begun(store.optuna(settings).get_trials(deepcopy=False))) if total else None
    log.info("study %s: %s trials in %s%s", identity.name, shown or "?", store.folder, f", {done} done" if done else "")
    if merged:
        log.info("%d of the grid's points are recommended settings: the baselines stand for them", len(merged))
    if base.tracker.name == "wandb" and not goes_online("wandb"):
        log.warning("%s", offline_words(store.folder))
    if trouble := pruning_trouble(identity.space, settings):
        log.warning("%s", trouble)
    display = Display(identity.name, shown)
    engine = Engine(store, list(identity.overrides), identity.space, settings, base, total, display)
    interrupted = engine.run()
    if base.tracker.name != "none":
        await_senders(find_runs(store.folder) if store.trials else [], store.folder)
    if interrupted:
        log.warning("stopped; the same command goes on with what is left")
    store.refresh()
    # A confirmation asks for no more trials than had ended; the study may have been left before it had all of its own.
    planned = _total(identity.space, StudyConfig(**header["study"]), merged) or 0
    set_over(store.folder, not interrupted and (total == planned or store.counted >= planned))
    lines = [store.trials[number] for number in sorted(store.trials)]
    return Ended(store.folder, lines, interrupted, settings.sampler != "grid")


def _see_that_its_code_takes(base: Config, store: Store) -> None:
    """Ask the study's own copy of the code, where it knows other settings than this version.

    Raises:
        ConfigError: It refuses what its runs would be given, so that none of them would start.
    """
    own, ours = (package / "config" / "schema.py" for package in (store.code / "sweeptune", PACKAGE))
    if own.is_file() and filecmp.cmp(own, ours, shallow=False):
        return
    with TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump(base))
        command = [sys.executable, "-c", f"from sweeptune.config.compose import load; load({str(config)!r})"]
        environment = os.environ | {"PYTHONPATH": store.pythonpath}
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        said = asked.stderr.strip().rpartition("\n")[2].strip().removeprefix("1. ").removesuffix(" Take it out.")
        raise ConfigError(
            f"{store.folder} began with another version of sweeptune, whose copy in it runs its trials and refuses "
            f"settings of this one ({said}). Go on with that copy: put "
            f"PYTHONPATH={shlex.quote(str(store.code))} before the same command; or begin another study: "
            "study.name=<name>"
        )


def _total(space: Space, settings: StudyConfig, merged: Merged) -> int | None:
    """Trials that a study ends with; None where nothing limits them."""
    if settings.sampler != "grid":
        return settings.trials
    points = len(rest(space, merged)) + len(firsts(space, settings, merged))
    return min(settings.trials or points, points)


def _identity(overrides: Sequence[str], folder: Path) -> Identity:
    space = read_space(overrides)
    fixed = fixed_overrides(overrides)
    base = _base(fixed, space)
    settings = _resolved(base.study, space)
    command = masked(shlex.join(["python", "train.py", "--multirun", *overrides]))
    return Identity(folder.name, command, tuple(fixed), base.seed, space, settings)


def shared_settings(identity: Identity) -> dict[str, Any]:
    """What all trials have in common, with dotted keys."""
    swept = {parameter.key for parameter in identity.space.parameters}
    settings = flat(_base(identity.overrides, identity.space))
    own = [key for key in settings if key.partition(".")[0] in (swept & {"method"}) or key in swept]
    away = ("study.", "space.", "optim.lr") if "method" in swept else ("study.", "space.")
    return {key: value for key, value in settings.items() if key not in own and not key.startswith(away)}


def versions() -> dict[str, str]:
    """Of the packages that a study itself is made with; each run's record names its own."""
    found = {}
    for name in ("optuna", "hydra-core"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _base(fixed: Sequence[str], space: Space) -> Config:
    return compose([*fixed, *space.overrides(space.baselines()[0])])


def _resolved(settings: StudyConfig, space: Space) -> StudyConfig:
    """The sampler by name.

    Raises:
        ConfigError: It cannot search this space, or would never end.
    """
    if problems := search_problems(space, settings):
        raise ConfigError(problems)
    return replace(settings, sampler=chosen_sampler(space, settings))
