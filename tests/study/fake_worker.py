"""A trainer that costs nothing: it sleeps, pretends to learn, and fails to order. It takes the place of
`sweeptune.launch.worker` through the variable SWEEPTUNE_WORKER, so that studies are tested with real processes.

What it does is told by a JSON file that SWEEPTUNE_FAKE names: ``step_s``, ``steps``, ``sd`` (of the seed's effect),
``effect`` (by method), ``faults`` (trial number -> fault) and ``once`` (faults that a second attempt is spared).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

MEMORY = {"full": 8.0, "lora": 5.0, "qlora": 3.0, "dora": 5.5}
SPEED = {"full": 900.0, "lora": 1200.0, "qlora": 800.0, "dora": 700.0}
TOKENS = 1000  # a step


def memory_of(config: dict[str, Any]) -> float:
    """Peak memory in GiB; the longest rows, which a probe evaluates, need more."""
    rank, probe = config["method"].get("rank", 0), config["eval"]["longest"] is not None
    return MEMORY[config["method"]["name"]] + 0.01 * rank + 0.5 * config["hardware"]["micro_batch"] + 0.1 * probe


def loss_of(config: dict[str, Any], share: float, plan: dict[str, Any]) -> float:
    """The loss after a share of the training: the best rate is 1e-4 for full and 1e-3 for adapters."""
    method, lr = config["method"]["name"], config["optim"]["lr"]
    best = 1e-4 if method == "full" else 1e-3
    reached = 2.0 + 0.2 * math.log10(lr / best) ** 2 + plan.get("effect", {}).get(method, 0.0)
    reached += 0.1 / config["method"].get("rank", 64)
    noise = random.Random(f"{config['seed']} {method} {lr} {plan.get('salt', 0)}").gauss(0, plan.get("sd", 0.0))
    return reached + noise + (4.0 - reached) * math.exp(-4 * share)


def record_of(
    config: dict[str, Any], status: str, reason: str | None, step: int, plan: dict[str, Any]
) -> dict[str, Any]:
    """A record as a worker leaves it."""
    method, steps = config["method"]["name"], config["train"]["max_steps"] or plan["steps"]
    loss = loss_of(config, step / steps, plan) if status == "completed" else None
    judged = {"loss": loss, "best_loss": loss, "initial_loss": 4.0, "perplexity": None, "bits_per_byte": loss}
    judged |= {"loss_tokens": 100, "samples": 10, "tasks": {}}
    probe = config["eval"]["longest"] is not None
    memory, speed = memory_of(config), SPEED[method] + 10 * probe  # what runs alone is faster
    return {
        "schema": 1,
        "status": status,
        "reason": reason,
        "attempts": 1,
        "method": method,
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "eval": judged,
        "test": {**judged, "loss": loss} if config["eval"]["test"] and loss is not None else None,
        "memory": {
            "peak_memory_gib": memory,
            "peak_allocated_gib": None,
            "peak_reserved_gib": None,
            "paged_gib": 0.0,
            "device_gib": None,
            "host_peak_gib": 1.0,
            "phases": {},
        },
        "speed": {
            "tokens_per_s": speed,
            "loss_tokens_per_s": None,
            "step_ms": 1.0,
            "flops_per_token": 1.0,
            "mfu": None,
            "matmul_efficiency": None,
            "excluded_s": 0.0,
            "exclusive": True,
        },
        "train": {
            "steps": step,
            "tokens": step * TOKENS,
            "loss_tokens": step * 500,
            "final_loss": loss,
            "seconds": step * plan.get("step_s", 0.0),
        },
        "params": {"total": 100, "trainable": 10},
        "proofs": {"gradients": None, "packing": None, "kernels": None},
        "fingerprint": {"quality": {"weights": "w"}, "cost": {"device": "fake"}},
        "environment": {"git": None, "dirty": None, "packages": {}, "device": "fake", "driver": None},
        "command": "",
    }


class Run:
    """One run, from where its checkpoint left it."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.steps = self.config["train"]["max_steps"] or plan["steps"]
        self.asked = False
        checkpoint = folder / "checkpoints" / "step.json"
        self.step = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
        starts = folder / "starts.txt"
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        self.attempt = len(starts.read_text().split())

    def fault(self) -> str | None:
        probe = self.folder.parent.name == "probes"
        trial = self.folder.parent.name if self.folder.name.startswith("seed-") else self.folder.name
        faults = self.plan.get("probe_faults" if probe else "faults", {})
        found = faults.get(self.config["method"]["name"] if probe else trial)
        return None if found in self.plan.get("once", []) and self.attempt > 1 else found

    def train(self) -> None:
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "asked", True))
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))
        wrong, evaluated = self.fault(), set()
        for share in [0.0, *self.config["train"].get("eval_at", [])]:
            evaluated.add(round(share * self.steps))
        while self.step < self.steps:
            if self.step in evaluated:
                self.write({"step": self.step, "tokens": self.step * TOKENS, "eval_loss": self.loss()})
            if (self.folder / "pruned.json").exists():
                content = json.loads((self.folder / "pruned.json").read_text())
                return self.end("pruned", content["reason"], pruned_by=content)
            if wrong and self.step == self.steps // 2:
                self.fail(wrong)
            self.step += 1
            time.sleep(self.plan.get("step_s", 0.0))
            self.write({"step": self.step, "tokens": self.step * TOKENS, "loss": self.loss()})
            self.save()
            if self.asked:
                return self.end("interrupted", "stopped by a signal")
        self.write({"step": self.step, "tokens": self.step * TOKENS, "eval_loss": self.loss()})
        self.end("completed", None)

    def loss(self) -> float:
        return loss_of(self.config, self.step / self.steps, self.plan)

    def write(self, line: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        part = self.folder / "checkpoints" / f".step.{os.getpid()}"
        part.write_text(json.dumps({"step": self.step}))
        os.replace(part, self.folder / "checkpoints" / "step.json")

    def end(self, status: str, reason: str | None, **more: Any) -> None:
        record = record_of(self.config, status, reason, self.step, self.plan) | more
        part = self.folder / f".result.{os.getpid()}"
        part.write_text(json.dumps(record))
        os.replace(part, self.folder / "result.json")
        sys.exit(0 if status == "completed" else 130 if status == "interrupted" else 1)

    def fail(self, fault: str) -> None:
        if fault in ("oom", "diverged", "crashed", "invalid_run"):
            self.end(fault, f"told to be {fault}")
        elif fault == "nan":
            self.end("diverged", "step 5: loss nan")
        elif fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            time.sleep(1000)
        elif fault == "disk full":
            self.end("crashed", "no room to write metrics.jsonl")
        elif fault == "garbage":
            (self.folder / "result.json").write_text('{"schema": 1, "status": ')
            sys.exit(0)
        elif fault == "silent":
            sys.exit(3)


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(os.environ["SWEEPTUNE_PARENT"]):
        sys.exit("the launcher is gone")
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command")
    parser.add_argument("--ranks")
    options = parser.parse_args()
    plan = {"steps": 10, **json.loads(Path(os.environ["SWEEPTUNE_FAKE"]).read_text())}
    Run(options.folder, plan).train()


if __name__ == "__main__":
    main()
