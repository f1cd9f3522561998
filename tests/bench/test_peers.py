"""bench/peers.py: what the table and its section say, and that every stack sees the same ids."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import peers  # noqa: E402
import peers_job  # noqa: E402
import peers_rows  # noqa: E402
import peers_table  # noqa: E402
import stacks  # noqa: E402


def figures(**found: Any) -> dict[str, Any]:
    """What a worker leaves."""
    return {
        "status": "completed",
        "reason": None,
        "tokens_per_s": 1000.0,
        "allocated_gib": 10.0,
        "reserved_gib": 12.0,
        "rss_gib": 2.0,
        "pinned_gib": None,
        "losses": [9.0 - step / 10 for step in range(8)],
        "norms": [1.0] * 8,
        "trainable": 2_000_000,
        "adapter_dtype": "bfloat16",
        "notes": "sdpa",
        "card": "NVIDIA H100 80GB HBM3",
        "versions": {"torch": "2.11.0"},
        **found,
    }


def run(stack: str, number: int = 1, rows: int = 8, **found: Any) -> dict[str, Any]:
    """A run as `peers.measure` keeps it."""
    return {"stack": stack, "round": number, "rows": rows, "parts": 1, **figures(**found)}


def visit(tmp_path: Path, name: str = "intern18_lora") -> peers_rows.Visit:
    """A visit on a CPU."""
    row = peers_rows.tiny(peers_rows.ROWS[name])
    return peers_rows.Visit(name, row, tmp_path, tmp_path, 7, None, None, 60, True)


def cells(lines: list[str]) -> list[list[str]]:
    """The table's rows behind its head."""
    return [[cell.strip() for cell in each.strip("|").split("|")] for each in lines[2:]]


def test_ratios_are_of_means_and_against_the_best_peer() -> None:
    runs = [run("liger"), run("trl", tokens_per_s=500.0), run("sweeptune", tokens_per_s=1800.0)]
    runs += [run("liger", 2, tokens_per_s=1400.0), run("sweeptune", 2, tokens_per_s=1920.0, allocated_gib=11.0)]
    liger, trl, ours = cells(peers_table.table(runs))
    assert (liger[4], liger[5]) == ("1,000 / 1,400", "1.00")
    assert (trl[5], ours[5], ours[6]) == ("0.42", "1.55", "11.00")
    assert ours[3] == "2.00 M, bfloat16" and ours[8] == "2.00, -"
    assert ours[9] == "9.0000, 8.5000 -> 8.3000"


def test_a_variant_of_ours_is_no_peer() -> None:
    lines = peers_table.table([run("liger"), run("sweeptune_plain", tokens_per_s=3000.0)])
    assert [each[5] for each in cells(lines)] == ["1.00", "3.00"]


def test_failures_are_rows_with_their_reason() -> None:
    runs = [run("liger", status="oom", reason="OutOfMemoryError: 79 | GiB"), {**run("trl"), "round": 1}]
    runs += [
        {"stack": "trl", "round": 2, "rows": 8, "parts": 1, "status": "timeout", "reason": "not ready after 150 s"}
    ]
    failed, half = cells(peers_table.table(runs))
    assert failed[2] == "**oom**: OutOfMemoryError: 79 / GiB" and len(failed) == len(peers_table.COLUMNS)
    assert half[4] == "1,000 / timeout"


def test_later_rounds_keep_the_fastest_number_of_rows_that_fits() -> None:
    runs = [run("liger", rows=4, status="oom"), run("liger", rows=3), run("liger", rows=2, tokens_per_s=1100.0)]
    assert peers.chosen(runs, "liger") == [(2, 1)]
    assert peers.chosen(runs[:1], "liger") == []


