"""What saves memory, checked on a real GPU: about three minutes on an H100.

    python bench/memory_gpu.py --work /tmp/memory --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python bench/memory_gpu.py --work /tmp/memory                after: sweeptune fetch smollm2_135m_q4

- Expandable segments: the same rows in four orders (seeds), reserved against allocated, with and without, predicted.
  The gradient proof behind their training fails on random weights, whose loss is flat by then: they have the embedded
  model's, and are skipped without.
- ``optim.in_backward``: the peak, predicted too, and how far the weights are from those of the ordinary step;
  attention's backward adds in any order on a GPU, so a second ordinary run says what equal means.
- ``optim.rounding=stochastic``: the Triton kernel against the plain step, and its speed beside torch's fused AdamW.
- ``model.embedding=cpu`` and ``model.head=nf4``: the peak of a run, predicted too, and the milliseconds of a lookup,
  which must not wait for the device.

Runs are processes of their own and share the GPU: their memory is the allocator's, and no time of theirs is shown.
Figures of time are taken before they start. Loading a checkpoint has a script of its own: bench/loading.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import MODEL, provide_model

from sweeptune.config.allocator import expand_segments
from sweeptune.models.fetch import cached_model

ROWS = 1500
FIXED = "expandable_segments:False"
TRAIN = ["data.max_length=1024", "eval.max_samples=16", "train.epochs=null"]
REAL = [f"model={MODEL}", *TRAIN]
SMALL = ["model=smollm2_135m", "model.weights=random", *TRAIN]
LARGE = [
    "model=internlm2_1_8b",
    "model.weights=random",
    "method=qlora",
    "train.max_steps=3",
    "train.tokens_per_step=8192",
    *TRAIN,
]
FULL = [*SMALL, "method=full", "train.max_steps=4", "optim.max_grad_norm=0", "hardware.micro_batch=512"]
FULL += ["train.tokens_per_step=8192"]

Runs = dict[str, tuple[list[str], dict[str, str]]]


def runs() -> Runs:
    """Name -> overrides and environment."""
    found: Runs = {}
    for seed in range(4):
        order = [*REAL, "method=lora", "hardware.micro_batch=16", "train.max_steps=24", f"seed={seed}"]
        order.append("train.tokens_per_step=16384")
        found[f"order {seed}, expandable"] = order, {}
        found[f"order {seed}, fixed"] = order, {"PYTORCH_ALLOC_CONF": FIXED}
    found["full"] = FULL, {}
    found["full, once more"] = FULL, {}
    found["full, in_backward"] = [*FULL, "optim.in_backward=true"], {}
    pure = [*FULL, "model.dtype=bf16"]
    found["full, bf16"] = pure, {}
    found["full, bf16, stochastic, in_backward"] = [*pure, "optim.rounding=stochastic", "optim.in_backward=true"], {}
    found["qlora"] = LARGE, {}
    found["qlora, embedding=cpu"] = [*LARGE, "model.embedding=cpu"], {}
    found["qlora, embedding=cpu, head=nf4"] = [*LARGE, "model.embedding=cpu", "model.head=nf4"], {}
    return found


def write_rows(file: Path) -> None:
    """Questions and answers of very different lengths."""
    draw = random.Random(0)
    lines = []
    for _ in range(ROWS):
        words = [str(draw.randrange(10**6)) for _ in range(int(2 ** draw.uniform(2, 7)))]
        lines.append(json.dumps({"question": " ".join(words[: len(words) // 2]) + "?", "answer": " ".join(words)}))
    file.write_text("\n".join(lines) + "\n")


def one(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run and predict in this process."""
    expand_segments()
    from sweeptune.config.compose import compose
    from sweeptune.training import run
    from sweeptune.training.estimate import estimate

    config = compose(overrides)
    record = run(config, folder)
    found = {"status": record["status"], "reason": record["reason"], **record.get("memory", {})}
    if record["status"] == "completed":
        found["predicted"] = estimate(config).peak_memory_gib
        found["allocator"] = record["fingerprint"]["cost"]["allocator"]
    return found


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of the device's time for a call."""
    import torch

    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[2:])[5]


