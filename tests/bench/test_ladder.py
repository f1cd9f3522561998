"""bench/ladder.py: what is planned, what the table says, and that patches change the way and not the result."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import ladder  # noqa: E402
import ladder_patches  # noqa: E402
import ladder_rungs  # noqa: E402
import ladder_table  # noqa: E402
import spread  # noqa: E402

from sweeptune.config.check import check  # noqa: E402
from sweeptune.kernels import interfaces  # noqa: E402
from sweeptune.kernels.fuse import fuse  # noqa: E402
from tests.kernels.helpers import batch, build, gradients  # noqa: E402

EVERY = ladder_rungs.rungs()


def run(rung: str, ladder: str = "lora", rate: float = 1000.0, peak: float = 20.0, **changed: Any) -> dict[str, Any]:
    """A run as `ladder.read` keeps it."""
    phases = {phase: {"allocated_gib": place, "host_gib": 2.0} for place, phase in enumerate(ladder_table.PHASES)}
    found: dict[str, Any] = {"ladder": ladder, "rung": rung, "status": "completed", "reason": None, "pinned_gib": 0.5}
    found |= {"speed": {"tokens_per_s": rate, "step_ms": 12.3, "exclusive": True}, "eval": {"loss": 9.87654}}
    found |= {"memory": {"peak_memory_gib": peak, "phases": phases}, "versions": {"torch": "2.11.0"}, "card": "H100"}
    return found | {"log": "words"} | changed


def cells(lines: list[str]) -> list[list[str]]:
    """The table's rows behind its head."""
    return [[cell.strip() for cell in each.strip("|").split("|")] for each in lines[2:]]


def options(tmp_path: Path, *more: str) -> Any:
    """A trial's command line."""
    given = ["--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *more]
    return ladder.arguments().parse_args(given)


def test_changes_are_to_the_rung_before_or_the_one_that_is_named() -> None:
    runs = [run("default"), run("fp8", rate=1500.0, peak=18.5), run("checkpointing_whole", rate=800.0, peak=6.0)]
    first, fp8, again = cells(ladder_table.table("lora", runs))
    assert first[1:9] == ["1,000", "12", "20.00", "0.00", "1.00", "2.00", "3.00", "4.00"]
    assert first[9:] == ["2.00, 0.50", "-", "-", "9.8765"]
    assert fp8[10:12] == ["x 1.50", "-1.50"]
    assert again[10:12] == ["x 0.80", "-14.00"], "against the default, not against fp8"


def test_failures_keep_their_line_and_nothing_is_compared_with_them() -> None:
    runs = [run("default", status="oom", reason="79 | GiB"), run("fp8")]
    failed, fp8 = cells(ladder_table.table("lora", runs))
    assert failed[1] == "**oom**: 79 / GiB" and len(failed) == len(ladder_table.COLUMNS) == len(fp8)
    assert fp8[10:12] == ["-", "-"]
    shared = run("sdpa", speed={"tokens_per_s": 5.0, "step_ms": None, "exclusive": False})
    assert cells(ladder_table.table("lora", [shared]))[0][1:3] == ["5 (device shared)", "-"]


def test_a_section_names_command_card_and_conditions(tmp_path: Path) -> None:
    visit = ladder.visit_of(options(tmp_path), "lora")
    found = ladder_table.section("lora", [run("default"), run("bf16", "full")], "python x", ladder.conditions(visit))
    assert found.startswith("## Ladder: lora\n") and "python x" in found and "H100; torch 2.11.0" in found
    assert "4 full rows of 64 tokens" in found and "model.dtype" not in found, "other ladders have their own"


def test_rungs_are_named_once_and_chosen_by_name() -> None:
    assert len({(name, rung.name) for name, rung in EVERY}) == len(EVERY)
    assert [rung.name for _, rung in ladder_rungs.rungs(["full"])] == [rung.name for rung in ladder_rungs.FULL]
    with pytest.raises(SystemExit, match="lora/none: known are"):
        ladder_rungs.rungs(["lora/none"])
    assert ladder_rungs.before("lora", "sdpa") is None and ladder_rungs.before("full", "stochastic") == "bf16"
    for name, rung in EVERY:
        assert rung.before is None or rung.before in [each.name for each in ladder_rungs.LADDERS[name]]


@pytest.mark.parametrize(("name", "rung"), EVERY, ids=[f"{name}/{rung.name}" for name, rung in EVERY])
def test_every_rung_is_settings_that_exist_and_patches_that_apply(name, rung, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeptune.config.rules.gpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    given = ladder.arguments().parse_args(["--out", str(tmp_path), "--work", str(tmp_path)])
    visit = ladder.visit_of(given, name)
    (visit.work / "ladder").mkdir()
    (visit.work / "ladder" / "words.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    problems = check(ladder.settings(visit, rung), multirun=False)
    assert [each for each in problems if "model.path" not in each and str(visit.base) not in each] == []
    ladder_patches.apply(rung.patches, monkeypatch.setattr)


def test_a_patch_whose_place_has_gone_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="has no rowz"):
        ladder_patches.put(interfaces, "rowz", None)


@pytest.mark.parametrize(
    ("patches", "method", "recompute"),
    [
        (["whole_logits"], "lora", False),
        (["adapters_alone"], "lora", False),
        (["whole_logits", "adapters_alone"], "full", False),
        (["last_product"], "lora", True),
        (["bnb_dequantize"], "qlora", False),
    ],
)
def test_patches_are_used_and_change_no_gradient(patches, method, recompute, monkeypatch):
    found: list[Any] = []
    for names in ([], patches):
        ladder_patches.apply(names, monkeypatch.setattr)
        model = build("llama", method)
        fuse(model, torch.float32, recompute=recompute)
        found.append(gradients(model, batch("padded")))
    assert all(ladder_patches.USED[name] for name in patches)
    (loss, grads), (other, others) = found
    assert other == pytest.approx(loss, rel=1e-5) and grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-3, atol=1e-4)


def test_flash_rows_gives_the_kernel_the_ends_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def kernel(q, k, v, ends, ends_k, longest, longest_k, scale=None, window_size=(-1, -1), enable_gqa=False):
        seen.append((q.shape, ends.tolist(), longest, window_size, enable_gqa))
        return q

    monkeypatch.setattr(interfaces, "varlen_kernel", lambda: kernel)
    ladder_patches.apply(["flash_rows"], monkeypatch.setattr)
    query, key = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8)
    out = interfaces._rows(query, key, key, 3, None)
    assert torch.equal(out, query.transpose(1, 2)) and ladder_patches.USED["flash_rows"] == 1
    assert seen == [((12, 4, 8), [0, 4, 8, 12], 4, (-1, 0), True)]


