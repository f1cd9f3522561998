"""Packing fills rows, loses nothing, and depends on lengths, settings and seed alone."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sweeptune.config.errors import ConfigError
from sweeptune.data.collate import IGNORED, collate, collate_packs
from sweeptune.data.pack import Packs, Piece, best_fit, cut_equal, pack_whole
from sweeptune.data.plan import Step, cut, hash_plan, micro_batches, plan_steps, samples
from sweeptune.data.tokenize import Row
from tests.data.helpers import data_config, rows_of, train_config

CPU = torch.device("cpu")
SHARED = Path(os.environ.get("SWEEPTUNE_SHARED") or Path(__file__).resolve().parents[3] / "shared")
GSM8K = SHARED / "data" / "gsm8k" / "train.jsonl"


def lognormal(count: int, longest: int = 2048) -> list[int]:
    """Lengths like those of instruction data: most short, a few long."""
    draw = random.Random(3)
    return [min(longest, max(2, int(draw.lognormvariate(5.2, 0.6)))) for _ in range(count)]


def filled(packs: list, size: int) -> float:
    """Share of the positions of rows of ``size`` that hold tokens."""
    return sum(end - begin for pack in packs for _, begin, end in pack) / (size * len(packs))


def planned(rows: list[Row], packing: str, seed: int = 0, size: int = 64, **limits) -> list[Step]:
    data = data_config(packing=packing, max_length=size)
    return plan_steps(rows, data, train_config(4 * size, **(limits or {"epochs": 1})), seed)


def mixed(count: int, longest: int = 60) -> list[Row]:
    draw = random.Random(1)
    return rows_of(*(draw.randint(2, longest) for _ in range(count)))


def test_every_sample_is_in_one_pack_whole_and_none_is_overfull():
    lengths = lognormal(3000)
    packs = list(pack_whole(range(3000), lengths, 2048, "seed", window=1000))
    assert sorted(piece.row for pack in packs for piece in pack) == list(range(3000))
    assert all((piece.begin, piece.end) == (0, lengths[piece.row]) for pack in packs for piece in pack)
    assert all(sum(piece.end for piece in pack) <= 2048 for pack in packs)


def test_at_least_97_percent_of_the_positions_are_filled():
    lengths = lognormal(8000)
    packs = list(pack_whole(range(8000), lengths, 2048, "seed"))
    assert filled(packs, 2048) >= 0.97
    fewest = math.ceil(sum(lengths) / 2048)
    assert fewest <= len(packs) <= 1.01 * fewest


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not beside the repository (../shared/data)")
@pytest.mark.parametrize("characters_a_token", [2.5, 3.0, 3.6])
def test_gsm8k_at_2048_is_filled_to_97_percent(characters_a_token):
    """By its texts' lengths, so that the test needs no tokenizer; whatever it is, lengths are near these."""
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    lengths = [int(len(row["question"] + row["answer"]) / characters_a_token) + 20 for row in rows]
    packs = list(pack_whole(range(len(rows)), lengths, 2048, "seed"))
    assert filled(packs, 2048) >= 0.97


def test_best_fit_by_hand():
    # 7 opens a bin, 6 another; 3 fits best beside 7 (nothing left), 3 then beside 6, 1 beside both of these.
    assert best_fit([3, 7, 1, 6, 3], 10) == [[1, 0], [3, 4, 2]]


def test_best_fit_is_the_one_that_looks_at_every_bin():
    def plain(lengths: list[int], size: int) -> list[int]:
        left: list[int] = []
        for length in sorted(lengths, reverse=True):
            fitting = [i for i, room in enumerate(left) if room >= length]
            best = min(fitting, key=lambda i: left[i], default=None)
            if best is None:
                left.append(size - length)
            else:
                left[best] -= length
        return sorted(left)

    draw = random.Random(0)
    for _ in range(50):
        size = draw.randint(1, 70)
        lengths = [draw.randint(1, size) for _ in range(draw.randint(1, 60))]
        bins = best_fit(lengths, size)
        assert sorted(size - sum(lengths[i] for i in found) for found in bins) == plain(lengths, size)


def test_packing_grows_with_the_rows_not_with_their_square():
    def seconds(count: int) -> float:
        lengths = lognormal(count)
        begin = time.process_time()
        list(pack_whole(range(count), lengths, 2048, "seed", window=count))
        return time.process_time() - begin

    seconds(1000)
    # The least of three: beside other tests one may take twice its time.
    large, small = (min(seconds(count) for _ in range(3)) for count in (40_000, 4_000))
    assert large < 50 * max(small, 0.004)


def test_a_sample_longer_than_a_row_names_the_ways_out():
    with pytest.raises(ConfigError, match=r"70 tokens.*data.max_length=64; set data.on_long_row=split, drop"):
        planned(rows_of(10, 70), "pack")


def test_the_order_does_not_follow_the_length():
    lengths = lognormal(8000)
    packs = list(pack_whole(range(8000), lengths, 2048, "seed"))
    longest = [max(piece.end for piece in pack) for pack in packs]
    half = len(longest) // 2
    means = [sum(part) / len(part) for part in (longest[:half], longest[half:])]
    assert abs(means[0] - means[1]) < 0.1 * sum(means)
    inside = [pack[0].end == max(piece.end for piece in pack) for pack in packs if len(pack) > 3]
    assert sum(inside) < 0.5 * len(inside), "nor inside a pack"


