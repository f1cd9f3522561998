"""Do fused kernels train as the plain code does? Real weights, real data, several seeds; losses on unseen rows.

    python bench/equal_training.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k.jsonl --out results/ --gpus 4
    python bench/equal_training.py --data gsm8k.jsonl --out results/             after: sweeptune fetch smollm2_135m_q4
    python bench/equal_training.py --data gsm8k.jsonl --out results/ --only lora_fp8 full-plain --go-on    what was left
    python bench/equal_training.py --section results/equal.md --results bench/RESULTS.md    put it into the results
    python bench/equal_training.py --tiny --out results/      a trial on a CPU

Every run goes through ``train.py``: 200 steps of 4,096 tokens of the embedded model, for each seed once with
``hardware.kernels=auto`` and once with ``plain``; seeds differ in the order of the rows and in where adapters start.
Runs share GPUs, since only losses count. When one ends, ``equal.json``, ``equal.log`` and the section ``equal.md`` in
``--out`` are written anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, positive, sections_of
from equal_table import KERNELS, Key, Loss, section, table
from gpu import MODEL, provide_model
from peers import put
from spread import Task, slots, spread

from sweeptune.tracking.files import write_text
from sweeptune.tracking.record import find_records

METHODS = ("lora", "qlora", "full", "lora_fp8")
SETTINGS = ["data=jsonl", "data.max_length=512", "train.tokens_per_step=4096", "train.epochs=null"]
SETTINGS += ["hardware.micro_batch=16", "eval.max_samples=64", "eval.batch_size=16", "eval.test=true"]
TINY = ["hardware=cpu", "hardware.precision=bf16", "model=tiny", "data=pydocs", "data.max_length=64"]
TINY += ["train.tokens_per_step=128", "train.epochs=null", "hardware.micro_batch=2", "eval.max_samples=4"]
TINY += ["eval.test=true"]


def name_of(key: Key) -> str:
    """Of a run's folder.

    Example:
        >>> name_of(("lora", "auto", 2))
        'lora-auto-2'
    """
    return "-".join(map(str, key))


def runs(methods: list[str], seeds: int, steps: int, tiny: bool = False) -> dict[Key, list[str]]:
    """(method, kernels, seed) -> overrides; a seed's runs of all methods come before the next seed's.

    Example:
        >>> len(runs(["lora", "full"], seeds=3, steps=200))
        12
    """
    common = TINY if tiny else ["hardware=gpu", f"model={MODEL}", *SETTINGS]
    return {
        (method, kernels, seed): [
            f"method={method}",
            f"hardware.kernels={kernels}",
            f"seed={seed}",
            f"train.max_steps={steps}",
            "train.checkpoint_every=0",
            *common,
        ]
        for seed in range(seeds)
        for method in methods
        for kernels in KERNELS
    }


def wanted(key: Key, only: list[str] | None) -> bool:
    """Whether ``--only`` names a run: by its beginning.

    Example:
        >>> wanted(("lora", "plain", 1), ["lora-plain"]), wanted(("lora_fp8", "plain", 1), ["lora"])
        (True, False)
    """
    return only is None or any(f"{name_of(key)}-".startswith(f"{each}-") for each in only)


def task_of(key: Key, overrides: list[str], work: Path, tiny: bool) -> Task:
    """A run as a command; on a CPU through a ladder's worker, which lets the fused path run there."""
    folder = work / name_of(key)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder / 'run'}"]
    if tiny:
        job = {"overrides": overrides, "patches": ["cpu_kernels"], "folder": str(folder / "run")}
        write_text(folder / "rung.json", json.dumps(job | {"target": str(folder / "inside.json")}))
        command = [sys.executable, str(ROOT / "bench" / "ladder.py"), "--worker", str(folder / "rung.json")]
    return Task(name_of(key), command, folder / "log.txt")


