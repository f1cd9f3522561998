"""Only what may be compared is ranked, and every refusal names its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.report.compare import Comparison, load
from tests.report.conftest import COST, QUALITY, Leave


def ranked(comparison: Comparison, metric: str) -> list[tuple[str, ...]]:
    return [ranking.runs for ranking in comparison.rankings if ranking.metric == metric]


def test_equal_fingerprints_are_ranked_in_everything(leave: Leave, tmp_path: Path) -> None:
    leave("0", loss=2.5, memory=3.0, speed=50.0)
    leave("1", loss=2.1, memory=4.0, speed=70.0)
    leave("10", loss=2.3, memory=2.0, speed=60.0)
    found = load(tmp_path)
    assert [run.name for run in found.runs] == ["0", "1", "10"]
    assert found.differences == ()
    assert ranked(found, "loss") == [("1", "10", "0")]
    assert ranked(found, "peak_memory_gib") == [("10", "0", "1")]
    assert ranked(found, "tokens_per_s") == [("1", "10", "0")]
    assert found.groups("quality") == {"A": ["0", "1", "10"]}


@pytest.mark.parametrize("field", QUALITY)
def test_a_planted_quality_difference_is_refused_by_name(leave: Leave, tmp_path: Path, field: str) -> None:
    leave("0", loss=2.5)
    leave("1", loss=2.1, quality={field: "planted"})
    found = load(tmp_path)
    assert [(d.field, d.values) for d in found.differences] == [
        (f"quality.{field}", {"0": QUALITY[field], "1": "planted"})
    ]
    assert ranked(found, "loss") == ranked(found, "bits_per_byte") == []
    assert found.groups("quality") == {"A": ["0"], "B": ["1"]}
    assert ranked(found, "peak_memory_gib") == [("0", "1")], "the cost agrees, so memory is ranked"


@pytest.mark.parametrize("field", COST)
def test_a_planted_cost_difference_is_refused_by_name(leave: Leave, tmp_path: Path, field: str) -> None:
    leave("0", loss=2.5)
    leave("1", loss=2.1, cost={field: "planted"})
    found = load(tmp_path)
    assert [(d.field, d.values) for d in found.differences] == [(f"cost.{field}", {"0": COST[field], "1": "planted"})]
    assert ranked(found, "peak_memory_gib") == ranked(found, "tokens_per_s") == []
    assert found.groups("cost") == {"1": ["0"], "2": ["1"]}
    assert ranked(found, "loss") == [("1", "0")], "the quality agrees, so losses are ranked"


@pytest.mark.parametrize(("kind", "field"), [*(("quality", f) for f in QUALITY), *(("cost", f) for f in COST)])
def test_a_field_that_one_record_lacks_is_a_difference(leave: Leave, tmp_path: Path, kind: str, field: str) -> None:
    leave("0")
    leave("1", **{f"without_{kind}": [field]})
    found = load(tmp_path)
    assert [d.field for d in found.differences] == [f"{kind}.{field}"]
    assert found.differences[0].values["1"] == "(absent)"
    assert len(found.groups(kind)) == 2


def test_empty_fingerprints_agree_with_nothing(leave: Leave, tmp_path: Path) -> None:
    for name in ("0", "1"):
        leave(name, without_quality=QUALITY, without_cost=COST)
    found = load(tmp_path)
    assert found.rankings == ()
    assert found.groups("quality") == {"A": ["0"], "B": ["1"]}


def test_losses_are_ranked_seed_by_seed(leave: Leave, tmp_path: Path) -> None:
    for seed in (0, 1):
        leave(f"lora-{seed}", seed=seed, loss=2.0 + seed)
        leave(f"full-{seed}", seed=seed, loss=1.9 + seed, method="full")
    found = load(tmp_path)
    assert found.differences == (), "another seed has another order, by design"
    assert list(found.groups("quality")) == ["A"]
    assert [(r.seed, r.runs) for r in found.rankings if r.metric == "loss"] == [
        (0, ("full-0", "lora-0")),
        (1, ("full-1", "lora-1")),
    ]
    assert len(ranked(found, "peak_memory_gib")[0]) == 4, "memory does not depend on the seed"


def test_the_budget_follows_the_order_of_the_seed(leave: Leave, tmp_path: Path) -> None:
    for seed in (0, 1):
        for method in ("full", "lora"):
            leave(f"{method}-{seed}", seed=seed, method=method, quality={"budget_tokens": 4096 + seed})
    found = load(tmp_path)
    assert found.differences == (), "another order fills the steps otherwise, by design"
    assert list(found.groups("quality")) == ["A"]


def test_another_order_under_the_same_seed_splits_all_seeds(leave: Leave, tmp_path: Path) -> None:
    leave("0", seed=0)
    leave("1", seed=0, quality={"data_order": "planted"})
    leave("2", seed=1)
    found = load(tmp_path)
    assert ranked(found, "loss") == []
    assert [d.field for d in found.differences] == ["quality.data_order"]


def test_equal_values_are_all_best(leave: Leave, tmp_path: Path) -> None:
    for name, loss in (("0", 2.0), ("1", 2.0), ("2", 3.0)):
        leave(name, loss=loss)
    assert [r.best for r in load(tmp_path).rankings if r.metric == "loss"] == [("0", "1")]


def test_failures_stay_with_their_reason_and_are_not_ranked(leave: Leave, tmp_path: Path) -> None:
    leave("0")
    leave("1", status="oom", reason="the first step needs 20 GiB", memory=0.1, quality={"template": "unknown"})
    leave("2")
    found = load(tmp_path)
    assert (found.runs[1].status, found.runs[1].reason) == ("oom", "the first step needs 20 GiB")
    assert found.runs[1].quality_group is None
    assert found.differences == ()
    assert all("1" not in ranking.runs for ranking in found.rankings)


def test_a_shared_device_keeps_only_the_speed_out(leave: Leave, tmp_path: Path) -> None:
    leave("0")
    leave("1", exclusive=False)
    leave("2")
    found = load(tmp_path)
    assert ranked(found, "tokens_per_s") == [("0", "2")]
    assert ranked(found, "peak_memory_gib") == [("0", "1", "2")]


def test_settings_show_what_was_swept(leave: Leave, tmp_path: Path) -> None:
    for name, rank in (("0", 4), ("1", 16)):
        leave(name, settings={"method": {"name": "lora", "rank": rank}, "optim": {"lr": 0.001}, "seed": int(name)})
    leave("2", method="full", settings={"method": {"name": "full"}, "optim": {"lr": 0.1}, "seed": 0})
    assert [run.settings for run in load(tmp_path).runs] == [{"method.rank": 4}, {"method.rank": 16}, {}]


def test_runs_without_a_record_are_listed(leave: Leave, tmp_path: Path) -> None:
    leave("0")
    leave("10")
    (tmp_path / "2" / ".hydra").mkdir(parents=True)
    for folder in (tmp_path / "2", tmp_path / "2" / ".hydra"):
        (folder / "config.yaml").write_text("{seed: 3, method: {name: qlora}, model: {name: tiny}}")
    found = load(tmp_path)
    assert [(run.name, run.status) for run in found.runs] == [
        ("0", "completed"),
        ("2", "no record yet"),
        ("10", "completed"),
    ]
    assert (found.runs[1].method, found.runs[1].model, found.runs[1].seed) == ("qlora", "tiny", 3)
    assert found.unfinished == ("2",)
    assert all("2" not in ranking.runs for ranking in found.rankings)


def test_a_folder_where_nothing_has_ended_yet_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert [run.status for run in load(tmp_path).runs] == ["no record yet"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", "a JSON object"),
        (b'{"schema": 99, "status": "completed"}', "99"),
        (b'{"schema": 1, "status": "completed", "eval": {"loss": "low"}}', "eval.loss is 'low', not a number"),
        (b'{"schema": 1, "status": "completed", "eval": {"loss": NaN}}', "eval.loss is nan, not a number"),
        (b'{"schema": 1, "status": "completed", "seed": [0]}', "seed is [0], not a whole number"),
    ],
)
def test_an_unreadable_record_stays_in_the_table(leave: Leave, tmp_path: Path, content: bytes, reason: str) -> None:
    leave("0")
    leave("1", settings={"method": {"name": "dora"}})
    (tmp_path / "1" / "result.json").write_bytes(content)
    leave("2")
    found = load(tmp_path)
    run = found.runs[1]
    assert (run.name, run.status, run.method) == ("1", "unreadable", "dora")
    assert reason in (run.reason or "")
    assert found.differences == ()
    assert [r.runs for r in found.rankings if r.metric == "loss"] == [("0", "2")]


def test_a_run_refused_as_invalid_is_not_called_unreadable(leave: Leave, tmp_path: Path) -> None:
    leave("0", status="invalid_run", reason="the gradient is exactly zero")
    assert [(run.status, run.reason) for run in load(tmp_path).runs] == [
        ("invalid_run", "the gradient is exactly zero")
    ]


def test_links_back_to_the_folder_are_harmless(leave: Leave, tmp_path: Path) -> None:
    leave("study/0")
    (tmp_path / "study" / "loop").symlink_to(tmp_path)
    (tmp_path / "study" / "0" / "self").symlink_to(tmp_path / "study" / "0")
    assert [run.name for run in load(tmp_path).runs] == ["study/0"]


def test_settings_that_cannot_be_read_do_not_hide_a_run(leave: Leave, tmp_path: Path) -> None:
    for name, content in (("0", b"a: [1"), ("1", b"\xff\xfe\x00")):
        leave(name)
        (tmp_path / name / "config.yaml").write_bytes(content)
    assert [(run.status, run.settings) for run in load(tmp_path).runs] == [("completed", {})] * 2


def test_a_run_folder_itself_can_be_given(leave: Leave, tmp_path: Path) -> None:
    leave("0")
    assert [run.name for run in load(tmp_path / "0").runs] == ["0"]


def test_nothing_to_compare_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"A run folder holds config\.yaml, metrics\.jsonl"):
        load(tmp_path)
