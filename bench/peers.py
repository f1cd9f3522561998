"""Full, LoRA and QLoRA against the peers on one GPU: the same ids, interleaved, twice, in one visit.

    python bench/peers.py --list
    python bench/peers.py --row intern18_lora --tokenizer tokenizer.model --out results/
    python bench/peers.py --row gsm8k_lora --tokenizer tokenizer.model --data gsm8k.jsonl --out results/
    python bench/peers.py --row intern18_lora --tiny --rounds 1 --out results/      a trial on a CPU

Our own pipeline turns the row's data into steps; every peer reads them from a file, and sweeptune makes them again
through ``train.py``, with every proof and measurement on. All load one base model, random weights that are written once
to ``--work``. A run is a process of its own (`stacks.py`); its figures are kept in ``--out`` when it ends, and one that
failed is a row of the table. The table replaces the row's section in ``--results``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import gib, head, line
from stacks import ROOT, Job, digest, read_steps, save_steps

from sweeptune.config.compose import compose
from sweeptune.config.schema import Config
from sweeptune.data import (
    hash_plan,
    hash_rows,
    load_run_tokenizer,
    load_splits,
    micro_batches,
    plan_steps,
    samples,
)
from sweeptune.data.conversation import conversation
from sweeptune.data.fit import HoldOut
from sweeptune.tracking.files import write_text

PEERS = ("transformers", "liger", "trl", "unsloth")
WARMUP = 5
"""What our own watch leaves out (`sweeptune.tracking.record.WARMUP_STEPS`); every stack leaves out the same."""
LR = 1e-4
HELD_OUT = 8
FP8 = ["method=lora_fp8"]
PLAIN = ["hardware.kernels=plain"]


@dataclass(frozen=True)
class Row:
    """The conditions of one comparison."""

    method: str
    """full, lora or qlora."""
    model: str = "internlm2_1_8b"
    """An option of conf/model, whose architecture gets random weights."""
    dtype: str = "bf16"
    """Storage of the weights; with fp32 the products are bf16 under autocast."""
    rows: tuple[int, ...] = (8,)
    """Rows of 2048 tokens a step and a pass; of several, each stack keeps the fastest that fits."""
    length: int = 2048
    checkpointing: bool = False
    cap_gib: float | None = None
    """Enforced limit on the GPU's memory, the CUDA context included."""
    real: bool = False
    """Rows of the file of ``--data`` at their real lengths, packed by us, instead of full rows of random words."""
    peers: tuple[str, ...] = PEERS
    """Stacks; ``<stack>_free`` is its padding-free variant."""
    variants: dict[str, list[str]] = field(default_factory=lambda: {"sweeptune": []})
    """Our runs, each with what it sets beyond the row's own settings."""
    overrides: tuple[str, ...] = ()
    """Of all of our runs."""
    timeout_s: int = 150


BOTH = {"sweeptune": [], "sweeptune_plain": PLAIN}
LORA = (*PEERS, "unsloth_bf16")
OFFLOAD = {"sweeptune": [], "sweeptune_offload": ["hardware.gradient_checkpointing=offload"]}
SEVEN: dict[str, Any] = {
    "method": "qlora",
    "model": "internlm2_7b",
    "checkpointing": True,
    "peers": LORA,
    "timeout_s": 240,
}
ROWS: dict[str, Row] = {
    "intern18_full": Row("full", variants=BOTH),
    "intern18_lora": Row("lora", peers=LORA, variants=BOTH | {"sweeptune_fp8": FP8}),
    "intern18_qlora": Row("qlora", peers=LORA, variants=BOTH),
    "intern18_lora_ckpt": Row("lora", peers=LORA, checkpointing=True, variants=OFFLOAD),
    "intern18_qlora_ckpt": Row("qlora", peers=LORA, checkpointing=True, variants=OFFLOAD),
    "intern18_full_fp32": Row("full", dtype="fp32", variants=BOTH),
    "intern7_qlora": Row(**SEVEN, rows=(1,), variants=OFFLOAD),
    "intern7_qlora_cap8": Row(**SEVEN, rows=(4, 3, 2), cap_gib=8, variants=OFFLOAD),
    "gsm8k_lora": Row(
        "lora",
        real=True,
        peers=("transformers", "liger", "trl", "unsloth", "liger_free", "trl_free", "unsloth_free"),
    ),
}


