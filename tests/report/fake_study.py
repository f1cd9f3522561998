"""Fake study folders, as the engine leaves them: header, trials, probes and confirmation runs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeptune.tracking.record import PARTS
from tests.report.conftest import COST, QUALITY

COSTS = {"full": (6.4, 9_100.0), "lora": (3.1, 12_400.0), "qlora": (2.2, 7_300.0), "dora": (3.3, 8_000.0)}
"""Peak memory in GiB and tokens per second of a method, roughly."""
TRAINABLE = {"full": 134_515_008, "lora": 4_884_480, "qlora": 4_884_480, "dora": 5_110_272}
TOKENS = 204_800
EFFECTS = {"full": 0.035, "lora": 0.0, "qlora": 0.05, "dora": 0.002}
"""What a method adds to the test loss; dora is tied with lora."""


def leave_study(folder: Path, methods: Sequence[str] = ("full", "lora", "qlora"), **header: Any) -> Path:
    """The header of a study; ``study={...}`` replaces settings of it."""
    folder.mkdir(parents=True, exist_ok=True)
    study: dict[str, Any] = {"trials": 30, "objectives": ["eval_loss", "peak_memory_gib"], "constraints": {}}
    study |= {"confirm_seeds": 3, "margin": 0.01, "allocate": "equal", "replicates": 1}
    study |= header.pop("study", {})
    fixed = {"model.name": "smollm2_135m_q4", "data.name": "pydocs", "train.max_tokens": TOKENS}
    value = {"schema": 1, "name": folder.name, "created": 1.0, "command": "python train.py --multirun", "overrides": []}
    value |= {"seed": 0, "space": {}, "study": study, "methods": list(methods), "fixed": fixed, "versions": {}}
    (folder / "study.json").write_text(json.dumps(value | {"git": None} | header))
    (folder / "trials.jsonl").touch()
    return folder


def leave_trial(folder: Path, number: int, method: str, loss: float | None = 2.0, **given: Any) -> dict[str, Any]:
    """A line of trials.jsonl; completed, except for what is given."""
    memory, speed = COSTS.get(method, (3.0, 9_000.0))
    line: dict[str, Any] = {"number": number, "kind": "trial", "status": "completed", "reason": None, "method": method}
    line |= {"params": {"method": method}, "eval_loss": loss, "loss_sd": None, "seeds": [0], "predicted_gib": None}
    line |= {"peak_memory_gib": memory, "tokens_per_s": speed, "bits_per_byte": None if loss is None else loss / 3}
    line |= {"trainable": TRAINABLE.get(method), "mfu": None, "tokens": TOKENS, "seconds": 61.0, "attempts": 1}
    line |= {"cost_class": method, "constraints": {}, "pruned_by": None, "schedule": "cosine-1600"}
    line |= {"folder": str(number), "ended": float(number)}
    line |= given
    known = {"eval_loss": line["eval_loss"], "peak_memory_gib": line["peak_memory_gib"]}
    line.setdefault("values", known | {"tokens_per_s": line["tokens_per_s"]})
    settings = " ".join(f"{key}={value}" for key, value in line["params"].items())
    line.setdefault("command", f"python train.py model=smollm2_135m_q4 data=pydocs {settings}")
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def leave_record(folder: Path, method: str, seed: int, **given: Any) -> None:
    """A run folder with its record: ``test=1.9``, ``eval=2.0``, ``quality={...}``, ``merged=(a, b, c)``."""
    record: dict[str, Any] = {part: dict.fromkeys(keys) for part, keys in PARTS.items()}
    record |= {"schema": 1, "attempts": 1, "command": "", "reason": given.get("reason"), "method": method, "seed": seed}
    record |= {"status": given.get("status", "completed"), "model": "smollm2_135m_q4", "data": "pydocs"}
    record["eval"] |= {"loss": given.get("eval", 2.0), "tasks": {}}
    merged = given.get("merged", (None, None, None))
    record["eval"] |= dict(zip(("as_trained", "merged_bf16", "merged_requantized"), merged, strict=True))
    test = given.get("test")
    record["test"] = None if test is None else {"loss": test, "bits_per_byte": test / 3}
    quality = QUALITY | {"data_order": f"seed-{seed}"} | given.get("quality", {})
    record["fingerprint"] = {"quality": quality, "cost": COST}
    record["memory"]["peak_memory_gib"] = given.get("memory")
    record |= {key: given[key] for key in ("replicates",) if key in given}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record))  # not synced to the disk, for hundreds of studies
    if given.get("examples"):
        name, rows = given["examples"]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def leave_confirmed(folder: Path, losses: Mapping[str, Mapping[int, float]], **given: Any) -> None:
    """Confirmation runs with these test losses, of each method's best trial."""
    seeds = sorted({seed for own in losses.values() for seed in own})
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    plan: dict[str, Any] = {}
    for line in sorted(lines, key=lambda line: line["eval_loss"] or 9.0, reverse=True):
        if line["status"] == "completed" and all(value <= 0 for value in line["constraints"].values()):
            plan[line["method"]] = line["number"]
    (folder / "confirm").mkdir(exist_ok=True)
    (folder / "confirm" / "plan.json").write_text(json.dumps(plan | {"seeds": seeds}))
    for method, own in losses.items():
        for seed, loss in own.items():
            merged = (loss + 0.03, loss + 0.041, loss + 0.078) if method == "qlora" else (None, None, None)
            leave_record(folder / "confirm" / f"{method}-{seed}", method, seed, test=loss, merged=merged, **given)


