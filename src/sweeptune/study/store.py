"""What a study leaves on disk, and how it is found again: identity, code, Optuna's storage, a line per trial.

The folder is the truth. Optuna's storage holds what the sampler needs, and which numbers are taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from sweeptune.config.compose import conf_dir
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import StudyConfig
from sweeptune.config.secrets import masked
from sweeptune.study.ask import directions
from sweeptune.study.database import claim, open_database, owner_of
from sweeptune.study.space import Space
from sweeptune.tracking.files import JsonLines, write_json
from sweeptune.tracking.record import code_version

log = logging.getLogger("sweeptune")

SCHEMA = 1
COUNTING = ("baseline", "trial")
"""Kinds that are among ``study.trials``; what was predicted not to fit, or proposed twice, is not."""
CHANGEABLE = ("name", "trials", "trials_per_gpu", "max_failures")
"""Settings of a study that may be others when it goes on; of the other settings, tracker and hardware.gpus may."""
FREE = ("tracker", "hardware.gpus", "study")
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Identity:
    """What makes a study this one and no other.

    Attributes:
        name: The folder's name.
        command: The command line that began it.
        overrides: What all trials share, as typed.
        seed: The first seed.
        space: What is searched.
        settings: How.
    """

    name: str
    command: str
    overrides: tuple[str, ...]
    seed: int
    space: Space
    settings: StudyConfig


class Store:
    """A study's folder.

    Args:
        folder: ``multirun/<name>``.

    Attributes:
        trials: Lines of trials.jsonl, by number; the last line of a number counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = folder / "code"
        self._lines = JsonLines(folder / "trials.jsonl")
        self._read_to = 0
        self.trials: dict[int, dict[str, Any]] = {}

    def exists(self) -> bool:
        """Whether the study has begun."""
        return (self.folder / "study.json").is_file()

    def lock(self) -> FileLock:
        """What only one process of a study does at a time; the lock dies with its holder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock", is_singleton=True)

    def create(self, identity: Identity, extra: dict[str, Any]) -> None:
        """Begin: keep a copy of the code and of conf/, then write study.json, which makes the study exist.

        Raises:
            ConfigError: The folder holds something else, or cannot be written.
        """
        others = [path for path in self.folder.iterdir() if not path.name.startswith(".") and path.name != "code"]
        if others:
            raise ConfigError(
                f"{self.folder}: holds {others[0].name} but no study.json, so it is no study; choose another with "
                "study.name=<name>, or remove it"
            )
        target = self.code / "sweeptune"
        shutil.rmtree(self.code, ignore_errors=True)
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "conf"))
        shutil.copytree(conf_dir(), target / "conf", ignore=shutil.ignore_patterns("__pycache__"))
        write_json(self.folder / "study.json", {**as_json(identity), "id": uuid.uuid4().hex, **extra})

    def read(self) -> dict[str, Any]:
        """The content of study.json.

        Raises:
            ConfigError: There is none, or none of this version.
        """
        path = self.folder / "study.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{self.folder}: is no study: it has no study.json") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        if found.get("schema") != SCHEMA:
            raise ConfigError(f"{path}: schema is {found.get('schema')!r}, this version reads {SCHEMA}")
        return dict(found)

    @property
    def conf(self) -> Path:
        """The study's own conf/."""
        return self.code / "sweeptune" / "conf"

    @property
    def pythonpath(self) -> str:
        """For processes that are to run the study's own code: it, and what our own PYTHONPATH adds."""
        return os.pathsep.join([str(self.code.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])

    def check_storage(self, settings: StudyConfig) -> None:
        """See that a database can be reached, and holds no study of this name yet, before anything is written.

        Raises:
            ConfigError: It cannot, or does.
        """
        if settings.storage is None:
            return
        try:
            storage = open_database(settings.storage)
            known = optuna.get_all_study_names(storage)
        except Exception as error:  # each database has its own
            raise ConfigError(
                f"study.storage={settings.storage}: cannot be opened ({type(error).__name__}: {error}). Use a database "
                "URL such as sqlite:////path/of/an/existing/folder/studies.db, or leave it out"
            ) from error
        if self.folder.name not in known:
            return
        owner = owner_of(storage, self.folder.name)
        if owner is not None and owner["folder"] != str(self.folder.resolve()):
            raise ConfigError(self._belongs_elsewhere(settings, owner))
        raise ConfigError(
            f"study.storage={settings.storage}: holds a study {self.folder.name} without its folder {self.folder}. "
            f"Use another study.name, or remove it there: optuna delete-study --study-name {self.folder.name} "
            f"--storage {settings.storage}"
        )

    def _belongs_elsewhere(self, settings: StudyConfig, owner: dict[str, Any]) -> str:
        name = self.folder.name
        return (
            f"study.storage={settings.storage}: its study {name} belongs to the folder {owner['folder']}, not to "
            f"{self.folder.resolve()}. Names are unique in a database: use another one, such as study.name={name}-2, "
            "or another database"
        )

    def optuna(self, settings: StudyConfig) -> optuna.Study:
        """Open Optuna's study, or make it.

        Raises:
            ConfigError: The database's study of this name belongs to another folder.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any
        if settings.storage is not None:
            storage = open_database(settings.storage)
        else:
            path = str(self.folder / "study.journal")
            storage = optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=JournalLock(path)))
        ways, name = directions(settings.objectives), self.folder.name
        with self.lock():
            own = self.read().get("id") if self.exists() else None  # none: of an earlier version, which left no mark
            if settings.storage is not None and own is not None:
                owner = claim(storage, name, ways, {"id": own, "folder": str(self.folder.resolve())})
                if owner["id"] != own:
                    raise ConfigError(self._belongs_elsewhere(settings, owner))
            study = optuna.create_study(storage=storage, study_name=name, directions=ways, load_if_exists=True)
            if list(study.metric_names or []) != list(settings.objectives):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names(list(settings.objectives))
        return study

    @property
    def counted(self) -> int:
        """Trials that have ended and count as such, as far as this process has read."""
        return sum(line["kind"] in COUNTING for line in self.trials.values())

    def refresh(self) -> None:
        """Read the lines that this or another process has added to trials.jsonl."""
        path = self._lines.path
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read_to)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                log.warning("%s: a line cannot be read and is passed over: %r", path, text[:80])
                continue
            self.trials[line["number"]] = line

    def add(self, line: dict[str, Any]) -> None:
        """Add the line of a trial that has ended, whole and once."""
        with self.lock():
            self.refresh()
            known = self.trials.get(line["number"])
            if known is None or {**known, "ended": 0} != {**line, "ended": 0}:
                self._lines.append(line)
            self.refresh()


def as_json(identity: Identity) -> dict[str, Any]:
    """What study.json says of it."""
    return {
        "schema": SCHEMA,
        "name": identity.name,
        "created": round(time.time(), 3),
        "command": identity.command,
        "overrides": list(identity.overrides),
        "seed": identity.seed,
        "space": identity.space.as_dict(),
        "methods": list(identity.space.methods),
        "study": dataclasses.asdict(identity.settings),
    }


def differences(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a command asks for that the study in its folder is not, a sentence each."""
    found = []
    before, now = sorted(_binding(known["overrides"])), sorted(_binding(wanted["overrides"]))
    found += [f"{text}: the study has it, this command does not" for text in before if text not in now]
    found += [f"{text}: this command has it, the study does not" for text in now if text not in before]
    found += _differing("study", known["study"], wanted["study"], CHANGEABLE)
    found += _differing("space", _by_key(known["space"]), _by_key(wanted["space"]), ())
    return found


def _binding(overrides: Sequence[str]) -> list[str]:
    keys = [text.partition("=")[0].lstrip("+~") for text in overrides]
    return [
        text
        for text, key in zip(overrides, keys, strict=True)
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def _by_key(space: dict[str, Any]) -> dict[str, Any]:
    return {parameter["key"]: parameter for parameter in space["parameters"]}


def _differing(part: str, known: dict[str, Any], wanted: dict[str, Any], free: Sequence[str]) -> list[str]:
    keys = dict.fromkeys([*known, *wanted])
    # Masked, so that a database whose password was changed is the same one, and no message shows a password.
    return [
        f"{part}.{key}: {before} in the study, {now} in this command"
        for key in keys
        for before, now in [[masked(json.dumps(values.get(key))) for values in (known, wanted)]]
        if key not in free and known.get(key) != wanted.get(key) and before != now
    ]


class JournalLock(JournalFileOpenLock):
    """Optuna's journal under a lock that dies with its holder; its own would make others wait for 30 seconds.

    A line that a killed or full machine tore off is cut away first: behind it nothing could be read any more.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path
        self._lock = FileLock(f"{path}.lock", is_singleton=True)

    def acquire(self) -> bool:
        self._lock.acquire()
        if os.path.exists(self._path):
            cut_torn_line(Path(self._path))
        return True

    def release(self) -> None:
        self._lock.release()


def cut_torn_line(path: Path) -> None:
    """Remove what stands behind the last whole line."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        os.truncate(path, file.read().rfind(b"\n") + 1)


def git_state() -> str | None:
    """``<commit> clean`` or ``<commit> dirty`` for the workers, whose code is a copy; None where there is no git."""
    commit, dirty = code_version()
    return None if commit is None else f"{commit} {'dirty' if dirty else 'clean'}"


def eligible(line: dict[str, Any]) -> bool:
    """Whether a trial may be its method's best: it completed, and keeps every limit."""
    kept = all(by <= 0 for by in line["constraints"].values())
    return line["kind"] in COUNTING and line["status"] == "completed" and line["eval_loss"] is not None and kept


def cost_class(flat: dict[str, Any]) -> str:
    """A name for all configurations that cost the same memory and time per token: settings that change neither are left
    out of the hash."""
    kept = {key: value for key, value in flat.items() if not _free_of_cost(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


FREE_OF_COST = (
    *("optim.lr", "optim.weight_decay", "optim.beta1", "optim.beta2", "optim.eps", "optim.schedule", "optim.warmup"),
    *("optim.max_grad_norm", "method.recommended_lr", "method.alpha", "seed", "resume"),
    *("train.max_steps", "train.max_tokens", "train.epochs", "train.eval_every", "train.eval_at", "train.keep_best"),
    *("train.checkpoint_every", "train.keep_checkpoints", "eval.test", "eval.merged", "eval.longest"),
    *("hardware.gpus", "hardware.on_oom"),
)


def _free_of_cost(key: str) -> bool:
    return key in FREE_OF_COST or key.partition(".")[0] in ("study", "space", "tracker")


def begun(trials: Iterable[optuna.trial.FrozenTrial]) -> int:
    """How many of Optuna's trials count as such (`COUNTING`), ended or not."""
    return sum(trial.user_attrs.get("kind", "trial") in COUNTING for trial in trials)