def test_what_ran_otherwise_than_its_rung_says_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = ladder_rungs.LORA[2]
    task = spread.Task("lora/blocks", [], tmp_path / "log.txt")
    task.log.write_text("words\nthe last\n")
    assert ladder.read(task, rung, None, 9)["status"] == "timeout"
    assert ladder.read(task, rung, 2, 9)["reason"] == "ended with 2 and left no record: the last"
    cost = {"kernels": "plain"}
    record: dict[str, Any] = {"status": "completed", "reason": None, "fingerprint": {"cost": cost}}
    monkeypatch.setattr(ladder, "find_records", lambda folder: [(folder, record)])
    assert ladder.read(task, rung, 0, 9)["status"] == "other kernels"
    cost["kernels"] = "fused"
    assert ladder.read(task, rung, 0, 9)["status"] == "crashed", "it left nothing of its own"
    inside = {"unused": ["flash_rows"], "pinned_gib": None, "card": None, "versions": {}}
    (tmp_path / "inside.json").write_text(json.dumps(inside))
    assert ladder.read(task, rung, 0, 9)["reason"] == "never came by flash_rows"
    (tmp_path / "inside.json").write_text(json.dumps(inside | {"unused": []}))
    assert ladder.read(task, rung, 0, 9)["status"] == "completed"


def test_runs_that_are_there_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ladder, "check", lambda given, multirun: ["unknown"] if "optim.in_backward=true" in given else []
    )
    started: list[str] = []

    def run_all(tasks: Any, places: Any, ended: Any, **_: Any) -> list[Any]:
        started.extend(task.name for task in tasks)
        for task in tasks:
            task.log.write_text("nothing")
            ended(task, 1, 1.0)
        return []

    monkeypatch.setattr(ladder, "spread", run_all)
    runs, kept = [run("bf16", "full")], []
    ladder.measure(options(tmp_path, "--only", "full"), runs, lambda found: kept.append(len(found)))
    assert started == ["full/fp32_plain", "full/fp32", "full/stochastic"]
    statuses = {each["rung"]: each["status"] for each in runs}
    assert statuses["in_backward"] == "skipped" and statuses["fp32"] == "crashed" and statuses["bf16"] == "completed"
    assert kept == [2, 3, 4, 5, 6, 7]


