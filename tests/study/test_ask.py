from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from sweeptune.config.schema import StudyConfig
from sweeptune.config.study_rules import chosen_sampler
from sweeptune.study.ask import (
    EXHAUSTED,
    ask,
    ask_for,
    directions,
    exhausted,
    next_method,
    sample_again,
    state_of,
    tell,
)
from sweeptune.study.sampler import STARTUP_OF_A_METHOD, Seeded, View, front, newest_and_front
from sweeptune.study.space import Choice, Parameter, Space, read_space
from sweeptune.study.tpe import LENT_AT_ALL, Lent, Ordered, Tpe, good_share
from sweeptune.tracking.record import STATUSES
from tests.study.helpers import GRID, METHODS, SPACE, create, line, measure

pytestmark = pytest.mark.slow

TPE = StudyConfig(trials=100, sampler="tpe")


def one_slot(
    study: optuna.Study, settings: StudyConfig, until: int, lines: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Ask and tell one trial after another, up to a total."""
    while len(lines) < until:
        trial, point = ask(study, SPACE, settings, 7, next_method(lines, [], METHODS, settings.allocate))
        lines.append(line(trial.number, point))
        tell(study, trial.number, lines[-1], settings)
    return lines


@pytest.mark.parametrize("allocate", ["equal", "joint"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_a_study_in_pieces_asks_what_an_unbroken_one_asks(tmp_path: Path, sampler: str, allocate: str) -> None:
    settings = replace(TPE, sampler=sampler, allocate=allocate)
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = one_slot(create(tmp_path / "whole", settings), settings, 40, [])
    pieces: list[dict[str, Any]] = []
    for until in (1, 7, 23, 40):
        one_slot(create(tmp_path / "pieces", settings), settings, until, pieces)
    assert [each["params"] for each in pieces] == [each["params"] for each in whole]
    assert len({repr(each["params"]) for each in whole}) == 40, "draws are repeated"


@pytest.mark.parametrize("drawn", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("allocate", ["equal", "joint"])
@pytest.mark.parametrize("before", [2, 30])
def test_a_trial_that_died_while_asking_gets_the_same_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: int, allocate: str, before: int
) -> None:
    settings = replace(TPE, allocate=allocate)
    study = create(tmp_path, settings)
    lines = one_slot(study, settings, before, [])
    method = next_method(lines, [], METHODS, allocate)
    journal = (tmp_path / "study.journal").read_bytes()
    _, expected = ask(study, SPACE, settings, 7, method)
    (tmp_path / "study.journal").write_bytes(journal)

    study = create(tmp_path, settings)
    write = study._storage.set_trial_param
    left = iter(range(drawn))

    def dying(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(study._storage, "set_trial_param", dying)
    if drawn < len(expected):
        with pytest.raises(KeyboardInterrupt):
            ask(study, SPACE, settings, 7, method)
    else:
        ask(study, SPACE, settings, 7, method)
    study = create(tmp_path, settings)
    assert study.get_trials()[before].state == TrialState.RUNNING
    trial, point = sample_again(study, before, SPACE, settings, 7, method)
    assert (trial.number, point) == (before, expected)
    assert len(study.get_trials()) == before + 1


def test_another_seed_or_number_draws_something_else(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    points = [ask(study, SPACE, TPE, seed, "lora")[1] for seed in (0, 0, 1)]
    assert len({repr(point) for point in points}) == 3


def test_a_method_is_drawn_its_own_parameters_only(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    trial, point = ask(study, SPACE, TPE, 0, "full")
    assert point.keys() == {"method", "optim.lr"} and point["method"] == "full"
    assert trial.params == {"method": "full", "optim.lr[full]": point["optim.lr"]}
    _, point = ask(study, SPACE, TPE, 0, "dora")
    assert point.keys() == {"method", "optim.lr", "method.rank", "method.alpha"} and point["method"] == "dora"


def test_tpe_finds_each_methods_learning_rate(tmp_path: Path) -> None:
    """The planted best is 1e-4 for full and 1e-3 for the others, inside ranges of three decades."""

    def misses(sampler: str) -> float:
        (tmp_path / sampler).mkdir()
        settings = replace(TPE, sampler=sampler)
        lines = one_slot(create(tmp_path / sampler, settings), settings, 120, [])
        late = [each for each in lines if each["number"] >= 60]
        best = {m: 1e-4 if m == "full" else 1e-3 for m in METHODS}
        return float(np.mean([abs(math.log10(each["params"]["optim.lr"] / best[each["method"]])) for each in late]))

    assert misses("tpe") < 0.6 * misses("random")


def test_what_does_not_fit_is_avoided(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    dead = []
    for _ in range(60):
        trial, point = ask(study, SPACE, TPE, 3, "lora")
        fits = point["method.rank"] < 32  # type: ignore[operator]
        dead.append(not fits)
        tell(study, trial.number, line(trial.number, point, "completed" if fits else "oom"), TPE)
    assert sum(dead[30:]) < 0.7 * 30 * 2 / 5


def test_a_grid_is_walked_by_number_behind_its_baselines(tmp_path: Path) -> None:
    settings = StudyConfig(baselines=True)
    assert chosen_sampler(GRID, settings) == "grid"
    assert chosen_sampler(GRID, replace(settings, trials=3)) == "tpe"
    assert chosen_sampler(SPACE, settings) == "tpe"
    study = create(tmp_path, settings)
    for point in GRID.baselines():
        ask_for(study, GRID, point)
    asked = [ask(study, GRID, settings, 0, "lora")[1] for _ in GRID.grid()]
    assert asked == GRID.grid() and len(asked) == 6
    assert [trial.params for trial in study.get_trials()[2:]] == asked
    with pytest.raises(ValueError, match="the grid has 6"):
        ask(study, GRID, settings, 0, None)
    assert sample_again(study, 4, GRID, settings, 0, None)[1] == asked[2]


def test_a_baseline_inside_the_space_teaches_the_sampler_and_one_outside_does_not(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    point = {"method": "lora", "optim.lr": 2e-4, "method.rank": 16, "method.alpha": 32}
    ask_for(study, SPACE, point)
    ask_for(study, SPACE, {**point, "method.rank": 5})
    ask_for(study, SPACE, {"method": "lora"})
    trials = study.get_trials()
    assert trials[0].params == {"method": "lora", "optim.lr[lora]": 2e-4, "method.rank": 16, "method.alpha": 32}
    assert [trial.number for trial in View(study, "lora").get_trials()] == [0]
    again = ask_for(study, SPACE, point, number=2)
    assert again.number == 2 and len(study.get_trials()) == 3


def test_lists_are_choices(tmp_path: Path) -> None:
    layers = Choice((["q_proj", "v_proj"], "all-linear"))
    space = Space((Parameter("method.target_modules", {"*": layers}, {}),), ("lora",))
    study = create(tmp_path, TPE)
    points = [ask(study, space, TPE, 0, None)[1]["method.target_modules"] for _ in range(12)]
    assert {repr(point) for point in points} == {"['q_proj', 'v_proj']", "'all-linear'"}


def test_the_shipped_space_is_searched(tmp_path: Path) -> None:
    space = read_space(["space=method_tradeoff"])
    study = create(tmp_path, TPE)
    seen = {}
    for number in range(24):
        method = space.methods[number % 4]
        trial, point = ask(study, space, TPE, 0, method)
        assert point["method"] == method and space.overrides(point)
        seen[method] = set(trial.params)
        tell(study, trial.number, line(trial.number, point), TPE)
    assert seen == {
        "full": {"method", "optim.lr[full]"},
        **{m: {"method", f"optim.lr[{m}]", "method.rank"} for m in ("lora", "qlora", "dora")},
    }


def test_states() -> None:
    told = {status: state_of(status).name for status in STATUSES}
    assert {status for status, state in told.items() if state == "COMPLETE"} == {"completed"}
    assert {status for status, state in told.items() if state == "PRUNED"} == {"pruned", "oom", "diverged", "timeout"}
    assert set(told.values()) == {"COMPLETE", "PRUNED", "FAIL"}


@pytest.mark.parametrize(
    ("status", "changes", "state", "constraints"),
    [
        ("completed", {}, "COMPLETE", {}),
        ("completed", {"constraints": {"peak_memory_gib": 0.5}}, "COMPLETE", {"peak_memory_gib": 0.5}),
        ("completed", {"values": {"eval_loss": None, "peak_memory_gib": 1.0}}, "FAIL", {}),
        ("completed", {"values": {"eval_loss": math.nan, "peak_memory_gib": 1.0}}, "FAIL", {}),
        ("oom", {}, "PRUNED", {"oom": 1.0}),
        ("diverged", {"constraints": {"peak_memory_gib": -1.0}}, "PRUNED", {"diverged": 1.0, "peak_memory_gib": -1.0}),
        ("timeout", {}, "PRUNED", {"timeout": 1.0}),
        ("pruned", {"pruned_by": {"by": [1]}}, "PRUNED", {}),
        ("crashed", {}, "FAIL", {}),
        ("lost", {}, "FAIL", {}),
        ("pruned", {"kind": "misfit", "constraints": {"peak_memory_gib": 2.0}}, "PRUNED", {"peak_memory_gib": 2.0}),
        ("invalid_config", {"kind": "misfit"}, "PRUNED", {"misfit": 1.0}),
        ("completed", {"kind": "duplicate"}, "PRUNED", {}),
    ],
)
def test_every_ending_is_told_and_telling_twice_changes_nothing(
    tmp_path: Path, status: str, changes: dict[str, Any], state: str, constraints: dict[str, float]
) -> None:
    study = create(tmp_path, TPE)
    trial, point = ask(study, SPACE, TPE, 0, "lora")
    ended = line(trial.number, point, status, **changes)
    for _ in range(2):
        tell(study, trial.number, ended, TPE)
        tell(create(tmp_path, TPE), trial.number, ended, TPE)
        frozen = study.get_trials()[0]
        assert (frozen.state.name, frozen.constraints) == (state, constraints)
    if state == "COMPLETE":
        assert frozen.values == list(measure(point).values())


def test_an_interrupted_tell_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(tmp_path, TPE)
    trial, point = ask(study, SPACE, TPE, 0, "lora")
    ended = line(trial.number, point, "oom", constraints={"peak_memory_gib": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tell(study, trial.number, ended, TPE)
    tell(create(tmp_path, TPE), trial.number, ended, TPE)
    frozen = create(tmp_path, TPE).get_trials()[0]
    assert frozen.state == TrialState.PRUNED and frozen.constraints == {"oom": 1.0, "peak_memory_gib": 1.0}


def test_directions() -> None:
    assert directions(["eval_loss", "tokens_per_s", "speed.mfu", "speed.step_ms", "peak_memory_gib"]) == [
        "minimize",
        "maximize",
        "maximize",
        "minimize",
        "minimize",
    ]


def test_the_method_with_the_fewest_tokens_is_next() -> None:
    def had(method: str, tokens: int, **changes: Any) -> dict[str, Any]:
        return line(next(numbers), {"method": method, "optim.lr": 1.0}, **{"tokens": tokens, **changes})

    numbers = iter(range(100))
    assert next_method([], [], ["b", "a"], "equal") == "b"
    assert next_method([], [], ["b", "a"], "joint") is None
    lines = [had("full", 1000), had("lora", 900)]
    assert next_method(lines, [], ["full", "lora"], "equal") == "lora"
    assert next_method(lines, [{"method": "lora", "tokens": 1000}], ["full", "lora"], "equal") == "full"
    assert next_method(lines, [], ["full", "lora", "dora"], "equal") == "dora"
    # The last line of a number counts.
    again = [*lines, {**lines[1], "tokens": 1100}]
    assert next_method(again, [], ["full", "lora"], "equal") == "full"
    # A pruned trial gives the rest of its tokens back to its method, a failed one does not.
    saved = [had("full", 1000), had("lora", 250, status="pruned", pruned_by={"by": [1]}), had("lora", 700)]
    assert next_method(saved, [], ["full", "lora"], "equal") == "lora"
    failed = [had("full", 1000), had("lora", 250, status="oom"), had("lora", 700)]
    assert next_method(failed, [], ["full", "lora"], "equal") == "full"
    # A proposal that was never tried costs nothing.
    untried = [had("full", 1000), had("lora", 0, status="pruned", kind="misfit")]
    assert next_method(untried, [], ["full", "lora"], "equal") == "lora"


def test_equal_allocation_is_equal_in_tokens() -> None:
    """Trials of different length, some pruned: no method is ahead by more than a trial."""
    draw = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for number in range(200):
        method = next_method(lines, [], METHODS, "equal")
        assert method is not None
        early = draw.random() < 0.5
        changes = {"status": "pruned", "pruned_by": {"by": [0]}} if early else {}
        tokens = int(draw.integers(200, 500)) if early else 1000
        lines.append(line(number, {"method": method, "optim.lr": 1.0}, **{"tokens": tokens, **changes}))
        had = Counter({m: 0 for m in METHODS})
        for each in lines:
            had[each["method"]] += each["tokens"]
        assert max(had.values()) - min(had.values()) <= 1000


def test_a_method_with_nothing_new_is_left_out() -> None:
    lines = [line(n, {"method": "full"}, "pruned", kind="misfit") for n in range(EXHAUSTED)]
    assert exhausted(lines[1:], METHODS) == set()
    assert exhausted(lines, METHODS) == {"full"}
    assert next_method(lines, [], ["full", "lora"], "equal") == "lora"
    assert next_method(lines, [], ["full"], "equal") == "full"


def fill(
    study: optuna.Study, count: int, front_only: bool, ranks: tuple[Any, ...] = (4, 8, 16, 32, 64), key: str = "method"
) -> None:
    """Trials as another process would have told them; on the front all of them, or a few."""
    draw = np.random.default_rng(0)
    for number in range(count):
        method = METHODS[number % 4]
        params: dict[str, Any] = {key: method, f"optim.lr[{method}]": 10 ** draw.uniform(-5, -3)}
        domains: dict[str, Any] = {
            key: CategoricalDistribution(METHODS),
            f"optim.lr[{method}]": FloatDistribution(1e-6, 1e-3, log=True)
            if method == "full"
            else FloatDistribution(1e-5, 1e-2, log=True),
        }
        if method != "full":
            params |= {"method.rank": ranks[draw.integers(5)], "method.alpha": int(draw.integers(8, 65))}
            domains |= {
                "method.rank": CategoricalDistribution(ranks),
                "method.alpha": optuna.distributions.IntDistribution(8, 64),
            }
        x, y = draw.random(2)
        study.add_trial(create_trial(params=params, distributions=domains, values=[x, 1 - x if front_only else y]))


@pytest.mark.parametrize("front_only", [False, True])
@pytest.mark.parametrize("method", ["lora", None])
def test_asking_and_telling_stay_fast_with_2000_trials(tmp_path: Path, method: str | None, front_only: bool) -> None:
    study = create(tmp_path, TPE)
    fill(study, 2000, front_only)
    asking, telling = [], []
    for _ in range(5):
        start = time.process_time()
        trial, point = ask(study, SPACE, TPE, 0, method)
        middle = time.process_time()
        tell(study, trial.number, line(trial.number, point), TPE)
        asking.append(middle - start)
        telling.append(time.process_time() - middle)
    assert min(asking) < 0.1 and min(telling) < 0.1, (asking, telling)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("front_only", [False, True])
def test_the_fast_tpe_answers_as_optunas(tmp_path: Path, front_only: bool) -> None:
    study = create(tmp_path, TPE)
    fill(study, 150, front_only, ranks=("4", "8", "16", "32", "64"), key="arm")
    options: dict[str, Any] = {"seed": 5, "multivariate": True, "group": True, "constant_liar": True}
    asked = []
    for kind in (TPESampler, Tpe):
        study.sampler = kind(**options)
        trial = study.ask()
        point = {"arm": trial.suggest_categorical("arm", METHODS)}
        point["rank"] = trial.suggest_categorical("method.rank", ["4", "8", "16", "32", "64"])
        point["alpha"] = trial.suggest_int("method.alpha", 8, 64)
        point["lr"] = trial.suggest_float("optim.lr[lora]", 1e-5, 1e-2, log=True)
        point["new"] = trial.suggest_float("new", 0, 1)
        asked.append(point)
        study.tell(trial, state=TrialState.FAIL)
    assert asked[0] == asked[1]


def test_neighbours_in_a_list_of_numbers_are_alike(tmp_path: Path) -> None:
    """Of 9 learning rates the middle one is untried; its neighbours were good, the rest was not."""
    rates = tuple(10.0 ** (-exponent) for exponent in (3, 9, 1, 5, 7, 2, 8, 4, 6))
    domain = Ordered(rates)
    assert [domain.to_external_repr(domain.to_internal_repr(rate)) for rate in rates] == list(rates)
    assert sorted(rates, key=domain.to_internal_repr) == sorted(rates)
    middle, near = sorted(rates)[4], (sorted(rates)[3], sorted(rates)[5])
    study = optuna.create_study()
    for rate in [*rates, *rates]:
        if rate != middle:
            told = {"params": {"lr": rate}, "distributions": {"lr": CategoricalDistribution(rates)}}
            study.add_trial(create_trial(**told, value=1.0 if rate in near else 2.0))

    def asked(kind: type[TPESampler]) -> int:
        found = 0
        for seed in range(40):
            study.sampler = kind(seed=seed, multivariate=True)
            trial = study.ask()
            found += trial.suggest_categorical("lr", rates) == middle
            study.tell(trial, state=TrialState.FAIL)
        return found

    assert asked(Tpe) > 2 * asked(TPESampler)


def test_a_few_trials_have_several_good_ones() -> None:
    count = good_share(optuna.create_study(directions=["minimize"] * 2))
    assert [count(n) for n in (0, 5, 10, 40, 60, 100, 2000)] == [0, 1, 2, 8, 8, 10, 200]
    count = good_share(optuna.create_study())
    assert [count(n) for n in (5, 10, 40, 100, 2000)] == [1, 2, 8, 10, 25]


def test_only_the_newest_and_the_front_are_seen() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    values = [(1.0, 5.0), (2.0, 9.0), (3.0, 8.0), (0.5, 0.1), (0.0, 99.0), (9.0, 9.0), (9.0, 1.0), (8.0, 8.0)]
    for number, pair in enumerate(values):
        study.add_trial(create_trial(values=pair, constraints={"oom": 1.0} if number == 4 else None))
    study.ask()
    kept = newest_and_front(study.get_trials(), study.directions, seen=3)
    assert [trial.number for trial in kept] == [0, 1, 3, 5, 6, 7, 8], "4 is infeasible, 2 is beaten by 1"
    assert newest_and_front(study.get_trials(), study.directions) == study.get_trials()
    pruned = optuna.create_study(directions=["minimize", "minimize"])
    for _ in range(5):
        pruned.add_trial(create_trial(state=TrialState.PRUNED))
    assert [t.number for t in newest_and_front(pruned.get_trials(), pruned.directions, seen=2)] == [3, 4]


def test_front() -> None:
    draw = np.random.default_rng(1)
    values = draw.integers(0, 12, size=(80, 3)).astype(float)
    plain = {tuple(row) for row in values if not any((other <= row).all() and (other < row).any() for other in values)}
    found = front(values)
    assert {tuple(values[i]) for i in found} == plain and len(found) == len(plain)


def test_a_search_inside_one_method_starts_early(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    one_slot(study, TPE, 4 * STARTUP_OF_A_METHOD, [])
    trial, _ = ask(study, SPACE, TPE, 7, "lora")
    assert "tpe:relative_params:0" in study.get_trials()[trial.number].system_attrs


RANGES: dict[str, Any] = {
    "rank": CategoricalDistribution((4, 8, 16, 32, 64)),
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
}


def add(study: optuna.Study, method: str, rank: int, lr: float, loss: float, **more: Any) -> None:
    """A finished trial of a method."""
    params = {"method": method, "method.rank": rank, f"optim.lr[{method}]": lr}
    domains = {
        "method": CategoricalDistribution(METHODS),
        "method.rank": RANGES["rank"],
        f"optim.lr[{method}]": RANGES["lr"],
    }
    study.add_trial(
        create_trial(params=params, distributions=domains | more.pop("ranges", {}), values=[loss, 1.0], **more)
    )


def test_methods_with_the_same_settings_tell_each_other_where_to_look(tmp_path: Path) -> None:
    """LoRA's good ranks are known, of QLoRA two bad ones: it is searched where LoRA is good."""
    draw = np.random.default_rng(0)
    told, alone = create(tmp_path, TPE), optuna.create_study(directions=["minimize"] * 2)
    for _ in range(30):
        rank = int(draw.choice((4, 8, 16, 32, 64)))
        add(told, "lora", rank, 10 ** draw.uniform(-5, -2), abs(math.log2(rank / 32)))
    found = {}
    for name, study in (("told", told), ("alone", alone)):
        add(study, "qlora", 4, 2e-5, 9.0)
        add(study, "qlora", 8, 5e-5, 8.0)
        found[name] = 0
        for number in range(30):
            trial, point = ask(study, SPACE, TPE, number, "qlora")
            found[name] += point["method.rank"] == 32
            study.tell(trial, state=TrialState.FAIL)
    assert found["told"] > 20 > 10 > found["alone"], found


def test_what_is_not_lent(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    add(study, "lora", 4, 1e-3, 1.0)
    add(study, "lora", 8, 1e-3, 2.0)
    add(study, "lora", 64, 1e-3, 0.1, constraints={"peak_memory_gib": 2.0})
    add(study, "dora", 16, 1e-3, 1.0, ranges={"optim.lr[dora]": FloatDistribution(1e-4, 1e-2, log=True)})
    space = {"method.rank": RANGES["rank"], "optim.lr[qlora]": RANGES["lr"]}
    lent = [params for each in Lent.by(View(study, "qlora"), "qlora") for params in each.told(space, True)]
    rest = [params for each in Lent.by(View(study, "qlora"), "qlora") for params in each.told(space, False)]
    assert lent == [{"method.rank": 4, "optim.lr[qlora]": 1e-3}], "not what broke a limit, nor from other ranges"
    assert rest == [{"method.rank": 8, "optim.lr[qlora]": 1e-3}]
    for _ in range(LENT_AT_ALL):
        add(study, "qlora", 4, 1e-3, 1.0)
    assert not Lent.by(View(study, "qlora"), "qlora"), "it knows enough by itself"


def test_the_views_trials_are_all_that_a_sampler_sees(tmp_path: Path) -> None:
    study = create(tmp_path, TPE)
    one_slot(study, TPE, 12, [])
    view = View(study, "qlora")
    assert {t.params["method"] for t in view.get_trials()} == {"qlora"}
    assert view.study_name == study.study_name
    assert isinstance(study.sampler, Seeded)


def test_a_failure_is_charged_one_trial_and_not_a_baselines_seeds() -> None:
    lines = [
        {"number": 0, "kind": "baseline", "method": "full", "status": "completed", "tokens": 3000, "seeds": [0, 1, 2]},
        {"number": 1, "kind": "baseline", "method": "lora", "status": "completed", "tokens": 3000, "seeds": [0, 1, 2]},
        {"number": 2, "kind": "trial", "method": "full", "status": "oom", "tokens": 0, "seeds": [0]},
        {"number": 3, "kind": "trial", "method": "lora", "status": "completed", "tokens": 1000, "seeds": [0]},
    ]
    lines = [{"pruned_by": None, **line} for line in lines]
    assert next_method(lines, [{"method": "full", "tokens": None}], ["full", "lora"], "equal") == "lora"
    assert next_method(lines, [{"method": "lora", "tokens": None}], ["full", "lora"], "equal") == "full"