def rounding() -> list[str]:
    """The kernel against the plain step, and against torch's optimiser."""
    import torch

    from sweeptune.kernels.adamw import Settings, adamw_, keys_of, plain_adamw_

    torch.manual_seed(0)
    weight, gradient, mean = (torch.randn(2**26, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    square = torch.rand(2**26, device="cuda", dtype=torch.bfloat16)
    fast, plain = ([t.clone() for t in (weight, mean, square)] for _ in range(2))
    settings = Settings(1e-4, 0.9, 0.999, 1e-8, 0.01, 3, keys_of(0, 3, 1))
    adamw_(fast[0], gradient, fast[1], fast[2], settings)
    plain_adamw_(plain[0], gradient, plain[1], plain[2], settings)
    differing = [float((a != b).double().mean()) for a, b in zip(fast, plain, strict=True)]
    farthest = max(float(((a - b).abs() / b.abs().clamp(min=1e-3)).max()) for a, b in zip(fast, plain, strict=True))
    ones = torch.ones(2**24, device="cuda", dtype=torch.bfloat16)
    moments = torch.zeros_like(ones), torch.zeros_like(ones)
    for step in range(1, 101):
        adamw_(ones, torch.ones_like(ones), *moments, Settings(1e-5, 0.9, 0.999, 1e-8, 0.0, step, keys_of(0, step, 0)))
    moved = float((1 - ones.double()).mean())
    ours = milliseconds(lambda: adamw_(fast[0], gradient, fast[1], fast[2], settings))
    parameter = torch.nn.Parameter(weight)
    parameter.grad = gradient
    theirs = milliseconds(torch.optim.AdamW([parameter], fused=True).step)
    bandwidth = 2**26 * 14 / ours / 1e6  # four tensors of 2 bytes read, three written
    return [
        f"| kernel differs from the plain step: weight, mean, square | {', '.join(f'{d:.1e}' for d in differing)} |",
        f"| farthest, relative (a neighbour in bf16 is 0.0078 away) | {farthest:.4f} |",
        f"| 100 updates of 1e-5 on weights of 1, mean change (0.001 is right) | {moved:.6f} |",
        f"| 67 M weights, ms: ours ({bandwidth:.0f} GB/s), torch fused in bf16 | {ours:.3f}, {theirs:.3f} |",
    ]


def lookups() -> list[str]:
    """Rows of a table of 7B's size for 4,096 tokens."""
    import torch
    from torch.nn import functional as F

    from sweeptune.models.tables import HostEmbedding

    embedding = HostEmbedding(92544, 4096, _weight=torch.randn(92544, 4096).bfloat16(), _freeze=True)
    ids = torch.randint(92544, (2, 2048), device="cuda")
    waiting = milliseconds(lambda: embedding(ids))
    embedding.pin()
    embedding(ids)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = embedding(ids)
        waits = "no"
    except RuntimeError as error:
        waits = f"YES: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    table = embedding.weight.detach().cuda()
    equal = torch.equal(found, F.embedding(ids, table)) if waits == "no" else False
    times = [milliseconds(lambda: embedding(ids)), waiting, milliseconds(lambda: F.embedding(ids, table))]
    return [
        f"| 4,096 rows of 8 KB, ms: from locked host memory, through the host, on the device | "
        f"{', '.join(f'{t:.3f}' for t in times)} |",
        "| pages locked; equal to the device's; waits for the device | "
        f"{embedding._readable_at is not None}; {equal}; {waits} |",
    ]


def difference(work: Path, one: str, other: str) -> str:
    """The largest difference of the trained weights of two runs."""
    from safetensors.torch import load_file

    files = [next((work / name / "checkpoints").glob("step-*/trainable.safetensors"), None) for name in (one, other)]
    if None in files:
        return "no weights"
    first, second = (load_file(file) for file in files)
    return f"{max(float((first[name].float() - second[name].float()).abs().max()) for name in first):.1e}"


def start(name: str, work: Path, data: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    overrides, environment = runs()[name]
    common = ["hardware=gpu", "data=jsonl", f"data.path={data}", "hardware.on_oom=stop"]
    given = {override.partition("=")[0] for override in overrides}
    common = [override for override in common if override.partition("=")[0] not in given]
    command = [sys.executable, __file__, "--work", str(work), "--run", name, *common, *overrides]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def planned() -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The runs that can be made here, and why the others cannot."""
    there = cached_model(MODEL) is not None
    reason = f"needs the weights of {MODEL}: give --gguf"
    skipped = [] if there else [name for name, (overrides, _) in runs().items() if f"model={MODEL}" in overrides]
    found = {name: {"status": "skipped", "reason": reason} for name in skipped}
    return [name for name in runs() if name not in found], found


def measure(work: Path, at_once: int) -> dict[str, dict[str, Any]]:
    """All runs, some of them at a time."""
    data = work / "rows.jsonl"
    write_rows(data)
    waiting, found = planned()
    going: dict[str, subprocess.Popen[str]] = {}
    while waiting or going:
        while waiting and len(going) < at_once:
            name = waiting.pop(0)
            going[name] = start(name, work, data)
        for name, process in list(going.items()):
            if process.poll() is not None:
                out = process.communicate()[0].splitlines()
                found[name] = json.loads(out[-1]) if out and process.returncode == 0 else {"status": "crashed"}
                del going[name]
        time.sleep(0.2)
    return found


def main() -> None:
    """Measure everything and print one table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--at-once", type=int, default=8, help="runs that share the GPU")
    parser.add_argument("--run", help="make this run and print JSON (what the processes do)")
    options, overrides = parser.parse_known_args()
    if options.run:
        print(json.dumps(one(options.work / options.run, overrides)))
        return
    expand_segments()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.gguf:
        provide_model(options.gguf)
    import torch

    details = [*rounding(), *lookups()] if torch.cuda.is_available() else []
    torch.cuda.empty_cache()
    found = measure(options.work, options.at_once)
    print("| run | allocator | peak GiB | allocated GiB | predicted GiB | host peak GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in runs():
        seen = found[name]
        if seen["status"] != "completed":
            print(f"| {name} | {seen['status']}: {seen.get('reason')} | | | | |")
            continue
        keys = ("peak_memory_gib", "peak_allocated_gib", "predicted", "host_peak_gib")
        figures = " | ".join("-" if seen[key] is None else f"{seen[key]:.2f}" for key in keys)
        print(f"| {name} | {seen['allocator']} | {figures} |")
    print("\n| check | value |\n| --- | --- |")
    for other in ("full, once more", "full, in_backward"):
        print(f"| largest difference of a weight, full against: {other} | {difference(options.work, 'full', other)} |")
    print("\n".join(details))


if __name__ == "__main__":
    main()
