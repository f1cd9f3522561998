"""The loop of a study: free places get work, work that ended becomes data.

One process runs this; each run is a process of its own. Work is looked for in this order: trials that we hold, trials
whose owner died, new trials, and, when the search is over, the runs that confirm its result. Several engines, here or
on other machines, can run on one folder: whatever is decided once is decided under the study's lock, and whoever works
on a run folder holds its lease.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna

from sweeptune.config.compose import conf_from, load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config, StudyConfig
from sweeptune.launch.spawn import Worker, read_if_there, start
from sweeptune.study import ask as asking
from sweeptune.study.confirm import Confirmation
from sweeptune.study.costs import Costs
from sweeptune.study.display import Display
from sweeptune.study.foresight import Foresight
from sweeptune.study.lease import Lease, Leases
from sweeptune.study.pruning import Pruner
from sweeptune.study.queue import Queue
from sweeptune.study.slots import Slot, find_slots
from sweeptune.study.space import Space
from sweeptune.study.store import Store
from sweeptune.study.trial import (
    Trial,
    joined,
    leave_place,
    line_of,
)
from sweeptune.study.weights import Weights
from sweeptune.tracking.record import write_record

log = logging.getLogger("sweeptune")

T = TypeVar("T")

POLL_S = 0.1
LOOK_S = 1.0
"""How often metrics of running trials are read and other engines looked after."""
DEATHS = 1
"""How many killed workers a trial is given; then it is lost."""


@dataclass
class Unit:
    """One run under way."""

    kind: Literal["probe", "loss", "confirm"]
    folder: Path
    seed: int
    slot: Slot
    worker: Worker
    trial: Trial | None = None
    lease: Lease | None = None
    timed_out: bool = False


class Engine:
    """Works on a study until it is done, or until it is told to stop.

    Args:
        store: The study's folder.
        fixed: Overrides that all trials share.
        space: What is searched.
        settings: How; ``sampler`` is no longer ``auto``.
        base: The settings of any trial, for what they share: seed, hardware.
        total: How many trials there shall be; None: as many as the space has.
        display: Shows what happens.
    """

    def __init__(
        self,
        store: Store,
        fixed: list[str],
        space: Space,
        settings: StudyConfig,
        base: Config,
        total: int | None,
        display: Display,
    ) -> None:
        self.store, self.settings, self.display = store, settings, display
        self.study: optuna.Study = store.optuna(settings)
        self.slots = find_slots(dataclasses.replace(base, study=settings), store.folder)
        self.leases = Leases()
        self.wish = 0  # 1: finish what runs; 2: stop at a checkpoint; 3: at once
        self.queue = Queue(store, self.study, fixed, space, settings, base.seed, total, self.leases)
        self.weights = Weights(store, settings.keep_weights == "all")
        self.pruner = Pruner(store, settings)
        self.confirmation = Confirmation(store, settings, base.seed, base.tracker)
        self._looked = 0.0
        self._vain: dict[str, float] = {}
        self._environment = {
            "PYTHONPATH": store.pythonpath,
            "SWEEPTUNE_SHARED": str((store.folder / "shared").resolve()),
            **({"SWEEPTUNE_GIT": state} if (state := store.read()["git"]) else {}),
        }
        cuda = any(slot.devices for slot in self.slots)
        self.foresight = Foresight(store.folder, self._environment, cuda=cuda)
        self.costs = Costs(store.folder, settings, self.study, self.foresight)

    def run(self) -> bool:
        """Work; return whether the user ended it early."""
        (self.store.folder / "shared").mkdir(exist_ok=True)
        with conf_from(self.store.conf), self.leases, self._signals(), self.display:
            self.store.refresh()
            self.weights.keep_best()
            for line in self.store.trials.values():
                self.foresight.learn(line["cost_class"], line["peak_memory_gib"])
            try:
                while not self._over():
                    self._step()
                    time.sleep(POLL_S)
            finally:
                self._end_workers()
        return self.wish > 0

    # What runs

    def _step(self) -> None:
        for slot in self.slots:
            for unit in [unit for unit in slot.units if unit.worker.ended()]:
                slot.units.remove(unit)
                self._collect(unit)
            slot.close()
        self._finish_ended()
        if time.monotonic() - self._looked > LOOK_S:
            self._look()
            self._looked = time.monotonic()
        while self.wish == 0 and any(self._fill(slot) for slot in self._emptiest_first()):
            pass
        self.display.update(self)

    def _emptiest_first(self) -> list[Slot]:
        """Slots with a place left; of equal ones the first, which is the one that runs empty for probes, comes last."""
        places = [slot for slot in self.slots if len(slot.units) < slot.lanes]
        return sorted(places, key=lambda slot: (len(slot.units), slot is self.slots[0]))

    def _fill(self, slot: Slot) -> bool:
        """Give a slot one more unit, if there is one for it: probes first, since each is alone on its device."""
        self._finish_ended()
        if any(unit.kind == "probe" for unit in slot.units) or not slot.open():
            return False
        waiting = [trial for trial in self.queue.held.values() if trial.waiting]
        too_few = sum(len(trial.waiting) for trial in waiting) < self._free()
        if too_few and self._seldom("acquire", self.queue.acquire) is not None:
            return True  # look again, with one more to choose from
        unmeasured = {trial.number for trial in waiting if self.costs.unmeasured(trial)}
        ready = [trial for trial in waiting if trial.waiting and self.costs.foreseen(trial)]
        probes = [trial for trial in ready if trial.number in unmeasured]
        if not slot.units and any(self._start_probe(trial, slot) for trial in probes):
            return True
        if probes and slot.units and slot is self.slots[0]:
            return False  # let one slot run empty for them
        for trial in ready:
            if trial.number not in unmeasured:
                seed = trial.waiting.pop(0)
                self._start("loss", trial.configuration(seed), trial.run_folder(seed), trial.command, slot, trial)
                return True
        return not waiting and self._start_confirmation(slot)

    def _free(self) -> int:
        """How many more runs would find a place."""
        return sum(slot.lanes - len(slot.units) for slot in self.slots if slot.lock.is_locked)

    def _start_probe(self, trial: Trial, slot: Slot) -> bool:
        config, folder = self.costs.probe(trial)
        lease = self.leases.take(folder)
        if lease is None:
            return False
        self._start("probe", config, folder, trial.command, slot, trial, lease)
        return True

    def _start(
        self,
        kind: Literal["probe", "loss", "confirm"],
        config: Config,
        folder: Path,
        command: str,
        slot: Slot,
        trial: Trial | None,
        lease: Lease | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "config.yaml").exists():
            config = load(folder / "config.yaml")  # begun before, by whatever was decided then
        if kind == "loss" and trial is not None:
            leave_place(trial, folder)
        environment = self._environment | slot.environment
        worker = start(config, folder, command, environment=environment, output=folder / "output.log")
        unit = Unit(kind, folder, config.seed, slot, worker, trial, lease)
        slot.units.append(unit)
        if self.wish >= 2:  # the signal came while it started
            worker.stop()
        if trial is not None:
            trial.running += 1
        self.display.started(unit)

    def _start_confirmation(self, slot: Slot) -> bool:
        if not self.queue.idle:
            return False
        work = self._seldom("confirm", lambda: self.confirmation.next(self.leases))
        if work is None:
            return False
        config, folder, command, lease = work
        self._start("confirm", config, folder, command, slot, None, lease)
        return True

    # What has ended

    def _collect(self, unit: Unit) -> None:
        self._vain.clear()
        trial = unit.trial
        if trial is not None:
            trial.running -= 1
        lease = unit.lease or (trial.lease if trial else None)
        if lease is not None and lease.followed():
            self._forget(unit)
            return
        stopped = self.wish >= 2
        taken_away = not stopped and not unit.timed_out and (unit.worker.died() or self._was_interrupted(unit))
        if taken_away and self._try_again(unit):
            return
        record = unit.worker.record(interrupted=stopped)
        if unit.timed_out:
            record = _rewrite(unit.folder, record, "timeout", f"ran longer than {self.settings.trial_timeout_s:g} s")
        if record["status"] == "interrupted":
            if unit.kind == "loss" and trial is not None:
                trial.waiting.insert(0, unit.seed)
        elif unit.kind == "loss" and trial is not None:
            trial.records[unit.seed] = record
            if record["status"] != "completed":
                trial.waiting.clear()
        if unit.kind == "probe":
            shutil.rmtree(unit.folder / "checkpoints", ignore_errors=True)
        if unit.kind == "confirm" and record["status"] == "completed" and self.settings.keep_weights == "best":
            shutil.rmtree(unit.folder / "checkpoints", ignore_errors=True)
        if unit.lease is not None:
            self.leases.release(unit.lease)
        self.display.ended(unit, record)

    def _was_interrupted(self, unit: Unit) -> bool:
        """Whether somebody else stopped the worker politely."""
        with suppress(ConfigError):
            record = read_if_there(unit.folder)
            return record is not None and record != unit.worker.before and record["status"] == "interrupted"
        return False

    def _try_again(self, unit: Unit) -> bool:
        """Go on with a run whose worker was killed from outside, unless that has happened too often."""
        trial = unit.trial
        deaths = trial.deaths if trial is not None else _deaths(unit.folder)
        if deaths >= DEATHS:
            reason = f"its worker was killed {deaths + 1} times; see output.log"
            _rewrite(unit.folder, unit.worker.record(), "lost", reason)
            return False
        if trial is not None:
            trial.deaths += 1
            asking.note(self.study, trial.number, "deaths", trial.deaths)
            if unit.kind == "loss":
                trial.waiting.insert(0, unit.seed)
        else:
            (unit.folder / ".deaths").write_text(str(deaths + 1))
        (unit.folder / "result.json").unlink(missing_ok=True)
        if unit.lease is not None:
            self.leases.release(unit.lease)
        log.warning("%s: the worker was killed; going on with it", unit.folder)
        return True

    def _finish_ended(self) -> None:
        for trial in [t for t in self.queue.held.values() if not t.waiting and not t.running]:
            self._finish(trial)

    def _finish(self, trial: Trial) -> None:
        """A trial has ended: its record, its line, Optuna, its weights."""
        self._vain.clear()
        del self.queue.held[trial.number]
        if trial.lease.followed():
            return
        records = [trial.records[seed] for seed in trial.seeds if seed in trial.records]
        if len(trial.seeds) > 1 and records and not (trial.folder / "result.json").exists():
            write_record(trial.folder, _of_all(records))
        self.costs.measure(trial)
        trial.predicted_gib = self.foresight.center(trial.cost_class)
        line = line_of(trial, self.settings)
        self.foresight.learn(trial.cost_class, line["peak_memory_gib"])
        line["seconds"] = max(line["seconds"], round(time.monotonic() - trial.began, 3)) if records else 0.0
        asking.note(self.study, trial.number, "kind", trial.kind)
        self.store.add(line)  # before Optuna is told: what it takes for ended nobody looks at again
        asking.tell(self.study, trial.number, line, self.settings)
        self.weights.keep_best()
        self.leases.release(trial.lease)
        self.display.finished(line, self.store.counted)

    def _forget(self, unit: Unit) -> None:
        """Another process went on in our place, because it took us for dead: leave everything to it."""
        log.warning("%s: another process has gone on with it, so it is left alone here", unit.folder)
        if unit.lease is not None:
            self.leases.held.pop(unit.lease.folder, None)
        if unit.trial is not None:
            self.queue.held.pop(unit.trial.number, None)
            self.leases.held.pop(unit.trial.folder, None)

    # Looking after what runs

    def _look(self) -> None:
        units = [unit for slot in self.slots for unit in slot.units]
        lost = {lease.folder for lease in self.leases.lost()}
        for unit in units:
            limit = self.settings.trial_timeout_s
            if limit is not None and time.monotonic() - unit.worker.started > limit and not unit.timed_out:
                unit.timed_out = True
                unit.worker.kill()
            owner = unit.trial.folder if unit.trial else unit.folder
            if owner in lost or unit.folder in lost:
                unit.worker.kill()
            if unit.kind == "loss" and unit.trial is not None and self.settings.prune:
                self.pruner.look(unit.trial, unit.seed, unit.folder)

    def _seldom(self, name: str, look: Callable[[], T]) -> T | None:
        """Look at all trials; where that found nothing, not again for a second or until something has ended here: with
        thousands of them a free place would keep a tenth of a processor busy."""
        if time.monotonic() - self._vain.get(name, -LOOK_S) < LOOK_S:
            return None
        found = look()
        if not found:
            self._vain[name] = time.monotonic()
        return found

    def _over(self) -> bool:
        running = any(slot.units for slot in self.slots)
        if self.wish:
            return not running
        if running or self.queue.held:
            return False
        if not self._seldom("over", self.queue.over):
            return False  # what runs elsewhere is ours, if its owner dies
        return self.confirmation.over()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C lets running trials end, the second stops them at a checkpoint, as SIGTERM does at once."""

        def ask(number: int, frame: Any) -> None:
            self.wish = min(self.wish + 1, 3) if number == signal.SIGINT else max(self.wish + 1, 2)
            units = [unit for slot in self.slots for unit in slot.units]
            runs = f"{len(units)} run{'s' if len(units) != 1 else ''}"
            if self.wish == 1:
                log.warning("no new trials; what runs ends first: %s (again: stop at a checkpoint)", runs)
            elif self.wish == 2:
                log.warning("stopping at a checkpoint, after a step, an evaluation or a proof: %s (again: kill)", runs)
            for unit in units:
                if self.wish == 2:
                    unit.worker.stop()
                elif self.wish == 3:
                    unit.worker.kill()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_workers(self) -> None:
        """An error ends us: nothing of ours goes on without us."""
        self.foresight.close()
        for slot in self.slots:
            for unit in slot.units:
                unit.worker.kill()


def _rewrite(folder: Path, record: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    record = {**record, "status": status, "reason": reason}
    write_record(folder, record)
    return record


def _of_all(records: list[dict[str, Any]]) -> dict[str, Any]:
    failed = next((r for r in records if r["status"] != "completed"), None)
    return joined(records) | ({"status": failed["status"], "reason": failed["reason"]} if failed else {})


def _deaths(folder: Path) -> int:
    path = folder / ".deaths"
    return int(path.read_text()) if path.exists() else 0