@dataclass(frozen=True)
class Visit:
    """What holds for every run of one command."""

    name: str
    row: Row
    out: Path
    work: Path
    steps: int
    tokenizer: Path | None
    data: Path | None
    timeout_s: int
    tiny: bool

    @property
    def base(self) -> Path:
        """The folder of the base model, which rows of one model share."""
        kind = "tiny-fp32" if self.tiny else f"{self.row.model}-bf16"
        return self.work / "base" / kind


def tiny(row: Row) -> Row:
    """The same row small enough for a CPU, in fp32."""
    cuda_only = {"dtype": "fp32", "cap_gib": None, "model": "tiny", "length": 64, "timeout_s": 300}
    return replace(row, rows=tuple(min(rows, 4) for rows in row.rows), **cuda_only)


# ---- data


def overrides(visit: Visit, rows: int) -> list[str]:
    """The settings of our run on this row, but for a variant's own."""
    row, tokens = visit.row, rows * visit.row.length
    found = [f"model={row.model}", f"model.path={visit.base}", "model.weights=pretrained", f"method={row.method}"]
    found += [f"model.tokenizer={visit.tokenizer}"] if visit.tokenizer else []
    found += [f"model.dtype={row.dtype}"] if row.method == "full" else []
    found += [f"hardware={'cpu' if visit.tiny else 'gpu'}", f"hardware.micro_batch={rows}", "hardware.on_oom=stop"]
    found += ["hardware.gradient_checkpointing=true"] if row.checkpointing else []
    found += [f"hardware.memory_cap_gib={row.cap_gib}"] if row.cap_gib else []
    found += [f"optim.lr={LR}", "optim.schedule=linear", "optim.warmup=0", "optim.max_grad_norm=1.0"]
    found += [f"train.tokens_per_step={tokens}", f"train.max_steps={visit.steps}", "train.epochs=null"]
    found += ["train.checkpoint_every=0", "eval.max_samples=4", "eval.batch_size=4", "seed=0"]
    found += ["data=jsonl", f"data.path={data_file(visit)}", f"data.max_length={row.length}"]
    if row.real:
        found += ["data.packing=pack"]
    else:
        found += ["template=none", "data.format=prompt_completion", "data.loss_on=all", "data.packing=none"]
        found += ["data.on_long_row=truncate"]
    return [*found, *row.overrides]


def data_file(visit: Visit) -> Path:
    """Where the row's data is."""
    if visit.row.real:
        if visit.data is None:
            raise SystemExit(f"--row {visit.name} needs --data: a jsonl file of questions and answers")
        return visit.data
    return visit.work / visit.name / "words.jsonl"