class Recorded(peers.Ahead):
    """Starts nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.expected: list[str | None] = []

    def expect(self, stack: str | None) -> None:
        self.expected.append(stack)


def test_a_visit_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "make_steps", lambda visit, rows: None)
    monkeypatch.setattr(peers, "one", lambda visit, turn, *more: figures(seen=turn[0]))
    ahead = Recorded(tmp_path)
    kept: list[int] = []
    begun = peers.measure(
        replace(visit(tmp_path), ends=0.0), ["liger"], 2, lambda runs: kept.append(len(runs)), [], ahead
    )
    assert begun == [] and kept == []
    first = run("liger", rows=4)
    runs = peers.measure(
        visit(tmp_path), ["liger", "sweeptune"], 2, lambda runs: kept.append(len(runs)), [first], ahead
    )
    assert runs[0] is first and kept == [2, 3, 4]
    assert [(each["stack"], each["seen"]) for each in runs[1:]] == [("sweeptune", 1), ("liger", 2), ("sweeptune", 2)]
    assert ahead.expected == [None, "sweeptune"], "the first run's imports begin while the steps are made"


def test_settings_are_given_once() -> None:
    row = peers_rows.ROWS["intern18_lora"]
    given = peers.settled(["method=lora", "data.path=a=b", *row.variants["sweeptune_fp8"]])
    assert given == ["method=lora_fp8", "data.path=a=b"]


def test_a_section_replaces_its_own_and_leaves_the_rest() -> None:
    text = "# Results\n\nwords\n\n## Against peers: a\n\nold\n### deeper\n\n## Other\n\nkept\n"
    assert peers_table.with_section(text, "## Against peers: a\n\nnew\n") == (
        "# Results\n\nwords\n\n## Against peers: a\n\nnew\n\n## Other\n\nkept\n"
    )
    longer = peers_table.with_section(text, "## Against peers: ab\n\nnew\n")
    assert longer == text + "\n## Against peers: ab\n\nnew\n"
    assert peers_table.with_section(longer, "## Against peers: ab\n\nnew\n") == longer


def test_a_section_names_command_card_versions_and_conditions(tmp_path: Path) -> None:
    found = peers_table.section(visit(tmp_path), [run("liger")], "python bench/peers.py --row intern18_lora")
    assert found.startswith("## Against peers: intern18_lora\n")
    for words in ("--row intern18_lora", "NVIDIA H100", "torch 2.11.0", "4 x 64 tokens a step", "2 of them timed"):
        assert words in found


def test_every_row_names_stacks_that_a_worker_knows() -> None:
    for row in peers_rows.ROWS.values():
        assert {peers_rows.work_of(stack) for stack in [*row.peers, *row.variants]} <= set(stacks.STACKS)
        assert len(row.rows) == 1 or row.cap_gib


def steps_file(path: Path) -> peers_job.Steps:
    """Two steps: three samples in two rows, then one."""
    first = [[([5, 6, 7], [False, True, True]), ([8, 9], [False, True])], [([1, 2, 3, 4], [False, False, True, True])]]
    peers_job.save_steps(path, [first, [[([3, 1], [False, True])]]])
    return peers_job.read_steps(path)


def test_steps_survive_the_file_and_name_themselves(tmp_path: Path) -> None:
    steps = steps_file(tmp_path / "a.npz")
    assert [[len(row) for row in step] for step in steps] == [[2, 1], [1]]
    assert steps[0][1][0][1].tolist() == [-100, -100, 3, 4]
    assert (peers_job.real_tokens(steps), peers_job.loss_tokens(steps[0])) == (11, 5)
    assert peers_job.digest(steps) == peers_job.digest(steps_file(tmp_path / "b.npz")) != peers_job.digest(steps[:1])


def lengths(rows: peers_job.Rows) -> list[list[int]]:
    """Of the samples of rows."""
    return [[len(ids) for ids, _ in row] for row in rows]


def test_passes_pad_little_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_job, "MULTIPLE", 4)
    step = steps_file(tmp_path / "a.npz")[0]
    job = peers_job.Job(method="lora", folder="", layout="padded", parts=2)
    parts = peers_job.passes(step, job)
    assert [lengths(part) for part in parts] == [[[4]], [[3], [2]]]
    padded = peers_job.collate(parts[1], "padded", 0)
    assert padded.keys() == {"input_ids", "labels"} and padded["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 0, 0]]
    assert padded["labels"].tolist() == [[-100, 6, 7, -100], [-100, 9, -100, -100]]
    rows = peers_job.collate(step, "rows", 0)
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    free = peers_job.collate(step, "free", 0)
    assert free["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert free["lengths"].tolist() == [3, 2, 4, 3] and free["labels"][0, -3:].tolist() == [-100] * 3
    free_job = replace(job, layout="free", parts=2)
    assert [lengths(part) for part in peers_job.passes(step, free_job)] == [[[3, 2]], [[4]]]
    full = peers_job.collate([[step[0][0]], [step[0][0]]], "full", 0)
    assert full["input_ids"].shape == (2, 3), "full rows are as long as they are"


def test_every_shape_is_there_once_and_the_largest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_job, "MULTIPLE", 4)
    job = peers_job.Job(method="lora", folder="", layout="padded", parts=2)
    data = peers_job.Passes(steps_file(tmp_path / "a.npz"), job, 0)
    assert [tuple(data[at]["input_ids"].shape) for at in range(len(data))] == [(1, 4), (2, 4), (1, 4)]
    assert [tuple(batch["input_ids"].shape) for batch in data.shapes()] == [(2, 4), (1, 4)]


def alone(path: Path) -> list[Any]:
    """The same steps, every sample a row of its own."""
    steps = peers_job.read_steps(path)
    return [[[(ids.tolist(), (labels != -100).tolist())] for row in step for ids, labels in row] for step in steps]


def test_layouts_and_shapes_that_run_before_leave_losses_alone(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    steps_file(tmp_path / "a.npz")
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    found: dict[str, dict[str, Any]] = {}
    for layout in ("padded", "rows", "full"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, pad_token_id=0)).train()
        own = {"ids": str(tmp_path / "a.npz"), "layout": layout, "device": "cpu", "warmup": 1, "steps": 2, "lr": 1e-2}
        if layout == "full":  # a sample a row and a row a pass, and no shape runs before
            own |= {"micro_batch": 1, "ids": str(tmp_path / "b.npz")}
            peers_job.save_steps(tmp_path / "b.npz", alone(tmp_path / "a.npz"))
        found[layout] = stacks.train(model, peers_job.Job(method="full", folder="", **own), stacks.nullcontext)
    assert [found[layout]["shapes"] for layout in ("padded", "rows", "full")] == [2, 2, 0]
    for layout in ("padded", "rows"):
        assert found[layout]["losses"] == pytest.approx(found["full"]["losses"], abs=1e-5)
        assert found[layout]["norms"] == pytest.approx(found["full"]["norms"], rel=1e-4)


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with stacks.kept(tmp_path / "out.json"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["status"] == "oom" and found["reason"].endswith("Tried to allocate 2 GiB")


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "bench" / "stacks.py"
    sleeper.parent.mkdir()
    sleeper.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    job = peers_job.Job(method="lora", folder="", work=str(tmp_path / "run"))
    found = peers.start(
        replace(visit(tmp_path), timeout_s=2), "liger", job, tmp_path / "out.json", peers.Ahead(tmp_path)
    )
    assert found == {"status": "timeout", "reason": "not ready after 2 s", "log": "begun\n"}
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "timeout"


def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that leave which process they are and what was told them."""
    script = tmp_path / "bench" / "stacks.py"
    script.parent.mkdir()
    script.write_text(
        "import json, os, sys\n"
        "print('imported', sys.argv[1], flush=True)\n"
        "line = sys.stdin.readline()\n"
        "if not line: sys.exit()\n"
        "job, target = json.loads(line)\n"
        "print('told', flush=True)\n"
        "found = {'status': 'completed', 'reason': None, 'process': os.getpid(), 'ids': 'a'}\n"
        "open(target, 'w').write(json.dumps(found))\n"
    )
    monkeypatch.setattr(peers, "ROOT", tmp_path)


