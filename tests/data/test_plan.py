"""A step is a contract: decided by data, seed and tokens per step, and by nothing else."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import TrainConfig
from sweeptune.data.pack import Packs
from sweeptune.data.plan import Step, eval_batches, hash_plan, hash_rows, micro_batches, plan_steps
from tests.data.helpers import data_config, ids, rows_of, store_of, train_config


def mixed(count: int, longest: int = 40) -> list:
    draw = random.Random(1)
    return rows_of(*(draw.randint(2, longest) for _ in range(count)))


def planned(rows: list, train: TrainConfig, seed: int, **data) -> list[Step]:
    return plan_steps(rows, data_config(**data), train, seed)


def packs_of(rows: list) -> list[tuple]:
    """Each row a pack of its own."""
    return [(row,) for row in rows]


def dealable(deal, rows: list) -> list:
    return packs_of(rows) if deal is micro_batches else rows


def in_order(batches: list) -> list:
    """The rows of batches, whether they hold rows or packs."""
    return [row for batch in batches for item in batch for row in (item if isinstance(item, tuple) else (item,))]


def test_a_step_closes_when_the_next_row_would_exceed_it():
    rows = mixed(200)
    steps = planned(rows, train_config(100, epochs=1), seed=0)
    order = [i for step in steps for i in step.rows]
    for step, following in pairwise(steps):
        assert step.tokens <= 100 < step.tokens + rows[following.rows[0]].length
    assert sorted(order) == list(range(200))
    assert [step.tokens for step in steps] == [sum(rows[i].length for i in step.rows) for step in steps]
    assert [step.loss_tokens for step in steps] == [sum(rows[i].loss_tokens for i in step.rows) for step in steps]


def test_a_step_may_be_filled_to_the_last_token():
    assert [step.tokens for step in planned(rows_of(50, 50, 50, 50), train_config(100, epochs=1), 0)] == [100, 100]


def test_steps_of_equal_rows_by_hand():
    steps = planned(rows_of(40, 40, 40, 40, 40, learned=3), train_config(100, epochs=1), 0)
    assert [(len(s.rows), s.tokens, s.loss_tokens, s.epoch) for s in steps] == [
        (2, 80, 6, 0.4),
        (2, 80, 6, 0.8),
        (1, 40, 3, 1.0),
    ]


def test_each_epoch_sees_each_row_once_and_in_another_order():
    rows = mixed(50)
    order = [i for step in planned(rows, train_config(64, epochs=3), 7) for i in step.rows]
    epochs = [order[at : at + 50] for at in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_epochs_follow_each_other_without_a_break_in_a_step():
    steps = planned(rows_of(40, 40, 40), train_config(80, epochs=2), 0)
    assert [step.tokens for step in steps] == [80, 80, 80]
    assert [step.epoch for step in steps] == pytest.approx([2 / 3, 4 / 3, 2])


@pytest.mark.parametrize(("epochs", "seen"), [(0.5, 10), (0.26, 5), (1.5, 30), (2.0, 40), (0.001, 1)])
def test_fractions_of_an_epoch(epochs, seen):
    steps = planned(mixed(20), train_config(64, epochs=epochs), 0)
    assert sum(len(step.rows) for step in steps) == seen
    assert steps[-1].epoch == pytest.approx(seen / 20)


def test_a_longer_plan_begins_with_the_shorter_one():
    rows = mixed(60)
    long = planned(rows, train_config(64, max_steps=40), 3)
    assert len(long) == 40
    assert planned(rows, train_config(64, max_steps=7), 3) == long[:7]


def test_max_tokens_ends_with_the_last_step_that_fits():
    rows = mixed(60)
    full = planned(rows, train_config(64, epochs=4), 3)
    budget = sum(step.tokens for step in full[:9])
    assert planned(rows, train_config(64, max_tokens=budget), 3) == full[:9]
    assert planned(rows, train_config(64, max_tokens=budget - 1), 3) == full[:8]
    assert planned(rows, train_config(64, max_tokens=budget + full[9].tokens - 1), 3) == full[:9]


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 2, "max_tokens": 400, "epochs": 9}, 2),
        ({"max_steps": 9, "max_tokens": 399, "epochs": 9}, 3),
        ({"max_steps": 9, "max_tokens": 900, "epochs": 0.5}, 5),
        ({"max_steps": 9, "max_tokens": 500, "epochs": 0.5}, 5),
    ],
)
def test_the_first_limit_reached_ends_the_run(limits, steps):
    assert len(planned(rows_of(*[50] * 20), train_config(100, **limits), 0)) == steps


def test_seed_decides_the_order_and_nothing_else():
    rows = mixed(80)
    plan = planned(rows, train_config(90, epochs=1), 5)
    assert plan == planned(rows, train_config(90, epochs=1), 5)
    others = [planned(rows, train_config(90, epochs=1), seed) for seed in range(4)]
    assert len({hash_plan(rows, other) for other in [*others, plan]}) == 5
    assert [Counter(i for step in other for i in step.rows) for other in others] == [Counter(range(80))] * 4


def test_the_order_is_the_same_on_every_machine():
    rows = rows_of(*[10] * 8)
    assert planned(rows, train_config(80, epochs=1), 0)[0].rows == (7, 6, 1, 5, 0, 4, 2, 3)


def test_a_row_longer_than_a_step_names_both_ways_out():
    with pytest.raises(ConfigError, match=r"tokens_per_step=100.*longest row has 120 tokens") as error:
        planned(rows_of(30, 120, 50), train_config(100, epochs=1), 0)
    assert "train.tokens_per_step=120" in str(error.value)
    assert "data.max_length=100" in str(error.value)


def test_without_a_limit_the_run_would_never_end():
    with pytest.raises(ConfigError, match=r"train\.max_steps, train\.max_tokens or train\.epochs"):
        planned(rows_of(5), train_config(100), 0)


def test_a_budget_smaller_than_a_step():
    with pytest.raises(ConfigError, match=r"max_tokens=99: .*takes 100 tokens; set train\.max_tokens=100"):
        planned(rows_of(50, 50), train_config(100, max_tokens=99), 0)


def test_planning_grows_with_the_rows_not_with_their_square():
    def seconds(count: int) -> float:
        rows = rows_of(*[5] * count)
        begin = time.process_time()
        planned(rows, train_config(500, epochs=1), 0)
        return time.process_time() - begin

    seconds(1_000)
    assert seconds(60_000) < 60 * max(seconds(6_000), 0.005)  # ten times the rows: a square would take 100 times


@pytest.mark.parametrize("deal", [micro_batches, eval_batches])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_every_row_goes_to_exactly_one_rank(deal, world, size, count):
    rows = mixed(count)
    dealt = [deal(dealable(deal, rows), size, rank=rank, world=world) for rank in range(world)]
    batches = [batch for own in dealt for batch in own]
    assert sorted(ids(in_order(batches))) == ids(rows)
    assert all(1 <= len(batch) <= size for batch in batches)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_the_longest_rows_come_first_and_rows_of_like_length_together():
    batches = micro_batches(packs_of(rows_of(3, 9, 5, 9, 1, 4)), 2)
    assert [[row.length for [row] in batch] for batch in batches] == [[9, 9], [5, 4], [3, 1]]


@pytest.mark.parametrize("deal", [micro_batches, eval_batches])
def test_batches_depend_on_the_rows_and_not_on_their_order(deal):
    rows = mixed(30, longest=5)  # many of equal length
    shuffled = random.Random(0).sample(rows, 30)
    assert deal(dealable(deal, rows), 4) == deal(dealable(deal, shuffled), 4)


def test_a_step_is_dealt_row_by_row_so_that_ranks_have_like_lengths():
    rows = mixed(22)
    whole = in_order(micro_batches(packs_of(rows), 4))
    shares = [in_order(micro_batches(packs_of(rows), 4, rank, 2)) for rank in (0, 1)]
    assert shares == [whole[0::2], whole[1::2]]


def test_an_eval_batch_is_the_same_on_one_rank_and_on_many():
    rows = mixed(22)
    shares = [eval_batches(rows, 4, rank=rank, world=2) for rank in (0, 1)]
    assert shares == [eval_batches(rows, 4)[r::2] for r in (0, 1)]


@pytest.mark.parametrize(
    ("tokens", "lengths"),
    [
        (None, [[9, 8, 5, 4], [4, 3, 1]]),
        (10, [[9], [8], [5, 4], [4, 3], [1]]),
        (16, [[9], [8, 5], [4, 4, 3, 1]]),
        (1, [[9], [8], [5], [4], [4], [3], [1]]),  # a longer row goes alone
    ],
)
def test_a_batch_of_evaluation_has_a_limit_of_positions_too(tokens, lengths):
    batches = eval_batches(rows_of(3, 9, 5, 4, 8, 1, 4), 4, tokens)
    assert [[row.length for row in batch] for batch in batches] == lengths


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [replace(rows[0], id="other"), *rows[1:]],
        lambda rows: [replace(rows[0], input_ids=[99, *rows[0].input_ids[1:]]), *rows[1:]],
        lambda rows: [replace(rows[0], loss_mask=[*rows[0].loss_mask[:-2], True, True]), *rows[1:]],
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
    ],
    ids=["id", "token", "mask", "order", "fewer", "more"],
)
def test_the_hash_of_rows_sees(change):
    rows = rows_of(4, 5, 6)
    assert hash_rows(rows) == hash_rows(rows_of(4, 5, 6))
    assert hash_rows(change(rows)) != hash_rows(rows)


def test_the_hash_of_a_plan_sees_order_and_step_ends():
    rows = rows_of(10, 10, 10, 10)
    [whole] = planned(rows, train_config(40, epochs=1), 0)
    halves = [replace(whole, packs=whole.packs[:2]), replace(whole, packs=whole.packs[2:])]
    turned = replace(whole, packs=Packs(list(whole.packs)[::-1]))
    renamed = [replace(row, id=f"new {row.id}") for row in rows]
    shared = replace(whole, packs=Packs([[piece for pack in whole.packs for piece in pack]]))
    pieces = replace(whole, packs=Packs([*list(whole.packs)[:-1], [(whole.rows[-1], 0, 9)]]))
    hashes = [hash_plan(rows, plan) for plan in ([whole], halves, halves[:1], [turned], [shared], [pieces])]
    assert len({*hashes, hash_plan(renamed, [whole])}) == 7


@pytest.mark.parametrize(
    ("seed", "limits", "steps", "name"),
    [
        (0, {"epochs": 1}, 53, "bbb92a785a5d490a"),
        (3, {"max_steps": 40}, 40, "ad84f4064736ae5d"),
        (5, {"epochs": 2.3, "max_tokens": 5000}, 57, "87440fe1e2f9eff7"),
    ],
)
def test_plans_without_packing_are_those_of_the_first_release(seed, limits, steps, name):
    """Records of older runs stay comparable: what they learned, in which order, has the same name."""
    rows = mixed(200)
    plan = planned(rows, train_config(100, **limits), seed)
    assert (len(plan), hash_plan(rows, plan)) == (steps, name)


def test_a_plan_over_stored_rows_has_the_name_of_the_same_plan_over_lists(tmp_path):
    rows = mixed(60)
    stored = store_of(tmp_path / "store", rows)
    for packing in ("none", "pack", "split"):
        plan = planned(rows, train_config(100, epochs=2), seed=3, packing=packing, max_length=50)
        assert planned(stored, train_config(100, epochs=2), seed=3, packing=packing, max_length=50) == plan
        assert hash_plan(stored, plan) == hash_plan(rows, plan)