def write_words(path: Path, config: Config, words: Sequence[str], count: int) -> None:
    """Rows of random words that are cut at max_length, ``count`` of them to learn and a few short ones held out."""
    draw, held = random.Random(0), HoldOut(config.data)
    wanted = {"train": count, "eval": HELD_OUT, "test": HELD_OUT}
    lines: list[str] = []
    for part, left in wanted.items():
        # No word is less than a token, so that every row to learn is longer than what is kept of it.
        size = config.data.max_length + 8 if part == "train" else config.data.max_length // 16
        while left:
            prompt, completion = draw.choice(words) + " ", " ".join(draw.choices(words, k=size))
            if held.part(conversation([("user", prompt), ("assistant", completion)]).split_key) == part:
                lines.append(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
                left -= 1
    path.write_text("".join(lines))


def vocabulary_words(tokenizer: Any) -> list[str]:
    """The words of a vocabulary, so that ids spread over it; made-up ones for a byte-level tokenizer."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = sorted({word for word in (piece.lstrip("▁Ġ") for piece in pieces) if word.isalpha()})
    if len(words) > 1000:
        return words
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]


@dataclass(frozen=True)
class Plan:
    """The steps of our own pipeline.

    Attributes:
        path: The npz that peers read.
        ids: `digest` of what is in it, which peers report of what they trained on.
        ours: What our own record calls the order of the data and the loss mask.
    """

    path: Path
    ids: str
    ours: dict[str, str]


def make_steps(visit: Visit, rows: int) -> Plan:
    """Write the steps of our own pipeline to an npz, in our order; the words are written first."""
    (visit.work / visit.name).mkdir(parents=True, exist_ok=True)
    config = compose([*overrides(visit, rows), "hardware=cpu", "hardware.memory_cap_gib=null"])
    tokenizer = load_run_tokenizer(config.model, config.template)
    if not visit.row.real:
        count = visit.steps * max(visit.row.rows)
        write_words(data_file(visit), config, vocabulary_words(tokenizer), count)
    splits = load_splits(config.data, config.eval, config.template, tokenizer)
    steps = plan_steps(splits.train, config.data, config.train, config.seed)
    assert len(steps) == visit.steps, f"{len(steps)} steps out of this data instead of {visit.steps}"
    found = []
    for step in steps:
        packs = [pack for part in micro_batches(samples(splits.train, step.packs), rows) for pack in part]
        found.append([[(sample.input_ids, sample.loss_mask) for sample in pack] for pack in packs])
    if not visit.row.real:
        check_full(found, rows, visit.row.length)
    path = visit.work / visit.name / f"steps-{rows}.npz"
    save_steps(path, found)
    ours = {"data_order": hash_plan(splits.train, steps), "loss_mask": hash_rows(splits.train)}
    return Plan(path, digest(read_steps(path)), ours)


def check_full(steps: Sequence[Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]]], rows: int, size: int) -> None:
    """See that every row is one sample of full length, with loss on all that can be predicted."""
    for step in steps:
        assert len(step) == rows, f"{len(step)} rows in a step instead of {rows}"
        for row in step:
            lengths = [len(ids) for ids, _ in row]
            assert lengths == [size], f"a row of {lengths} tokens instead of {size}"
            assert sum(row[0][1]) >= size - 2, f"only {sum(row[0][1])} of {size} tokens bear loss"


# ---- runs


def work_of(stack: str) -> str:
    """The worker that runs a stack or a variant of ours.

    Example:
        >>> work_of("sweeptune_plain"), work_of("trl_free"), work_of("unsloth_bf16")
        ('sweeptune', 'trl', 'unsloth_bf16')
    """
    return "sweeptune" if stack.startswith("sweeptune") else stack.removesuffix("_free")


def job_of(visit: Visit, stack: str, rows: int, ids: Path, folder: Path) -> Job:
    """The conditions of one run."""
    row = visit.row
    layout = "full" if not row.real else "free" if stack.endswith("_free") else "padded"
    own = [*overrides(visit, rows), *row.variants.get(stack, [])] if work_of(stack) == "sweeptune" else []
    return Job(
        method=row.method,
        folder=str(visit.base),
        ids=str(ids),
        work=str(folder),
        dtype=row.dtype,
        layout=layout,
        micro_batch=rows,
        steps=visit.steps,
        warmup=WARMUP,
        checkpointing=row.checkpointing,
        cap_gib=row.cap_gib,
        lr=LR,
        device="cpu" if visit.tiny else "cuda",
        overrides=own,
    )


def start(visit: Visit, stack: str, job: Job, target: Path) -> dict[str, Any]:
    """Run a worker until it ends or its time is over; its output goes beside ``target``."""
    source, folder = target.with_suffix(".job.json"), Path(job.work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source.write_text(json.dumps(asdict(job), indent=1))
    target.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "bench" / "stacks.py"), work_of(stack), str(source), str(target)]
    reason = ""
    with target.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env=environment()
        )
        try:
            process.wait(visit.timeout_s)
        except subprocess.TimeoutExpired:
            reason = f"not ready after {visit.timeout_s} s"
        finally:
            end(process)
    shutil.rmtree(folder, ignore_errors=True)  # our run's checkpoints take gigabytes
    if reason:
        found: dict[str, Any] = {"status": "timeout", "reason": reason}
    elif target.is_file():
        found = json.loads(target.read_text())
    else:
        found = {"status": "crashed", "reason": f"ended with {process.returncode} and left nothing"}
    target.write_text(json.dumps(found, indent=1))
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a worker with all that it started: DataLoader workers outlive a killed parent for a while."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment() -> dict[str, str]:
    """What a worker sees: no hub, no statistics, and src/ first."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | offline | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def provide_base(visit: Visit) -> None:
    """Write the base model, where an earlier row of this visit has not."""
    if visit.base.is_dir():
        return
    visit.base.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(f"{visit.base}.part", ignore_errors=True)
    model = compose([f"model={visit.row.model}", "model.weights=random", "hardware=cpu"]).model
    job = Job(
        method="full",
        folder=str(visit.base),
        work=str(visit.work / "base-work"),
        dtype="fp32" if visit.tiny else "bf16",
        device="cpu" if visit.tiny else "cuda",
        architecture=model.architecture,
        tokenizer=str(visit.tokenizer) if visit.tokenizer else None,
    )
    begin = time.perf_counter()
    found = start(replace(visit, timeout_s=400), "base", job, visit.out / "base.json")
    if found["status"] != "completed":
        raise SystemExit(f"the base model was not made: {found['reason']} ({visit.out / 'base.log'})")
    print(f"base model: {found['notes']}, {time.perf_counter() - begin:.0f} s, {visit.base}", flush=True)


Run = dict[str, Any]


def measure(visit: Visit, stacks: Sequence[str], rounds: int, keep: Callable[[list[Run]], None]) -> list[Run]:
    """Every stack once a round, in turn. What failed in the first round is not tried again, and where several numbers
    of rows were, later rounds repeat the fastest that fits."""
    plans = {rows: make_steps(visit, rows) for rows in visit.row.rows}
    runs: list[Run] = []
    for number in range(1, rounds + 1):
        for stack in stacks:
            for rows in chosen(runs, stack, visit.row.rows) if number > 1 else visit.row.rows:
                began = time.perf_counter()
                target = visit.out / f"{visit.name}-{stack}-{rows}-{number}.json"
                if visit.tiny and work_of(stack) not in ("transformers", "sweeptune"):
                    found: Run = {"status": "skipped", "reason": "needs a CUDA GPU"}
                else:
                    job = job_of(visit, stack, rows, plans[rows].path, visit.work / visit.name / "run")
                    found = start(visit, stack, job, target)
                if found["status"] == "completed" and not same_ids(found, plans[rows]):
                    found |= {"status": "crashed", "reason": "trained on other ids than the rest"}
                runs.append({"stack": stack, "round": number, "rows": rows, **found})
                print(told(runs[-1], time.perf_counter() - began), flush=True)
                keep(runs)
    return runs


def same_ids(found: Run, plan: Plan) -> bool:
    """Whether a run trained on the ids of the plan, in its order and with its labels."""
    return bool(found["plan"] == plan.ours if "plan" in found else found["ids"] == plan.ids)


def chosen(runs: list[Run], stack: str, rows: Sequence[int]) -> list[int]:
    """The number of rows that a stack was fastest with in the first round; none where nothing worked."""
    done = [run for run in runs if run["stack"] == stack and run["round"] == 1 and run["status"] == "completed"]
    return [max(done, key=lambda run: run["tokens_per_s"])["rows"]] if done else []


def told(run: Run, seconds: float) -> str:
    """One line on a run that has ended."""
    words = f"round {run['round']} {run['stack']}, {run['rows']} rows: {run['status']}"
    if run["status"] != "completed":
        return f"{words}: {run.get('reason')} ({seconds:.0f} s)"
    sizes = f"{gib(run.get('allocated_gib'))} allocated, {gib(run.get('reserved_gib'))} reserved"
    losses = f"loss {run['losses'][0]:.4f} -> {run['losses'][-1]:.4f}"
    return f"{words}: {run['tokens_per_s']:,.0f} tokens/s, {sizes} GiB, {losses} ({seconds:.0f} s)"


# ---- the table

COLUMNS = (
    "stack",
    "rows",
    "setting",
    "trains",
    "tokens/s, by round",
    "against the best peer",
    "allocated GiB",
    "reserved GiB",
    "host GiB: resident, pinned",
    "loss: first step, timed",
    "gradient norm: first step, timed",
)


def table(runs: list[Run]) -> list[str]:
    """The runs as a markdown table: a line for every stack and number of rows, failures too."""
    cases = list(dict.fromkeys((run["stack"], run["rows"]) for run in runs))
    speeds = {case: speed(runs, case) for case in cases}
    peers = [found for (stack, _), found in speeds.items() if found and work_of(stack) != "sweeptune"]
    best = max(peers, default=None)
    lines = head(COLUMNS)
    for case in cases:
        mine = [run for run in runs if (run["stack"], run["rows"]) == case]
        good = [run for run in mine if run["status"] == "completed"]
        if not good:
            lines.append(line((*case, f"**{mine[0]['status']}**: {brief(mine[0].get('reason'))}", *["-"] * 8)))
            continue
        last, found = good[-1], speeds[case]
        ratio = f"{found / best:.2f}" if found and best else "-"
        shown = " / ".join(f"{run['tokens_per_s']:,.0f}" if run["tokens_per_s"] else "-" for run in good)
        failed = [run for run in mine if run["status"] != "completed"]
        shown += "".join(f" / {run['status']}" for run in failed)
        resident, pinned = worst(good, "rss_gib"), worst(good, "pinned_gib")
        lines.append(
            line(
                (
                    *case,
                    brief(last.get("notes")),
                    f"{last['trainable'] / 1e6:,.2f} M, {last['adapter_dtype']}",
                    shown,
                    ratio,
                    gib(worst(good, "allocated_gib")),
                    gib(worst(good, "reserved_gib")),
                    f"{gib(resident)}, {gib(pinned)}",
                    series(last["losses"]),
                    series(last["norms"]),
                )
            )
        )
    return lines


def speed(runs: list[Run], case: tuple[str, int]) -> float | None:
    """Mean over the rounds."""
    found = [run["tokens_per_s"] for run in runs if (run["stack"], run["rows"]) == case and run.get("tokens_per_s")]
    return statistics.fmean(found) if found else None


def worst(runs: list[Run], key: str) -> float | None:
    """The largest over the rounds."""
    return max((run[key] for run in runs if run.get(key) is not None), default=None)


def series(values: list[float]) -> str:
    """The first step, and the first and the last of the timed ones."""
    if len(values) <= WARMUP:
        return " -> ".join(f"{value:.4f}" for value in values[:1] + values[1:][-1:])
    return f"{values[0]:.4f}, {values[WARMUP]:.4f} -> {values[-1]:.4f}"


def brief(text: str | None) -> str:
    """Fits a cell."""
    return str(text or "-").replace("|", "/").replace("\n", " ")[:160]


def section(visit: Visit, runs: list[Run], command: str) -> str:
    """The row's part of the results, with its conditions."""
    row = visit.row
    done = [run for run in runs if run.get("versions")]
    packages = {name: number for run in done for name, number in run["versions"].items()}
    card = next((run["card"] for run in done if run.get("card")), "CPU")
    size = " or ".join(f"{rows} x {row.length}" for rows in row.rows)
    rows = "GSM8K at its real lengths, " + size if row.real else f"full rows, {size}"
    conditions = [
        f"{row.method} on the shape of {row.model}, random weights stored in {row.dtype}, {rows} tokens a step",
        "gradient checkpointing" if row.checkpointing else "no checkpointing",
        *([f"an enforced cap of {row.cap_gib:g} GiB"] if row.cap_gib else []),
        f"AdamW fused, linear schedule from {LR:g}, clipping at 1.0, loss and gradient norm of every step, DataLoader",
        *(["rank 16, alpha 32, seven linears, dropout 0"] if row.method != "full" else []),
        f"{visit.steps} steps, {visit.steps - WARMUP} of them timed",
    ]
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    return "\n".join(
        [
            f"## Against peers: {visit.name}",
            "",
            "```",
            command,
            "```",
            "",
            f"{time.strftime('%Y-%m-%d')}, {card}; {versions}.",
            "",
            "; ".join(conditions) + ". Ratios compare means of the rounds of this visit; peaks are the larger of the "
            "rounds, over the timed steps.",
            "",
            *table(runs),
            "",
        ]
    )


def with_section(text: str, found: str) -> str:
    """A document with a section put in the place of the one with the same heading, or at the end."""
    heading = found.partition("\n")[0]
    lines = text.splitlines(keepends=True)
    begin = next((i for i, each in enumerate(lines) if each.rstrip("\n") == heading), None)
    if begin is None:
        return text.rstrip("\n") + "\n\n" + found.rstrip("\n") + "\n"
    behind = next((i for i in range(begin + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    rest = "".join(lines[behind:])
    return "".join(lines[:begin]) + found.rstrip("\n") + "\n" + ("\n" + rest if rest else "")


def main() -> None:
    """Measure one row and write its section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), help="what is compared")
    parser.add_argument("--list", action="store_true", help="print rows and stacks, measure nothing")
    parser.add_argument("--stacks", nargs="*", help="some of the row's stacks, in this order")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps, behind {WARMUP} that are not")
    parser.add_argument("--tokenizer", type=Path, help="InternLM2's tokenizer.model")
    parser.add_argument("--data", type=Path, help="GSM8K as a jsonl file, for the row of real lengths")
    parser.add_argument("--out", type=Path, help="folder for the figures and log of every run")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-peers"), help="base models, ids, runs")
    parser.add_argument("--results", type=Path, help="the document whose section is replaced: bench/RESULTS.md")
    parser.add_argument("--timeout", type=int, help="seconds a run may take; by default the row's own")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args()
    if options.list or options.row is None:
        for name, row in ROWS.items():
            print(f"{name:20} {row.method:6} {row.model:15} {', '.join([*row.peers, *row.variants])}")
        return
    row = tiny(ROWS[options.row]) if options.tiny else ROWS[options.row]
    known = [*row.peers, *row.variants]
    stacks = options.stacks or known
    if unknown := [stack for stack in stacks if stack not in known]:
        parser.error(f"--stacks {' '.join(unknown)}: this row has {', '.join(known)}")
    if options.out is None or (options.tokenizer is None and not options.tiny):
        parser.error("--out and, unless --tiny, --tokenizer have to be given")
    visit = Visit(
        name=options.row,
        row=row,
        out=options.out.resolve(),
        work=options.work.resolve(),
        steps=WARMUP + options.steps,
        tokenizer=options.tokenizer.resolve() if options.tokenizer else None,
        data=options.data.resolve() if options.data else None,
        timeout_s=options.timeout or row.timeout_s,
        tiny=options.tiny,
    )
    visit.out.mkdir(parents=True, exist_ok=True)
    # A visit that is ended from outside takes its worker along, which would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = shlex.join(["python", "bench/peers.py", *sys.argv[1:]])
    provide_base(visit)

    def keep(runs: list[Run]) -> None:
        """Leave what there is after every run, so that a visit that ends early loses nothing."""
        write_text(visit.out / f"{visit.name}.md", section(visit, runs, command))
        write_text(visit.out / f"{visit.name}.json", json.dumps(runs, indent=1))

    runs = measure(visit, stacks, options.rounds, keep)
    if options.results:
        before = options.results.read_text() if options.results.is_file() else "# Results\n"
        write_text(options.results, with_section(before, section(visit, runs, command)))
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
