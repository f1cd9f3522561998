"""How soon a search finds what the whole grid would: recorded learning curves are replayed, nothing is trained.

    python bench/search.py bench/curves/*.csv

A file of bench/curves holds every configuration of a grid under one seed (bench/record_curves.py), evaluated at the
same shares of its tokens, and a few configurations under more seeds. A strategy is charged the tokens that it would
have trained and is worth the hypervolume (final eval loss, peak memory) of the configurations that it trained to the
end, by their recorded final values, as a share of the grid's. Reference point: the loss before training, and 1.1 times
the largest memory. Every strategy may spend 40 % of the grid's tokens:

    sweeptune            `sweeptune.study` in one slot: baselines first, under several seeds for the spread (charged),
                         equal tokens for each method, TPE, pruning at the default rungs; memory comes from a probe of
                         each method and rank, charged 2 % of a run (20 steps of 1,000)
    without pruning      the same, every trial to its end
    plain TPE            Optuna's own, over method, rank and rate together
    random               without repetition
    successive halving   as many random configurations as the tokens allow; the better half by loss passes 25 % and 50 %
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from common import head, line

from sweeptune.config.schema import StudyConfig
from sweeptune.study.ask import ask, ask_for, directions, exhausted, next_method, tell
from sweeptune.study.queue import SEEDS_TO_PRUNE
from sweeptune.study.rungs import Curve, prune
from sweeptune.study.space import Choice, Parameter, Space

SHARE = 0.4
PROBE = 0.02
HALVED_AT = (0.25, 0.5)
SETTINGS = StudyConfig(trials=10**6, sampler="tpe", prune=True)
Key = tuple[str, int | None, float]
"""Method, rank, learning rate."""


@dataclass(frozen=True)
class Run:
    """A recorded run."""

    key: Key
    seed: int
    baseline: bool
    memory: float
    losses: tuple[tuple[int, float], ...]
    completed: bool

    @property
    def planned(self) -> int:
        """Tokens of the whole run; one that diverged is charged what it trained."""
        return self.losses[-1][0] if self.losses else 0

    @property
    def values(self) -> tuple[float, float]:
        """Final eval loss and memory."""
        return self.losses[-1][1], self.memory

    def until(self, share: float) -> tuple[tuple[int, float], ...]:
        """The evaluations up to the first one that reaches a share of the tokens."""
        reached = next((at for at, _ in self.losses if at >= share * self.planned), self.planned)
        return tuple(pair for pair in self.losses if pair[0] <= reached)


@dataclass(frozen=True)
class Grid:
    """Every configuration under its first seed, and the runs under others."""

    runs: dict[Key, Run]
    repeats: dict[Key, list[Run]]

    @property
    def tokens(self) -> int:
        """What all configurations cost once."""
        return sum(run.planned for run in self.runs.values())

    @property
    def reference(self) -> tuple[float, float]:
        """The worst that counts."""
        done = [run for run in self.runs.values() if run.completed]
        return max(run.losses[0][1] for run in done), 1.1 * max(run.memory for run in done)

    def worth(self, keys: set[Key]) -> float:
        """Share of the whole grid's hypervolume that these configurations have."""
        every = [run.values for run in self.runs.values() if run.completed]
        some = [self.runs[key].values for key in keys if self.runs[key].completed]
        return hypervolume(some, self.reference) / hypervolume(every, self.reference)


