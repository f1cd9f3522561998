from __future__ import annotations

from dataclasses import replace

import pytest

from sweeptune.config.compose import compose
from sweeptune.config.read_space import read_space
from sweeptune.config.schema import StudyConfig
from sweeptune.config.study_rules import pruning_trouble
from sweeptune.study.rungs import Curve, loss_at, prune, spread

ON = StudyConfig(prune=True)


def curve(number: int, loss: float, **changes: object) -> Curve:
    """A curve with one rung at 1,000 tokens."""
    plain = Curve(number, "lora", "cosine", f"c{number}", 0, ((0, 5.0), (1000, loss)), True, False)
    return replace(plain, **changes)  # type: ignore[arg-type]


LUCK = [curve(90, 2.00, configuration="base"), curve(91, 2.025, configuration="base", seed=1)]
"""Two seeds: standard deviation 0.0177, so that 0.0354 is beyond luck."""
PEERS = [*LUCK, curve(1, 2.00), curve(2, 2.01), curve(3, 2.02)]


def test_clearly_behind_is_stopped_and_told_by_whom() -> None:
    found = prune(curve(5, 2.06, finished=False), [*PEERS, curve(4, 2.5)], ON)
    assert found is not None
    assert (found.rung_tokens, found.loss, found.by) == (1000, 2.06, (1, 90, 2, 3))
    assert found.spread == pytest.approx(0.025 / 2**0.5)


@pytest.mark.parametrize(
    ("candidate", "others"),
    [
        (curve(5, 2.04), PEERS),  # only two are better by twice the spread
        (curve(5, 2.06, baseline=True), PEERS),
        (curve(5, 2.06, method="dora"), PEERS),
        (curve(5, 2.06, schedule="linear"), PEERS),
        (curve(5, 2.06), [replace(each, finished=False) for each in PEERS]),
        (curve(5, 2.06), [each for each in PEERS if each.number < 90]),  # no configuration with two seeds
        (curve(5, 2.06, losses=((0, 5.0), (900, 2.06))), PEERS),  # between the others' evaluations: 2.30
        (curve(5, 2.06, losses=((0, 9.0),)), PEERS),
        (curve(5, 2.06, losses=()), PEERS),
        (curve(5, float("nan")), PEERS),
        (curve(5, 2.06, costs=(1.0,)), [replace(each, costs=(1.1,)) for each in PEERS]),  # the better ones cost more
    ],
)
def test_everything_else_runs_on(candidate: Curve, others: list[Curve]) -> None:
    assert prune(replace(candidate, finished=False), others, ON) is None


def test_seeds_whose_rungs_lie_elsewhere_have_a_spread() -> None:
    """Of a short run one step is more than 2 % of the tokens, and where it ends depends on the seed."""
    other = curve(91, 2.0, configuration="base", seed=1, losses=((0, 5.0), (900, 2.15), (1200, 1.85)))  # 2.05 at 1,000
    luck = [curve(90, 2.00, configuration="base"), other]
    assert spread(luck, "lora", "cosine", 1000) == pytest.approx(0.05 / 2**0.5)
    found = prune(curve(5, 2.2, finished=False), [*luck, *PEERS[2:]], ON)
    assert found is not None and found.by == (1, 90, 2, 3, 91)


def test_only_where_it_is_asked_for() -> None:
    assert prune(curve(5, 2.06), PEERS, StudyConfig()) is None


def test_equal_costs_are_no_shelter() -> None:
    candidate = curve(5, 2.06, costs=(1.0, -500.0))
    assert prune(candidate, [replace(each, costs=(1.009, -496.0)) for each in PEERS], ON) is not None
    assert prune(candidate, [replace(each, costs=(1.0, -470.0)) for each in PEERS], ON) is None


def test_seeds_of_one_trial_are_one_trial() -> None:
    seeds = [curve(1, 2.00 + seed / 100, configuration="c1", seed=seed) for seed in range(6)]
    assert prune(curve(5, 2.9), [*seeds, curve(2, 2.0)], ON) is None
    found = prune(curve(5, 2.9, seed=3), [*seeds, curve(2, 2.0), curve(3, 2.01)], ON)
    assert found is not None and found.by == (2, 3, 1), "trial 1 counts with the candidate's own seed"


def test_between_evaluations_the_loss_is_on_the_line_between_them() -> None:
    one = curve(1, 2.0, losses=((0, 5.0), (985, 2.2), (1005, 2.1), (2000, 1.9)))
    assert loss_at(one, 1000) == 2.1
    assert loss_at(one, 1030) == pytest.approx(2.1 - 0.2 * 25 / 995)
    assert loss_at(one, 492) == pytest.approx(5.0 - 2.8 * 492 / 985)
    assert loss_at(one, 2050) is None


def test_spread_is_pooled_over_configurations_inside_the_method() -> None:
    curves = [
        *(curve(n, loss, configuration="a", seed=n) for n, loss in enumerate((2.0, 2.1, 2.2))),
        *(curve(n, loss, configuration="b", seed=n) for n, loss in enumerate((3.0, 3.4))),
        curve(9, 9.0, configuration="c"),
        *(curve(n, loss, configuration="a", seed=n, method="full") for n, loss in enumerate((1.0, 5.0))),
    ]
    # Sums of squares 0.02 and 0.08 over 2 + 1 degrees of freedom.
    assert spread(curves, "lora", "cosine", 1000) == pytest.approx((0.10 / 3) ** 0.5)
    # One degree of freedom of its own is too few: 0.10 and 8 over 3 + 1.
    assert spread(curves, "full", "cosine", 1000) == pytest.approx((8.10 / 4) ** 0.5)
    # A method without repeated configurations borrows from all.
    assert spread(curves, "dora", "cosine", 1000) == pytest.approx((8.10 / 4) ** 0.5)
    assert spread(curves, "lora", "linear", 1000) is None
    assert spread(curves, "lora", "cosine", 1100) is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optim.lr=1e-4,1e-3"], "With study.replicates=1 every trial has one seed"),
        (["optim.lr=1e-4,1e-3"], "Set study.baselines=true or study.replicates=2"),
        (["seed=0,1", "study.replicates=3"], "Every trial of a grid over the seed has one seed"),
        (["optim.lr=1e-4,1e-3", "study.prune=false"], None),
        (["optim.lr=1e-4,1e-3", "study.baselines=true"], None),
        (["optim.lr=1e-4,1e-3", "study.replicates=2"], None),
        (["seed=0,1", "study.baselines=true"], None),
        (["seed=choice(3)", "study.baselines=true"], "Do not sweep the seed"),
    ],
)
def test_where_nothing_has_several_seeds_pruning_is_said_to_be_impossible(
    overrides: list[str], says: str | None
) -> None:
    settings = compose([text for text in ["study.prune=true", *overrides] if text.startswith("study.")]).study
    trouble = pruning_trouble(read_space(overrides), settings)
    assert trouble is None if says is None else trouble is not None and says in trouble