def read(key: Key, task: Task, code: int | None) -> Loss:
    """A run's test loss, or why there is none: also where it was of other kernels."""
    folder = task.log.parent
    log = task.log.read_text(errors="replace")[-3000:]
    found: Loss = {"method": key[0], "kernels": key[1], "seed": key[2], "loss": None, "reason": None, "log": log}
    records = find_records(folder / "run")
    shutil.rmtree(folder / "run", ignore_errors=True)  # checkpoints
    if code is None or not records:
        last = (log.strip() or "nothing").splitlines()[-1]
        return found | {"reason": "took too long" if code is None else f"ended with {code}, no record: {last}"}
    record: dict[str, Any] = records[0][1]
    if record["status"] != "completed":
        return found | {"reason": f"{record['status']}: {record['reason']}"}
    ran, expected = record["fingerprint"]["cost"].get("kernels"), "fused" if key[1] == "auto" else "plain"
    if ran != expected:
        return found | {"reason": f"ran with {ran} kernels instead of {expected}"}
    quality = record["fingerprint"]["quality"]
    same = {part: quality.get(part) for part in ("data_order", "loss_mask", "test_split")}
    environment = {part: record["environment"].get(part) for part in ("device", "git", "packages")}
    found |= {"loss": record["test"]["loss"], "eval_loss": record["eval"]["loss"], "same": same}
    return found | {"environment": environment}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a jsonl file of questions and answers")
    parser.add_argument("--out", type=Path, help="folder for the table and the losses")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-equal"), help="folder for the runs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--only", nargs="+", help="some of the runs, by the beginning of their names: lora-plain")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each method and kernels")
    parser.add_argument("--steps", type=positive, help="200; 4 with --tiny")
    parser.add_argument("--gpus", type=positive, default=1, help="runs are spread over so many")
    parser.add_argument("--at-once", type=positive, default=6, help="runs that share a GPU")
    parser.add_argument("--timeout", type=float, default=400, help="seconds a run may take")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run that would end after these")
    parser.add_argument("--go-on", action="store_true", help="keep the losses that --out has")
    parser.add_argument("--section", type=Path, help="measure nothing: put this section into --results")
    parser.add_argument("--results", type=Path, help="the document whose section is replaced: bench/RESULTS.md")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    return parser


def main() -> None:
    """Run everything, then print the table."""
    parser = arguments()
    options = parser.parse_args()
    if options.section:
        put(options.results, *sections_of(parser, [options.section], options.results))
        return
    if options.out is None or (options.data is None and not options.tiny):
        parser.error("--out and, unless --tiny, --data have to be given")
    if not any(wanted(key, options.only) for key in runs(options.methods, options.seeds, 1)):
        parser.error(f"--only {' '.join(options.only)}: no run begins so; names are <method>-<auto|plain>-<seed>")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; --tiny is a trial on a CPU")
    if not options.tiny and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes what runs along
    steps = options.steps or (4 if options.tiny else 200)
    command = shlex.join(["python", "bench/equal_training.py", *sys.argv[1:]])
    options.out.mkdir(parents=True, exist_ok=True)
    before = options.out / "equal.json"
    found: list[Loss] = json.loads(before.read_text()) if options.go_on and before.is_file() else []
    done = {(each["method"], each["kernels"], each["seed"]) for each in found if each["loss"] is not None}
    found = [each for each in found if each["loss"] is not None]  # what failed is tried again
    data = [f"data.path={options.data.resolve()}"] if not options.tiny else []
    if not options.tiny:
        provide_model(options.gguf)
    tasks, keys = [], {}
    for key, overrides in runs(options.methods, options.seeds, steps, options.tiny).items():
        if key not in done and wanted(key, options.only):
            keys[name_of(key)] = key
            tasks.append(task_of(key, [*overrides, *data], options.work.resolve(), options.tiny))

    def ended(task: Task, code: int | None, seconds: float) -> None:
        found.append(read(keys[task.name], task, code))
        print(f"{task.name}: {found[-1]['loss'] or found[-1]['reason']} ({seconds:.0f} s)", flush=True)
        write_text(before, json.dumps(found, indent=1))
        write_text(options.out / "equal.log", "\n".join(f"== {name_of_loss(e)}\n{e['log']}\n" for e in found))
        write_text(options.out / "equal.md", section(found, options.methods, options.seeds, steps, command))

    ends = time.monotonic() + options.seconds
    places = slots(options.gpus, 1 if options.tiny else options.at_once)
    left = spread(tasks, places, ended, timeout_s=options.timeout, ends=ends)
    if left:
        print(f"no time is left for {', '.join(task.name for task in left)}; go on with --go-on", flush=True)
    if options.results:
        put(options.results, section(found, options.methods, options.seeds, steps, command))
    print("\n".join(table(found, options.methods, options.seeds)))
    if all(each["loss"] is None for each in found):
        sys.exit(1)


def name_of_loss(found: Loss) -> str:
    """`name_of` of what was read."""
    return name_of((found["method"], found["kernels"], found["seed"]))


if __name__ == "__main__":
    main()