def test_split_cuts_at_every_multiple_and_keeps_the_tail():
    packs = list(cut_equal([2, 0, 1], [5, 30, 13], 10))
    assert packs == [
        (Piece(2, 0, 10),),
        (Piece(2, 10, 13), Piece(0, 0, 5), Piece(1, 0, 2)),
        (Piece(1, 2, 12),),
        (Piece(1, 12, 22),),
        (Piece(1, 22, 30),),
    ]


@pytest.mark.parametrize("packing", ["pack", "split"])
def test_each_epoch_has_each_token_once(packing):
    rows = mixed(300)
    steps = planned(rows, packing, epochs=2)
    seen = Counter((p.row, at) for step in steps for pack in step.packs for p in pack for at in range(p.begin, p.end))
    dropped = {(i, at) for i, row in enumerate(rows) for at in range(row.length)} - set(seen)
    assert set(seen.values()) <= {1, 2} and len(dropped) == 0
    assert steps[-1].epoch == 2
    assert sum(step.tokens for step in steps) == sum(seen.values())


@pytest.mark.parametrize("packing", ["pack", "split"])
def test_a_step_takes_packs_in_order_until_the_next_would_exceed_it(packing):
    rows = mixed(300)
    steps = planned(rows, packing)
    for step, following in pairwise(steps):
        sizes = [sum(end - begin for _, begin, end in pack) for pack in (*step.packs, following.packs[0])]
        assert sum(sizes[:-1]) == step.tokens <= 256 < sum(sizes)
        assert max(sizes) <= 64


@pytest.mark.parametrize("packing", ["none", "pack", "split"])
def test_loss_tokens_are_exact_also_where_a_piece_begins_inside_a_sample(packing):
    rows = rows_of(*[random.Random(i).randint(20, 60) for i in range(60)], learned=19)
    for step in planned(rows, packing):
        read = samples(rows, step.packs)
        batch = collate_packs(read, 0, CPU)
        assert int((batch.labels != IGNORED).sum()) == step.loss_tokens == batch.loss_tokens
        assert batch.tokens == step.tokens


def test_the_first_token_of_a_piece_bears_no_loss():
    row = Row("a", [1, 2, 3, 4, 5, 6], [False, True, True, True, True, True], 9)
    assert cut(row, 0, 6) is row
    piece = cut(row, 2, 5)
    assert (piece.input_ids, piece.loss_mask, piece.loss_bytes) == ([3, 4, 5], [False, True, True], 0)


def test_packs_without_any_loss_are_left_out_and_told(caplog):
    long = Row("long", list(range(200)), [False] * 190 + [True] * 10, 1)
    caplog.set_level("INFO", logger="sweeptune")
    steps = planned([long], "split")
    assert [list(step.packs) for step in steps] == [[(Piece(0, 128, 192),), (Piece(0, 192, 200),)]]
    assert steps[0].loss_tokens == 9  # 190 and 191, then 193 to 199: 192 begins a piece
    assert "2 of 4 rows bear no loss and are left out" in caplog.text


@pytest.mark.parametrize("packing", ["pack", "split"])
def test_seed_and_settings_decide_the_plan(packing):
    rows = mixed(200)
    plan = planned(rows, packing, 5)
    assert plan == planned(list(rows), packing, 5)
    names = {hash_plan(rows, planned(rows, packing, seed)) for seed in range(4)}
    assert len(names) == 4
    assert hash_plan(rows, planned(rows, packing, 0, size=60)) not in names
    assert planned(rows, packing, 5, max_steps=3) == plan[:3], "a run that is continued sees the same plan"


@pytest.mark.parametrize("packing", ["pack", "split"])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_ranks_and_micro_batches_share_the_packs_of_a_step(packing, world, size):
    rows = mixed(100)
    step = planned(rows, packing)[1]
    whole = samples(rows, step.packs)
    dealt = [batch for rank in range(world) for batch in micro_batches(whole, size, rank, world)]
    assert sorted(map(repr, (pack for batch in dealt for pack in batch))) == sorted(map(repr, whole))
    lengths = [sum(row.length for row in pack) for [*pack] in (p for b in micro_batches(whole, size) for p in b)]
    assert lengths == sorted(lengths, reverse=True)


def test_ten_million_rows_take_little_memory():
    packs = Packs([[(i, 0, 100)] for i in range(1000)])
    assert packs.pieces.nbytes + packs._bounds.nbytes <= 33 * 1000
    assert packs[-1] == (Piece(999, 0, 100),) and len(packs[10:20]) == 10
    assert hash(packs) == hash(Packs(list(packs))) and packs == Packs(list(packs)) != Packs(list(packs)[:-1])


def test_a_row_of_several_samples():
    first, second, third = (
        Row("a", [5, 6, 7], [False, True, True], 1),
        Row("b", [8, 9], [False, True], 1),
        Row("c", [4, 3, 2], [False, False, True], 1),
    )
    batch = collate_packs([(first, second), (third,)], 0, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9], [IGNORED, IGNORED, 2, IGNORED, IGNORED]]
    assert batch.position_ids is not None and batch.segments is not None and batch.attention_mask is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, -1, -1]]
    assert (batch.segments.dtype, batch.position_ids.dtype) == (torch.int32, torch.int64)
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch.lengths == ((3, 2), (3,))
    assert (batch.tokens, batch.loss_tokens) == (8, 4)


def test_rows_of_one_sample_need_neither_positions_nor_segments():
    batch = collate(rows_of(3, 5), 0, CPU)
    assert batch.position_ids is None and batch.segments is None