def test_the_next_worker_is_ready_and_a_wrong_guess_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening(tmp_path, monkeypatch)
    job = peers_job.Job(method="lora", folder="", work=str(tmp_path / "run"))
    ahead, here = peers.Ahead(tmp_path), replace(visit(tmp_path), timeout_s=20)
    first = peers.start(here, "liger", job, tmp_path / "a.json", ahead, "trl")
    assert first["log"] == "imported liger\ntold\n" and ahead.stack == "trl" and ahead.process is not None
    waiting = ahead.process
    second = peers.start(here, "trl_free", job, tmp_path / "b.json", ahead, "sweeptune")
    assert second["process"] == waiting.pid and second["log"] == "imported trl\ntold\n"
    wrong = ahead.process
    third = peers.start(here, "sweeptune_plain", job, tmp_path / "c.json", ahead, "unsloth")
    assert third["process"] == wrong.pid and ahead.process is None, "Unsloth's import would share the GPU with ours"
    peers.start(here, "trl", replace(job, cap_gib=8.0), tmp_path / "d.json", ahead, "unsloth")
    assert ahead.process is None, "a cap would count Unsloth's context as the run's own"
    ahead.expect("liger")
    wrong = ahead.process
    ahead.expect("trl")
    assert wrong.poll() is not None and ahead.stack == "trl"
    ended = ahead.process
    ahead.close()
    assert ended.poll() is not None and ahead.process is None


