"""Do fused kernels train as the plain code does? Real weights, real data, several seeds; losses on unseen rows.

    python bench/equal_training.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k.jsonl --out results/
    python bench/equal_training.py --data gsm8k.jsonl --out results/             after: sweeptune fetch smollm2_135m_q4

Every run goes through ``train.py``: 200 steps of 4,096 tokens of the embedded model, for each seed once with
``hardware.kernels=auto`` and once with ``plain``; seeds differ in the order of the rows and in where adapters start. Runs share the
GPU, since only losses count. The table for bench/RESULTS.md comes last.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import head, line, train
from gpu import MODEL, provide_model

SETTINGS = ["hardware=gpu", "data=jsonl", "data.max_length=512", "train.tokens_per_step=4096", "train.epochs=null"]
SETTINGS += ["hardware.micro_batch=16", "eval.max_samples=64", "eval.batch_size=16", "eval.test=true"]
KERNELS = ("auto", "plain")


def runs(methods: list[str], seeds: int, steps: int) -> dict[tuple[str, str, int], list[str]]:
    """(method, kernels, seed) -> overrides.

    Example:
        >>> len(runs(["lora", "full"], seeds=3, steps=200))
        12
    """
    return {
        (method, kernels, seed): [
            f"model={MODEL}",
            f"method={method}",
            f"hardware.kernels={kernels}",
            f"seed={seed}",
            f"train.max_steps={steps}",
            *SETTINGS,
        ]
        for method in methods
        for kernels in KERNELS
        for seed in range(seeds)
    }


def table(losses: dict[tuple[str, str, int], float | None], methods: list[str], seeds: int) -> list[str]:
    """Test losses, the mean difference over the seeds that both have, and the spread over plain's seeds."""
    cells = head(["method", "kernels", *(f"seed {seed}" for seed in range(seeds)), "fused - plain", "spread of plain"])
    for method in methods:
        found = {k: [losses.get((method, k, seed)) for seed in range(seeds)] for k in KERNELS}
        both = [(a, b) for a, b in zip(found["auto"], found["plain"], strict=True) if a is not None and b is not None]
        plain = [loss for loss in found["plain"] if loss is not None]
        off = f"{statistics.fmean(a - b for a, b in both):+.4f}" if both else "-"
        spread = f"{statistics.stdev(plain):.4f}" if len(plain) > 1 else "-"
        for kernels in KERNELS:
            values = ["-" if loss is None else f"{loss:.4f}" for loss in found[kernels]]
            last = [off, spread] if kernels == "auto" else ["", ""]
            cells.append(line([method, "fused" if kernels == "auto" else "plain", *values, *last]))
    return cells


def main() -> None:
    """Run everything, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the losses")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-equal"), help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora", "full"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=6, help="runs that share the GPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    provide_model(options.gguf)
    losses: dict[tuple[str, str, int], float | None] = {}
    planned = runs(options.methods, options.seeds, options.steps)

    def one(key: tuple[str, str, int]) -> None:
        overrides = [*planned[key], f"data.path={options.data.resolve()}"]
        record: dict[str, Any] = train("-".join(map(str, key)), overrides, options.work) or {}
        kernels = record.get("fingerprint", {}).get("cost", {}).get("kernels")
        expected = "fused" if key[1] == "auto" else "plain"
        good = record.get("status") == "completed" and kernels == expected
        losses[key] = record["test"]["loss"] if good else None
        text = "\n".join(table(losses, options.methods, options.seeds))
        (options.out / "equal.md").write_text(text + "\n")
        (options.out / "equal.json").write_text(json.dumps({"-".join(map(str, k)): v for k, v in losses.items()}))

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(one, planned))
    print((options.out / "equal.md").read_text())


if __name__ == "__main__":
    main()
