"""Learning curves of many configurations, recorded in one process: what bench/search.py replays.

    python bench/record_curves.py --out bench/curves/tiny.csv       the tiny model on the CPU, 20 minutes
    python bench/record_curves.py --model smollm2_135m_q4 --data gsm8k.jsonl --ranks 4 16 64 --limit-s 540 \\
        --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out bench/curves/smollm2_135m_q4.csv      the embedded model on a GPU

Every method at several ranks and learning rates, one seed each; the recommended settings of every method with three.
All runs of a file have the same data, tokens and schedule, and are evaluated at the same shares of the tokens. The
steps are the package's own (`train_step`, `evaluate`); proofs and checkpoints are left out. A line of the CSV is one
evaluation; the file grows as runs end, and the same command goes on where it was stopped (a file belongs to one set of
ranks). Several processes share the work with ``--part``, each with a file and a ``--work`` folder of its own.

Memory of a run on a GPU is what the allocator reserved at most over its steps and evaluations, as everywhere. On a CPU
the process is shared by all runs and its resident set says nothing, so it is counted instead, independently of any
allocator: weights and gradients and moments as stored, and the most bytes that one forward pass keeps for its backward
pass, by PyTorch's saved-tensor hooks.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import json
import logging
import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from gpu import provide_model

from sweeptune.config.compose import compose
from sweeptune.data import collate_packs, micro_batches, samples
from sweeptune.data.pydocs import load_pydocs
from sweeptune.training.evaluate import evaluate as score_rows
from sweeptune.training.evaluate import summarize
from sweeptune.training.loop import Diverged, count
from sweeptune.training.loss import token_nll
from sweeptune.training.oom import is_out_of_memory
from sweeptune.training.placement import GIB
from sweeptune.training.session import Session, open_session
from sweeptune.training.step import train_step

COLUMNS = ("model", "run", "method", "rank", "lr", "seed", "baseline", "status", "peak_memory_gib", "memory_by",
           "tokens_per_s", "planned_tokens", "tokens", "eval_loss")  # fmt: skip
SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Of the planned tokens, where every run is evaluated, beside before the first step."""
RANKS = (2, 4, 8, 16, 32, 64)
USUAL_RANK = 16
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Learning rates, as multiples of a method's recommended one."""
FULL_FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SEEDS = (0, 1, 2)
METHODS = ("full", "lora", "qlora", "dora")
TINY = ["model=tiny", "hardware=cpu", "data=jsonl", "data.max_length=256", "train.tokens_per_step=1024",
        "train.max_steps=32", "eval.max_samples=64", "eval.batch_size=32", "hardware.micro_batch=16"]  # fmt: skip
GPU = ["hardware=gpu", "data=jsonl", "data.max_length=512", "train.tokens_per_step=16384", "train.max_steps=24",
       "eval.max_samples=64", "eval.batch_size=16", "hardware.micro_batch=64"]  # fmt: skip


def configurations(rates: dict[str, float], ranks: Sequence[int]) -> list[dict[str, Any]]:
    """What is recorded: baselines with every seed first, then the rest in a mixed order, so that a time limit leaves
    some of everything.

    Args:
        rates: Each method's recommended learning rate.
        ranks: Those of the adapters.
    """
    points = [{"method": "full", "rank": None, "lr": rates["full"] * factor} for factor in FULL_FACTORS]
    points += [
        {"method": method, "rank": rank, "lr": rates[method] * factor}
        for method, rank, factor in itertools.product(METHODS[1:], ranks, FACTORS)
    ]
    first, rest = [], []
    for point in points:
        usual = point["lr"] == rates[point["method"]] and point["rank"] in (None, USUAL_RANK)
        (first if usual else rest).append({**point, "baseline": usual, "seed": 0})
    random.Random(0).shuffle(rest)
    return [{**point, "seed": seed} for seed in SEEDS for point in first] + rest


def overrides_of(point: dict[str, Any]) -> list[str]:
    """The point as a user would type it; alpha follows the rank, as in the recommended settings."""
    found = [f"method={point['method']}", f"optim.lr={point['lr']:.6g}", f"seed={point['seed']}"]
    return (
        found
        if point["rank"] is None
        else [*found, f"method.rank={point['rank']}", f"method.alpha={2 * point['rank']}"]
    )


def record(overrides: list[str], folder: Path) -> dict[str, Any]:
    """One run: status, memory, speed and the losses by tokens."""
    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    session = open_session(compose(overrides), folder)
    planned = sum(step.tokens for step in session.steps)
    found: dict[str, Any] = {"status": "completed", "planned_tokens": planned, "losses": []}
    try:
        follow(session, planned, found)
    except Diverged:
        found["status"] = "diverged"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found["status"] = "oom"
    return found


def follow(session: Session, planned: int, found: dict[str, Any]) -> None:
    """Train and evaluate at the rungs."""
    cuda = session.device.type == "cuda"
    left = [share * planned for share in SHARES]
    evaluate(session, found)
    seconds, timed = 0.0, 0
    session.model.train()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for number, step in enumerate(session.steps):
        start = time.perf_counter()
        loss, _, _ = train_step(session, step)
        if not torch.isfinite(loss):
            raise Diverged(f"step {number}: loss {loss.item()}")
        count(session, step)
        if number >= 3:
            seconds, timed = seconds + time.perf_counter() - start, timed + step.tokens
        if session.progress.tokens >= left[0] - 0.5:
            evaluate(session, found)
            left = [tokens for tokens in left if tokens > session.progress.tokens]
    found["tokens_per_s"] = timed / seconds if timed else None
    found["memory_by"] = "allocator" if cuda else "counted"
    found["peak_memory_gib"] = torch.cuda.max_memory_reserved() / GIB if cuda else counted_bytes(session) / GIB