def hypervolume(points: list[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the front of the points, smaller being better, and the reference point.

    Example:
        >>> hypervolume([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)], (3.0, 3.0))
        3.0
    """
    area, lowest = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area


def read(path: Path) -> Grid:
    """A recorded file."""
    lines: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(path.open()):
        lines.setdefault(row["run"], []).append(row)
    runs: dict[Key, Run] = {}
    repeats: dict[Key, list[Run]] = {}
    for found in lines.values():
        first = found[0]
        key = (first["method"], int(first["rank"]) if first["rank"] else None, float(first["lr"]))
        losses = tuple((int(row["tokens"]), float(row["eval_loss"])) for row in found)
        memory = float(first["peak_memory_gib"] or "inf")
        run = Run(key, int(first["seed"]), first["baseline"] == "True", memory, losses, first["status"] == "completed")
        if run.seed == 0:
            runs[key] = run
        else:
            repeats.setdefault(key, []).append(run)
    return Grid(runs, repeats)


def space_of(grid: Grid) -> Space:
    """What was recorded, as a search space."""
    methods = tuple(dict.fromkeys(method for method, _, _ in grid.runs))
    rates = {m: Choice(tuple(sorted({rate for method, _, rate in grid.runs if method == m}))) for m in methods}
    ranked = tuple(dict.fromkeys(method for method, rank, _ in grid.runs if rank is not None))
    ranks = Choice(tuple(sorted({rank for _, rank, _ in grid.runs if rank is not None})))
    parameters = [Parameter("method", {"*": Choice(methods)}, {}), Parameter("optim.lr", rates, {})]
    return Space((*parameters, Parameter("method.rank", {"*": ranks}, {"method": ranked})), methods)


def key_of(point: dict[str, Any]) -> Key:
    """The configuration at a point."""
    return point["method"], point.get("method.rank"), point["optim.lr"]


def point_of(key: Key) -> dict[str, Any]:
    """The point of a configuration."""
    method, rank, rate = key
    return {"method": method, "optim.lr": rate} | ({} if rank is None else {"method.rank": rank})


@dataclass
class Replay:
    """A study that reads its results from a grid."""

    grid: Grid
    settings: StudyConfig
    study: optuna.Study
    spent: float
    lines: list[dict[str, Any]]
    curves: list[Curve]
    probed: set[tuple[str, int | None]]
    found: set[Key]
    pruned: int = 0

    def known(self, number: int, key: Key) -> None:
        """A configuration that was tried before, or never recorded."""
        self.tell(number, key, "duplicate", "completed", 0, None)

    def tell(self, number: int, key: Key, kind: str, status: str, tokens: int, by: dict[str, Any] | None) -> None:
        """A line of trials.jsonl, told."""
        values = self.grid.runs[key].values if key in self.grid.runs else (None, None)
        told = {"number": number, "kind": kind, "status": status, "method": key[0], "params": point_of(key),
                "values": dict(zip(self.settings.objectives, values, strict=True)), "tokens": tokens,
                "constraints": {}, "pruned_by": by}  # fmt: skip
        self.lines.append(told)
        tell(self.study, number, told, self.settings)

    def run(self, number: int, key: Key, baseline: bool) -> None:
        """Replay one trial and tell how it ended."""
        run = self.grid.runs[key]
        self.probe(key)
        end, by = (run.losses, None) if baseline else self.train(number, run)
        self.spent += end[-1][0]
        status = "pruned" if by else "completed" if run.completed else "diverged"
        if status == "completed":
            self.found.add(key)
        self.pruned += status == "pruned"
        self.curves.append(self.curve(number, run, end, status == "completed"))
        self.tell(number, key, "trial", status, end[-1][0], by)

    def probe(self, key: Key) -> None:
        """Memory of a method and rank is measured once."""
        if key[:2] not in self.probed:
            self.probed.add(key[:2])
            self.spent += PROBE * self.grid.runs[key].planned

    def train(self, number: int, run: Run) -> tuple[tuple[tuple[int, float], ...], dict[str, Any] | None]:
        """The evaluations of a trial and, where it was stopped, by whom."""
        for share in self.settings.rungs:
            verdict = prune(self.curve(number, run, run.until(share), False), self.curves, self.settings)
            if verdict is not None:
                return run.until(share), {"by": verdict.by}
        return run.losses, None

    def curve(self, number: int, run: Run, losses: tuple[tuple[int, float], ...], finished: bool) -> Curve:
        """What `sweeptune.study.rungs` compares."""
        method, rank, rate = run.key
        name = f"{rank}-{rate}"
        return Curve(number, method, "", name, run.seed, losses, finished, run.baseline, costs=(run.memory,))

    def baselines(self, seeds: int) -> None:
        """Each method at its recommended settings; more seeds for the spread where trials are pruned."""
        for key, run in self.grid.runs.items():
            if run.baseline:
                trial = ask_for(self.study, space_of(self.grid), point_of(key))
                self.run(trial.number, key, baseline=True)
                for repeat in self.grid.repeats.get(key, [])[: seeds - 1]:
                    self.spent += repeat.planned
                    self.lines[-1]["tokens"] += repeat.planned
                    self.curves.append(self.curve(trial.number, repeat, repeat.losses, True))


def sweeptune(grid: Grid, budget: float, seed: int, settings: StudyConfig = SETTINGS) -> Replay:
    """The package's own search in one slot."""
    study = optuna.create_study(directions=directions(settings.objectives))
    replay = Replay(grid, settings, study, 0.0, [], [], set(), set())
    space = space_of(grid)
    replay.baselines(SEEDS_TO_PRUNE if settings.prune else 1)
    tried = {key_of(each["params"]) for each in replay.lines}
    whole = max(run.planned for run in grid.runs.values())
    while replay.spent + (1 + PROBE) * whole <= budget and exhausted(replay.lines, space.methods) != set(space.methods):
        method = next_method(replay.lines, [], space.methods, settings.allocate)
        trial, point = ask(study, space, settings, seed, method)
        key = key_of(point)
        if key in tried or key not in grid.runs:
            replay.known(trial.number, key)
        else:
            replay.run(trial.number, key, baseline=False)
        tried.add(key)
    return replay


def plain_tpe(grid: Grid, budget: float, seed: int) -> set[Key]:
    """Optuna's default for several objectives; what it proposes again costs nothing."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.TPESampler(seed=seed))
    space, found, spent, asked = space_of(grid), set[Key](), 0.0, 0
    while asked < 10 * len(grid.runs):
        asked += 1
        trial = study.ask()
        point = space.sample(lambda name, domain, trial=trial: trial.suggest_categorical(name, domain.values))
        run = grid.runs.get(key_of(point))
        if run is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if run.key not in found and spent + run.planned > budget:
            break
        spent += 0 if run.key in found else run.planned
        found.add(run.key)
        if run.completed:
            study.tell(trial, run.values)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return found


def shuffled(grid: Grid, seed: int) -> Iterator[Run]:
    """All configurations in a random order."""
    runs = list(grid.runs.values())
    random.Random(seed).shuffle(runs)
    yield from runs


def at_random(grid: Grid, budget: float, seed: int) -> set[Key]:
    """One configuration after another."""
    found, spent = set(), 0.0
    for run in shuffled(grid, seed):
        spent += run.planned
        if spent > budget:
            break
        found.add(run.key)
    return found


def halving(grid: Grid, budget: float, seed: int) -> set[Key]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) by loss, with the largest start that fits."""
    order = list(shuffled(grid, seed))
    for count in range(len(order), 0, -1):
        alive, spent = order[:count], 0.0
        for share, before in zip((*HALVED_AT, 1.0), (0.0, *HALVED_AT), strict=True):
            alive = alive if before == 0 else alive[: max(1, len(alive) // 2)]
            spent += sum(run.until(share)[-1][0] - (run.until(before)[-1][0] if before else 0) for run in alive)
            alive = sorted(alive, key=lambda run, share=share: run.until(share)[-1][1])
        if spent <= budget:
            return {run.key for run in alive}
    return set()


def main() -> None:
    """Replay every file under every strategy and print how often each finds 99 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=float, default=SHARE, help="of the grid's tokens")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    strategies: dict[str, Callable[[Grid, float, int], set[Key]]] = {
        "sweeptune": lambda grid, budget, seed: sweeptune(grid, budget, seed).found,
        "without pruning": lambda grid, budget, seed: (
            sweeptune(grid, budget, seed, replace(SETTINGS, prune=False)).found
        ),
        "plain TPE": plain_tpe,
        "random": at_random,
        "successive halving": halving,
    }
    print("\n".join(head(("curves", "strategy", ">= 99 %", "median", "worst", "trained to the end", "seconds"))))
    for path in options.curves:
        grid = read(path)
        budget = options.share * grid.tokens
        for name, strategy in strategies.items():
            start = time.monotonic()
            found = [strategy(grid, budget, seed) for seed in range(options.seeds)]
            worth = [grid.worth(keys) for keys in found]
            reached = f"{sum(w >= 0.99 for w in worth)} of {len(worth)}"
            cells = [f"{100 * statistics.median(worth):.2f} %", f"{100 * min(worth):.2f} %",
                     f"{statistics.mean(map(len, found)):.0f} of {len(grid.runs)}"]  # fmt: skip
            print(line((path.stem, name, reached, *cells, f"{time.monotonic() - start:.0f}")), flush=True)


if __name__ == "__main__":
    main()