def test_turns_follow_what_was_found() -> None:
    row = replace(peers_rows.ROWS["intern7_qlora_cap8"], rows=(4, 3))
    assert peers.turns(row, ["liger", "trl"], 2, [])[:3] == [
        (1, "liger", 4, 1),
        (1, "liger", 3, 1),
        (1, "trl", 4, 1),
    ]
    runs = [run("liger", rows=4, status="oom"), run("liger", rows=3), run("trl", rows=4, status="oom")]
    assert peers.turns(row, ["liger", "trl"], 2, runs) == [(1, "trl", 3, 1), (2, "liger", 3, 1)]


def test_real_lengths_are_tried_in_several_passes_by_peers_only() -> None:
    row = peers_rows.ROWS["gsm8k_lora"]
    assert row.stacks[:3] == ["sweeptune", "liger", "unsloth"], "what a visit that is cut off has"
    assert row.settings("sweeptune") == [(8, 1)] and row.settings("liger") == [(8, 4), (8, 2)]
    assert row.settings("liger_free") == [(8, 1)] and row.settings("trl_free") == [(8, 8)]
    assert row.settings("unsloth_free") == [(8, 1)]
    runs = [run("liger", parts=4), run("liger", parts=2, tokens_per_s=1200.0), run("sweeptune")]
    assert peers.turns(row, ["liger", "sweeptune"], 2, runs) == [(2, "liger", 8, 2), (2, "sweeptune", 8, 1)]
    assert [each[1] for each in cells(peers_table.table(runs))] == ["8 in 4 passes", "8 in 2 passes", "8 in 1 pass"]
    assert peers_rows.ROWS["intern7_qlora_cap8"].settings("trl") == [(6, 1), (4, 1), (3, 1), (2, 1)]


@pytest.mark.slow
def test_a_worker_waits_for_a_line_and_without_one_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "stacks.py"), "transformers", "-"]
    paths = {"env": peers.environment(tmp_path), "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    left = subprocess.run(command, input="", check=False, **paths)
    assert (left.returncode, left.stdout) == (0, "") and not list(tmp_path.iterdir())
    job = {"method": "full", "folder": str(tmp_path / "none"), "work": str(tmp_path / "work"), "device": "cpu"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    line = json.dumps([str(tmp_path / "job.json"), str(tmp_path / "out.json")])
    subprocess.run(command, input=line + "\n", check=True, **paths)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["status"] == "crashed" and str(tmp_path / "none") in found["reason"]


@pytest.mark.slow
def test_tiny_row_end_to_end(tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    command = [sys.executable, str(ROOT / "bench" / "peers.py"), "--row", "intern18_lora", "--tiny", "--rounds", "1"]
    command += ["--steps", "2", "--out", str(out), "--work", str(tmp_path / "work"), "--results", str(results)]
    command += ["--stacks", "transformers", "liger", "sweeptune"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    plain, liger, ours = json.loads((out / "intern18_lora.json").read_text())
    assert (plain["status"], liger["status"], ours["status"]) == ("completed", "skipped", "completed")
    # `peers.measure` has compared the ids of both with the plan: another status would stand here.
    assert plain["ids"] and ours["plan"]["data_order"]
    assert plain["losses"] == pytest.approx(ours["losses"], abs=1e-3)
    assert plain["norms"][0] == pytest.approx(ours["norms"][0], rel=1e-2)
    assert plain["trainable"] == ours["trainable"] and ours["adapter_dtype"] == "float32"
    assert ours["proofs"]["gradients"]
    text = results.read_text()
    assert "## Against peers: intern18_lora" in text and "| sweeptune | 4 |" in text
    assert not list((tmp_path / "work" / "intern18_lora").glob("run"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--section", "gone.md", "--results", "R.md"], "--section gone.md: no such file; give one that a visit left"),
        (["--section", __file__], "--results FILE has to be given"),
        (["--section", __file__, "--results", "R.md"], "begins with no heading"),
        (["--row", "intern18_lora", "--rounds", "0"], "'0' is no count; give 1 or more"),
    ],
)
def test_a_section_needs_its_file_and_a_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py", *given])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert message in capsys.readouterr().err
