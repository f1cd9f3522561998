"""Packing on a GPU: every back-end proven, every contaminating one refused, and what packing gains over padding.

    python bench/packing.py --data gsm8k.jsonl --tokenizer tokenizer.model --out results/
    python bench/packing.py --data gsm8k.jsonl --model tiny --cpu --out results/      a trial on a CPU

First the proof of DESIGN section 4 on the model with random weights: with each attention back-end that is present, then
with planted faults, which it has to refuse. Then full, LoRA and QLoRA through train.py, packed to 2048 tokens against
a padded sample a row. The tables for bench/RESULTS.md come last and are written to ``--out`` with every record.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import gib, head, line, train

from sweeptune.config.compose import compose
from sweeptune.data import Row
from sweeptune.kernels import attention
from sweeptune.kernels.attention import IMPLEMENTATIONS, Prepared, may_see, present
from sweeptune.models import load_model
from sweeptune.training.proofs import ProofFailed
from sweeptune.training.proofs_packing import prove_packing

COLUMNS = (
    "method",
    "packing",
    "attention",
    "status",
    "rows a pass",
    "real tokens/s",
    "gain",
    "peak GiB",
    "step ms",
    "proof s",
)
METHODS = ("full", "lora", "qlora")
STEPS = 12
LENGTHS = (301, 187, 412, 96, 240, 155, 330, 327)  # 2048 tokens together


def naive(batch: Any, config: Any) -> Prepared:
    """Samples behind each other, as if they were one."""
    return Prepared({"input_ids": batch.input_ids, "use_cache": False}, batch.labels)


def flat_mask(batch: Any, config: Any) -> Prepared:
    """Position ids that restart, and a 2-D mask that makes transformers overlook it."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    return Prepared(inputs | {"attention_mask": torch.ones_like(batch.input_ids)}, batch.labels)


def one_position(batch: Any, config: Any) -> Prepared:
    """A mask that is right but for one entry, in the last sample."""
    ready = RIGHT["sdpa"](batch, config)
    if batch.segments is not None:
        mask = may_see(batch.segments).clone()
        first = int((batch.segments[0] == batch.segments.max()).nonzero()[0])
        mask[0, 0, first, first - 1] = True
        ready.inputs["attention_mask"] = mask
    return ready


def joined(batch: Any, config: Any) -> Prepared:
    """varlen with the boundary between the last two samples missing."""
    ready = RIGHT["varlen"](batch, config)
    bounds = ready.inputs["cu_seq_lens_q"]
    if len(bounds) > 2:
        fewer = torch.cat([bounds[:-2], bounds[-1:]])
        longest = int(fewer.diff().max())
        ready.inputs.update(cu_seq_lens_q=fewer, cu_seq_lens_k=fewer, max_length_q=longest, max_length_k=longest)
    return ready


RIGHT = dict(attention.INPUTS)
FAULTS: dict[str, tuple[str, Callable[[Any, Any], Prepared]]] = {
    "naive packing": ("sdpa", naive),
    "sdpa, restarting positions and a 2-D mask": ("sdpa", flat_mask),
    "eager, restarting positions and a 2-D mask": ("eager", flat_mask),
    "sdpa, one wrong entry in the mask": ("sdpa", one_position),
    "varlen, one boundary missing": ("varlen", joined),
}


def packed(lengths: tuple[int, ...], vocabulary: int) -> list[Row]:
    """Random samples of these lengths, whose second halves bear loss."""
    torch.manual_seed(0)
    return [
        Row(str(i), torch.randint(vocabulary, (n,)).tolist(), [2 * at > n for at in range(n)], 0)
        for i, n in enumerate(lengths)
    ]


def prove(model: Any, row: list[Row], compute: torch.dtype) -> tuple[str, str, float]:
    """What the proof says, in which words, after how many seconds."""
    device = model.device

    def autocast() -> Any:
        return nullcontext() if compute is torch.float32 else torch.autocast(device.type, compute)

    begin = time.perf_counter()
    try:
        found = prove_packing(model, row, compute, autocast, 0)
        words, said = "proven", f"loss off by {found['relative_difference']:.1e} of {found['tolerance']:.0e}"
    except ProofFailed as error:
        words, said = "refused", str(error).partition(": ")[2].partition(";")[0]
    except Exception as error:  # a back-end that does not run at all is an answer, too
        words, said = "failed", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return words, said, time.perf_counter() - begin