def sleeper(tmp_path: Path, name: str, seconds: float, words: str = "") -> spread.Task:
    """A task that sleeps."""
    code = f"import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), {words!r}); time.sleep({seconds})"
    return spread.Task(name, [sys.executable, "-c", code], tmp_path / f"{name}.log")


def test_runs_are_spread_over_gpus_and_ended_when_they_take_too_long(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tasks = [sleeper(tmp_path, "a", 0), sleeper(tmp_path, "b", 60), sleeper(tmp_path, "c", 0)]
    codes: dict[str, int | None] = {}
    left = spread.spread(
        tasks, spread.slots(2), lambda task, code, _: codes.update({task.name: code}), timeout_s=2, ends=float("inf")
    )
    assert left == [] and codes == {"a": 0, "b": None, "c": 0}
    assert [task.log.read_text().split()[0] for task in tasks] == ["0", "1", "0"]


def waiter(tmp_path: Path, name: str, seconds: float) -> spread.Task:
    """A task that tells when it was ready and when it began, then sleeps."""
    words = "print(time.monotonic(), os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)"
    code = f"import os, sys, time; {words}; sys.stdin.readline() or sys.exit(3); {words}; time.sleep({seconds})"
    return spread.Task(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", waits=True)


@pytest.mark.slow
def test_what_waits_is_ready_before_its_place_is_free(tmp_path: Path) -> None:
    tasks = [waiter(tmp_path, name, 1.0) for name in "abc"]
    took: dict[str, tuple[int | None, float]] = {}

    def ended(task: spread.Task, code: int | None, seconds: float) -> None:
        took[task.name] = code, seconds

    assert spread.spread(tasks, [{}], ended, timeout_s=9, ends=float("inf")) == []
    times = [[float(word) for word in task.log.read_text().split()[::2]] for task in tasks]
    ends = [began + 1.0 for _, began in times]
    assert times[1][0] < ends[0] < times[1][1] and times[2][0] < ends[1] < times[2][1]
    assert {code for code, _ in took.values()} == {0} and took["b"][1] < 2.0, "time counts from its line"


@pytest.mark.slow
def test_what_waits_for_one_gpu_goes_to_another_that_is_free(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tasks = [waiter(tmp_path, "a", 4.0), waiter(tmp_path, "b", 0.1), waiter(tmp_path, "c", 0.1)]
    order: list[tuple[str, int | None]] = []
    spread.spread(
        tasks, spread.slots(2), lambda task, code, _: order.append((task.name, code)), timeout_s=9, ends=float("inf")
    )
    assert order == [("b", 0), ("c", 0), ("a", 0)] and tasks[2].log.read_text().split()[1::2] == ["1", "1"]


def test_what_waits_when_time_is_over_is_ended_and_named(tmp_path: Path) -> None:
    tasks = [waiter(tmp_path, "a", 1.5), waiter(tmp_path, "b", 0), sleeper(tmp_path, "c", 0)]
    left = spread.spread(tasks, [{}], lambda *_: None, timeout_s=9, ends=time.monotonic() + 1)
    assert left == tasks[1:] and len(tasks[1].log.read_text().split()) == 2 and not tasks[2].log.exists()


def test_no_run_starts_when_time_is_over(tmp_path: Path) -> None:
    tasks = [sleeper(tmp_path, "a", 0), sleeper(tmp_path, "b", 0)]
    left = spread.spread(tasks, [{}], lambda *_: None, timeout_s=9, ends=time.monotonic() - 1)
    assert left == tasks and not tasks[0].log.exists()


def test_places_follow_the_devices_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in spread.slots(2, at_once=2)] == ["2", "3", "2", "3"]
    with pytest.raises(SystemExit, match="names 2"):
        spread.slots(3)


@pytest.mark.slow
def test_tiny_rungs_end_to_end(tmp_path: Path) -> None:
    import subprocess

    command = [
        sys.executable,
        str(ROOT / "bench" / "ladder.py"),
        "--tiny",
        "--steps",
        "7",
        "--out",
        str(tmp_path / "o"),
    ]
    command += ["--work", str(tmp_path / "w"), "--only", "lora/blocks", "qlora/blocks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "o" / "ladder.json").read_text())
    assert {each["status"] for each in found} == {"completed"}, found
    assert [each["fingerprint"]["cost"]["kernels"] for each in found] == ["fused"] * 2
    assert (tmp_path / "o" / "ladder-qlora.md").read_text().startswith("## Ladder: qlora")