def evaluate(session: Session, found: dict[str, Any]) -> None:
    """Eval loss now."""
    loss = eval_loss(session)
    if not math.isfinite(loss):
        raise Diverged(f"eval loss {loss}")
    found["losses"].append((session.progress.tokens, loss))


def eval_loss(session: Session) -> float:
    """As DESIGN section 4 defines it, without the session's meter, which collects garbage around each evaluation."""
    scored = score_rows(
        session.model,
        session.splits.eval,
        batch_size=session.config.eval.batch_size,
        device=session.device,
        autocast=session.autocast,
        pad_id=session.pad_id,
    )
    return float(summarize(scored)["loss"])


def counted_bytes(session: Session) -> int:
    """Bytes of one step, independent of the allocator: weights with their constants, gradients, the optimiser's state,
    and what the largest micro-batch keeps between its forward and its backward pass."""
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(session)}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    parts = itertools.chain.from_iterable(
        micro_batches(samples(session.splits.train, step.packs), session.progress.micro_batch, 0, 1)
        for step in session.steps
    )
    largest = max(parts, key=lambda part: len(part) * max(sum(row.length for row in pack) for pack in part))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), session.autocast():
        token_nll(session.model, collate_packs(largest, session.pad_id, session.device)).sum()
    gradients = sum(p.nbytes for p in session.model.parameters() if p.requires_grad)
    return sum(kept.values()) + gradients + sum(saved.values())


def tensors_of(session: Session) -> list[torch.Tensor]:
    """Weights, the constants of quantised ones, buffers, moments."""
    constants = [getattr(p, "quant_state", None) for p in session.model.parameters()]
    found = [*session.model.parameters(), *session.model.buffers()]
    for state in constants:
        nested = getattr(state, "state2", None)
        found += [t for t in (getattr(state, "absmax", None), getattr(nested, "absmax", None)) if t is not None]
    moments = [value for state in session.optimizer.optimizer.state.values() for value in state.values()]
    return [t.data for t in found] + [m for m in moments if isinstance(m, torch.Tensor)]


def pretrain(folder: Path) -> None:
    """The tiny model's base: random weights would leave adapters nothing to adapt. Raw text of the same documents."""
    if (folder / "config.json").exists():
        return
    (folder / "run").mkdir(parents=True, exist_ok=True)
    common = [part for part in TINY if not part.startswith(("data", "train"))]
    text = ["data=pydocs_text", "data.max_length=256", "data.packing=split"]
    length = ["train.tokens_per_step=4096", "train.max_steps=400", "method=full", "optim.lr=3e-3"]
    session = open_session(compose([*common, *text, *length]), folder / "run")
    session.model.train()
    for step in session.steps:
        train_step(session, step)
        count(session, step)
    print(f"base: eval loss {eval_loss(session):.4f}", flush=True)
    session.model.save_pretrained(folder)
    session.tokenizer.save_pretrained(folder)


def short_answers(path: Path) -> Path:
    """The tiny model's data: the first paragraphs of Python's docstrings, short enough for a CPU to be quick with."""
    found = []
    for row in load_pydocs():
        question, answer = (str(message.content) for message in row.messages[:2])
        found.append({"question": question.split("`")[1], "answer": answer.split("\n\n")[0][:200]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def rows(model: str, run: int, point: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of one run."""
    head = {"model": model, "run": run, **point, **{key: found.get(key) for key in found if key != "losses"}}
    head["lr"] = f"{point['lr']:.6g}"
    for key, digits in (("peak_memory_gib", 6), ("tokens_per_s", 1)):
        head[key] = round(found[key], digits) if found.get(key) is not None else None
    return [{**head, "tokens": tokens, "eval_loss": round(loss, 6)} for tokens, loss in found["losses"]]


def main() -> None:
    """Record what is not in the file yet, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV; rows are added to it")
    parser.add_argument("--model", default="tiny", help="an option of conf/model; all but tiny run on a GPU")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--data", type=Path, help="a jsonl file of questions and answers (all but tiny)")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="with the recommended 16 among them")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th run from the I-th, for N of these side by side")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no run starts after so many seconds")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sweeptune-curves")
    parser.add_argument("overrides", nargs="*", help="settings for every run, such as train.max_steps=32")
    options = parser.parse_args()
    if USUAL_RANK not in options.ranks:
        parser.error(f"--ranks {options.ranks}: the recommended rank, {USUAL_RANK}, must be among them")
    part, parts = (int(each) for each in options.part.split("/"))
    begin = time.monotonic()
    logging.disable(logging.WARNING)
    if options.model == "tiny":
        pretrain(options.work / "base")
        data = short_answers(options.work / "short.jsonl")
        common = [*TINY, f"data.path={data}", f"model.path={options.work / 'base'}", "model.weights=pretrained"]
    else:
        provide_model(options.gguf)
        common = [f"model={options.model}", *GPU, f"data.path={options.data.resolve()}"]
    rates = {method: compose([*common, f"method={method}"]).method.recommended_lr for method in METHODS}
    if options.model == "tiny":  # its weights are fewer and larger than those that the rates were measured on
        rates["full"] *= 10
    done = {row["run"] for row in csv.DictReader(options.out.open())} if options.out.exists() else set()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for run, point in enumerate(configurations(rates, options.ranks)):
            if run % parts != part or str(run) in done or time.monotonic() - begin > options.limit_s:
                continue
            start = time.monotonic()
            found = record([*common, *overrides_of(point), *options.overrides], options.work / "run")
            writer.writerows(rows(options.model, run, point, found))
            file.flush()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            last = found["losses"][-1][1] if found["losses"] else float("nan")
            print(run, point, found["status"], f"{last:.4f} in {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