def example_tokens(row: int) -> int:
    """Loss tokens of a row: 20 to 199, the same for every method and seed."""
    return 20 + row * 37 % 180


def examples(loss: float, noise: float, draw: random.Random, rows: int = 40) -> list[dict[str, Any]]:
    """Scores of single examples around a loss."""
    found = []
    for row in range(rows):
        tokens = example_tokens(row)
        nll = tokens * (loss + draw.gauss(0, noise))
        found.append({"id": f"row-{row}", "nll": nll, "loss_tokens": tokens, "bytes": 4 * tokens})
    return found


def leave_search(folder: Path, trials: int, methods: Sequence[str] = ("full", "lora", "qlora", "dora")) -> Path:
    """A study after a search with all that can happen: baselines, pruned trials, failures, misfits."""
    draw = random.Random(7)
    best = {"full": 1.93, "lora": 1.90, "qlora": 1.95, "dora": 1.903}
    limits = {"peak_memory_gib": 8.0}
    leave_study(folder, methods, study={"constraints": limits})
    for number in range(trials):
        method = methods[number % len(methods)]
        baseline = number < len(methods)
        params: dict[str, Any] = {"method": method, "optim.lr": 10 ** draw.uniform(-5.5, -3)}
        memory, speed = COSTS[method]
        rank = draw.choice([4, 8, 16, 32, 64])
        if method != "full":
            params["method.rank"] = rank
            memory += rank / 100
        params["hardware.micro_batch"] = draw.choice([1, 2, 4, 8])
        memory += params["hardware.micro_batch"] * 0.35
        loss = best[method] + abs(draw.gauss(0, 0.05)) + (0.02 if baseline else 0)
        predicted = memory * (1 + draw.gauss(0, 0.03))
        key = f"{method}-{rank if method != 'full' else 0}-{params['hardware.micro_batch']}"
        given: dict[str, Any] = {"params": {"method": method} if baseline else params, "peak_memory_gib": memory}
        given |= {"tokens_per_s": speed + 100 * draw.random(), "predicted_gib": predicted, "cost_class": key}
        given |= {"kind": "baseline" if baseline else "trial", "constraints": {"peak_memory_gib": memory - 8}}
        luck = 1.0 if baseline else draw.random()
        if luck < 0.08 and method == "full":
            given |= {"status": "oom", "peak_memory_gib": None, "cost_class": f"{key}-oom"}
            given |= {"reason": f"step 3: the device has 7.9 GiB, {memory:.2f} are needed", "tokens": 12_288}
            loss = None
        elif luck < 0.1:
            given |= {"status": "diverged", "reason": f"loss is not finite at step {draw.randint(2, 90)}"}
            given |= {"tokens": 40_960}
            loss = None
        elif luck < 0.3:
            given |= {"status": "pruned", "reason": "behind 3 others at 51,200 tokens", "tokens": 51_200}
        elif luck < 0.34:
            given |= {"kind": "misfit", "status": "pruned", "reason": "predicted not to fit", "tokens": 0}
        leave_trial(folder, number, method, loss, **given)
    return folder


def leave_metrics(folder: Path, points: int, start: float = 3.0, drop: float = 1.0) -> None:
    """Evaluations over the tokens, falling from ``start`` by ``drop``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": i, "tokens": i * 1024, "eval_loss": start - drop * i / points} for i in range(points)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def leave_whole(folder: Path, trials: int = 34) -> Path:
    """A study of four methods with something in every section of a report, confirmed with three seeds."""
    leave_search(folder, trials)
    draw, luck = random.Random(1), {1001: 0.01, 1002: -0.004, 1003: 0.002}
    leave_confirmed(
        folder, {m: {s: 1.9 + x + g + draw.gauss(0, 0.002) for s, g in luck.items()} for m, x in EFFECTS.items()}
    )
    lines = [json.loads(text) for text in (folder / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        line["mfu"] = 0.3 + line["number"] / 1000
        if line["eval_loss"] is not None:
            leave_metrics(folder / line["folder"], 9, 3.0, 3.0 - line["eval_loss"])
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for method, number in json.loads((folder / "confirm" / "plan.json").read_text()).items():
        if method != "seeds":
            leave_record(folder / str(number), method, 0)
            _say_all(folder / str(number) / "result.json", method)
    return folder


def _say_all(path: Path, method: str) -> None:
    """Add what a real record says of memory by phase, proofs, loss ledger and environment."""
    record = json.loads(path.read_text())
    peak, _ = COSTS[method]
    held = {"load": 0.3, "proof": 0.5, "first_step": 0.9, "steady": 0.92, "eval": 0.6, "save": 0.4}
    record["memory"]["phases"] = {
        phase: {"reserved_gib": peak * (share + 0.08), "allocated_gib": peak * share, "host_gib": 1.5}
        for phase, share in held.items()
    }
    worst = {"step": 20, "relative_error": 0.013, "tolerance": 0.2}
    record["proofs"] = {"gradients": {"passed": 5, "worst": worst}, "packing": None, "kernels": None}
    roles = {"system": {"1": [900, 0]}, "user": {"1": [6_100, 0]}, "assistant": {"1": [21_000, 20_500]}}
    record["train"] |= {"seconds": 58.0, "tokens": TOKENS}
    record["train"]["data"] = {"ledger": {"parts": [{"template": "chatml", "loss_tokens": 20_500, "roles": roles}]}}
    packages = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    record["environment"] = {"git": "abc123", "dirty": False, "device": "H200", "driver": "580.1", "packages": packages}
    path.write_text(json.dumps(record))