def proofs(overrides: list[str], cpu: bool) -> list[str]:
    """The table of back-ends and faults. Each is proven twice: the first time also compiles and warms up."""
    device, compute = (torch.device("cpu"), torch.float32) if cpu else (torch.device("cuda"), torch.bfloat16)
    config = compose([*overrides, "model.attention=sdpa"])
    model = load_model(config.model, dtype=compute, device=device)
    vocabulary = model.get_input_embeddings().num_embeddings
    row = packed(tuple(n // 8 for n in LENGTHS) if cpu else LENGTHS, vocabulary)
    table = head(("back-end", "proof", "what it says", "first s", "second s"))
    usable = [name for name, obstacle in present().items() if obstacle is None]
    cases = [(name, name, RIGHT[name]) for name in usable]
    cases += [(f"*{fault}*", name, made) for fault, (name, made) in FAULTS.items() if name in usable]
    for label, name, made in cases:
        model.set_attn_implementation(IMPLEMENTATIONS[name])
        attention.INPUTS[name] = made
        words, said, first = prove(model, row, compute)
        words, said, second = prove(model, row, compute)
        attention.INPUTS[name] = RIGHT[name]
        table.append(line((label, words, said, f"{first:.2f}", f"{second:.2f}")))
        print(table[-1], flush=True)
    for name, obstacle in present().items():
        if obstacle:
            table.append(line((name, "not present", obstacle, "-", "-")))
    del model
    gc.collect()
    if not cpu:
        torch.cuda.empty_cache()
    return table


def runs(overrides: list[str], cpu: bool, work: Path, keep: Callable[[list[str], dict[str, Any]], None]) -> None:
    """Packed against padded training; ``keep`` gets the table and the records after each run."""
    size = "256" if cpu else "2048"
    common = [
        *overrides,
        f"data.max_length={size}",
        f"train.max_steps={STEPS}",
        "eval.max_samples=16",
        "train.epochs=null",
    ]
    common += [f"train.tokens_per_step={4 * int(size) if cpu else 32768}", "train.checkpoint_every=0"]
    table = head(COLUMNS)
    records: dict[str, Any] = {}
    for method in METHODS:
        base = None
        for packing, rows in (("none", 32), ("pack", 4)) if not cpu else (("none", 4), ("pack", 2)):
            name = f"{method}-{packing}"
            run = [f"method={method}", f"data.packing={packing}", f"hardware.micro_batch={rows}"]
            record = train(name, [*common, *run], work)
            if record is None:
                table.append(line((method, packing, "-", "no record", rows, *"-----")))
                continue
            records[name] = record
            speed, proof = record["speed"]["tokens_per_s"], record["proofs"]["packing"]
            base = speed if packing == "none" else base
            cost = record["fingerprint"].get("cost") or {}
            cells = (
                method,
                packing,
                cost.get("attention", "-"),
                record["status"],
                cost.get("micro_batch", rows),
                f"{speed:,.0f}" if speed else "-",
                f"{speed / base:.2f} x" if speed and base else "-",
                gib(record["memory"]["peak_memory_gib"]),
                f"{record['speed']['step_ms']:.0f}" if record["speed"]["step_ms"] else "-",
                f"{proof['seconds']:.2f}" if proof else "-",
            )
            table.append(line(cells))
            keep(table, records)


def main() -> None:
    """Prove, then train, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, logs and records")
    parser.add_argument("--model", default="internlm2_1_8b", help="the option of conf/model, with random weights")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer: a folder or a tokenizer.model file")
    parser.add_argument("--cpu", action="store_true", help="small, on the CPU, in fp32")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-packing"), help="folder for the runs")
    parser.add_argument("--part", choices=["proofs", "runs"], help="one half only")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.work, ignore_errors=True)
    overrides = [f"model={options.model}", "model.weights=random", f"hardware={'cpu' if options.cpu else 'gpu'}"]
    overrides += ["data=jsonl", f"data.path={options.data.resolve()}"]
    if options.tokenizer:
        overrides.append(f"model.tokenizer={options.tokenizer.resolve()}")
    device = platform.processor() or "CPU" if options.cpu else torch.cuda.get_device_name()
    text = [f"{options.model}, random weights, {device}, torch {torch.__version__}", ""]
    begin = time.perf_counter()
    if options.part != "runs":
        text += [*proofs(overrides, options.cpu), ""]

    def keep(table: list[str], records: dict[str, Any]) -> None:
        """Write what there is, so that a visit that ends early loses nothing."""
        (options.out / "packing.md").write_text("\n".join([*text, *table]) + "\n")
        (options.out / "records.json").write_text(json.dumps(records, indent=1))
        logs = [f"== {path.stem}\n{path.read_text()[-3000:]}\n" for path in sorted(options.work.glob("*.log"))]
        (options.out / "logs.txt").write_text("\n".join(logs))

    keep([], {})
    if options.part != "proofs":
        runs(overrides, options.cpu, options.work, keep)
    print((options.out / "packing.md").read_text())
    print(f"all of it: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
