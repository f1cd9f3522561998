"""Full, LoRA and QLoRA against the peers on one GPU: the same ids, interleaved, twice, in one visit.

    python bench/peers.py --list
    python bench/peers.py --row intern18_lora --tokenizer tokenizer.model --out results/
    python bench/peers.py --row gsm8k_lora --tokenizer tokenizer.model --data gsm8k.jsonl --out results/
    python bench/peers.py --row intern18_lora --tokenizer tokenizer.model --out results/ --go-on     what was left
    python bench/peers.py --section results/intern18_lora.md --results bench/RESULTS.md      put it into the results
    python bench/peers.py --row intern18_lora --tiny --rounds 1 --out results/      a trial on a CPU

Our own pipeline turns the row's data into steps; every peer reads them from a file, and sweeptune makes them again
through ``train.py``, with every proof and measurement on. All load one base model, random weights that are written once
to ``--work``. A run is a process of its own (`stacks.py`); while one runs, the next one's imports go on beside it, on
other cores and without the GPU. When it ends, ``<row>.json``, ``<row>.log`` and the section ``<row>.md`` in ``--out``
are written anew, so that a visit that is cut off loses nothing; what failed is a row of the table. With ``--results``
the section replaces the one of an earlier visit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, absent, gib, positive, sections_of
from peers_job import Job, digest, read_steps, save_steps
from peers_rows import LR, ROWS, WARMUP, Row, Visit, tiny, work_of
from peers_table import Run, section, table, with_section

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

HELD_OUT = 8


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


def settled(given: Sequence[str]) -> list[str]:
    """The last value of every setting: none may be given twice.

    Example:
        >>> settled(["method=lora", "seed=0", "method=lora_fp8"])
        ['method=lora_fp8', 'seed=0']
    """
    return [f"{key}={value}" for key, value in dict(each.split("=", 1) for each in given).items()]


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
    config = compose(settled([*overrides(visit, rows), "hardware=cpu", "hardware.memory_cap_gib=null"]))
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


def job_of(visit: Visit, stack: str, rows: int, parts: int, ids: Path, folder: Path) -> Job:
    """The conditions of one run."""
    row = visit.row
    own = settled([*overrides(visit, rows), *row.variants.get(stack, [])]) if work_of(stack) == "sweeptune" else []
    return Job(
        method=row.method,
        folder=str(visit.base),
        ids=str(ids),
        work=str(folder),
        dtype=row.dtype,
        layout=row.layout(stack),
        micro_batch=rows,
        parts=parts,
        steps=visit.steps,
        warmup=WARMUP,
        checkpointing=row.checkpointing,
        cap_gib=row.cap_gib,
        lr=LR,
        device="cpu" if visit.tiny else "cuda",
        overrides=own,
    )


@dataclass
class Ahead:
    """Keeps the worker of the next run, which imports what its stack needs and then waits for its job.

    Attributes:
        folder: Where its output goes until it has a job.
        stack: What it is going to run.
        process: None where nothing waits.
    """

    folder: Path
    stack: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"ahead-{os.getpid()}.log"

    def expect(self, stack: str | None) -> None:
        """Have a worker of this stack, and of no other."""
        if stack == self.stack:
            return
        self.close()
        if stack is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "bench" / "stacks.py"), stack, "-"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env=environment(self.folder),
            )
        self.stack = stack

    def take(self, stack: str, log: Path) -> subprocess.Popen[bytes]:
        """Hand out a worker of this stack, whose output is to be found in ``log``: whoever takes it ends it."""
        self.expect(stack)
        process, self.stack, self.process = self.process, None, None
        assert process is not None
        self.log.replace(log)  # the worker goes on writing into it
        return process

    def close(self) -> None:
        """End what waits."""
        if self.process is not None:
            end(self.process)
        self.stack = self.process = None


def waits(stack: str | None, beside: str, capped: bool) -> bool:
    """Whether the worker of a stack may wait while another one runs: importing Unsloth opens a context on the GPU,
    which our own run would find there as somebody else's memory, and a cap would count as the run's own; and two of
    them share what they compile.

    Example:
        >>> waits("liger", "sweeptune", capped=True), waits("unsloth", "sweeptune", capped=False)
        (True, False)
        >>> waits("unsloth", "trl", capped=False), waits("unsloth", "trl", capped=True)
        (True, False)
    """
    unsloth = stack is not None and stack.startswith("unsloth")
    return stack is not None and not (unsloth and (capped or beside == "sweeptune" or beside.startswith("unsloth")))


def start(
    visit: Visit, stack: str, job: Job, target: Path, ahead: Ahead, following: str | None = None
) -> dict[str, Any]:
    """Run a worker until it ends or its time is over; its output goes beside ``target``.

    Args:
        visit: The conditions.
        stack: What runs.
        job: What it has to do.
        target: What it leaves.
        ahead: Has its worker, as far as it was expected.
        following: The worker that the next run is going to need, whose imports begin now.
    """
    source, folder = target.with_suffix(".job.json"), Path(job.work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source.write_text(json.dumps(asdict(job), indent=1))
    target.unlink(missing_ok=True)
    reason = ""
    process = ahead.take(work_of(stack), target.with_suffix(".log"))
    try:
        tell(process, [str(source), str(target)])
        ahead.expect(following if waits(following, work_of(stack), job.cap_gib is not None) else None)
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
    return found | {"log": target.with_suffix(".log").read_text(errors="replace")[-3000:]}


def tell(process: subprocess.Popen[bytes], paths: list[str]) -> None:
    """Give a waiting worker its job; one that has died is found out by whoever waits for its end."""
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as line:
        line.write(json.dumps(paths).encode() + b"\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a worker with all that it started: DataLoader workers outlive a killed parent for a while."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()


def environment(work: Path) -> dict[str, str]:
    """What a worker sees: no hub, no statistics, src/ first, and a place where Unsloth's second run finds what its
    first has compiled."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return os.environ | offline | own | {"UNSLOTH_COMPILE_LOCATION": str(work / "base" / "unsloth_compiled")}


def provide_base(visit: Visit, following: str | None = None, ahead: Ahead | None = None) -> None:
    """Write the base model, where an earlier row of this visit has not; ``following`` is prepared meanwhile."""
    ahead = ahead or Ahead(visit.work)
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
    found = start(replace(visit, timeout_s=400), "base", job, visit.work / "base.json", ahead, following)
    if found["status"] != "completed":
        raise SystemExit(f"the base model was not made: {found['reason']} ({found.get('log')})")
    print(f"base model: {found['notes']}, {time.perf_counter() - begin:.0f} s, {visit.base}", flush=True)


Turn = tuple[int, str, int, int]
"""Round, stack, number of rows and of passes."""


def turns(row: Row, stacks: Sequence[str], rounds: int, runs: list[Run]) -> list[Turn]:
    """The runs that are left, in order. What failed in the first round is not tried again, and where several numbers
    of rows or passes were, later rounds repeat the fastest that fits.

    Args:
        row: The conditions.
        stacks: In order.
        rounds: How often each.
        runs: What has been made.
    """
    known = {(run["round"], run["stack"], run["rows"], run["parts"]) for run in runs}
    planned = [
        (number, stack, rows, parts)
        for number in range(1, rounds + 1)
        for stack in stacks
        for rows, parts in (chosen(runs, stack) if number > 1 else row.settings(stack))
    ]
    return [turn for turn in planned if turn not in known]


def worker(visit: Visit, left: list[Turn]) -> str | None:
    """The worker of the first of these runs; None where it is none."""
    return work_of(left[0][1]) if left and not skipped(visit, left[0][1]) else None


def measure(
    visit: Visit,
    stacks: Sequence[str],
    rounds: int,
    keep: Callable[[list[Run]], None],
    done: Sequence[Run],
    ahead: Ahead,
) -> list[Run]:
    """Every stack once a round, in turn (`turns`).

    Args:
        visit: The conditions.
        stacks: In order.
        rounds: How often each.
        keep: Gets all runs after each.
        done: Runs of the same visit that an earlier command has made.
        ahead: Keeps the next run's worker.
    """
    runs, longest = list(done), 0.0
    left = turns(visit.row, stacks, rounds, runs)
    ahead.expect(worker(visit, left))
    plans = {rows: make_steps(visit, rows) for rows in visit.row.rows}
    while left:
        number, stack, rows, parts = left[0]
        began = time.perf_counter()
        if began + longest > visit.ends:
            print(f"no time is left for round {number} of {stack}; go on with --go-on", flush=True)
            break
        found = one(visit, left[0], plans[rows], ahead, worker(visit, left[1:]))
        longest = max(longest, time.perf_counter() - began)
        runs.append({"stack": stack, "round": number, "rows": rows, "parts": parts, **found})
        print(told(runs[-1], time.perf_counter() - began), flush=True)
        keep(runs)
        left = turns(visit.row, stacks, rounds, runs)
    return runs


def skipped(visit: Visit, stack: str) -> bool:
    """Whether a stack cannot run here."""
    return visit.tiny and work_of(stack) not in ("transformers", "sweeptune")


def one(visit: Visit, turn: Turn, plan: Plan, ahead: Ahead, following: str | None = None) -> Run:
    """One run, checked to have trained on what it was given; ``following`` is the worker of the next."""
    number, stack, rows, parts = turn
    if skipped(visit, stack):
        return {"status": "skipped", "reason": "needs a CUDA GPU"}
    folder = visit.work / visit.name
    job = job_of(visit, stack, rows, parts, plan.path, folder / "run")
    found = start(visit, stack, job, folder / f"{stack}-{rows}-{parts}-{number}.json", ahead, following)
    if found["status"] == "completed" and not same_ids(found, plan):
        found |= {"status": "crashed", "reason": "trained on other ids than the rest"}
    return found


def same_ids(found: Run, plan: Plan) -> bool:
    """Whether a run trained on the ids of the plan, in its order and with its labels."""
    return bool(found["plan"] == plan.ours if "plan" in found else found["ids"] == plan.ids)


def chosen(runs: list[Run], stack: str) -> list[tuple[int, int]]:
    """The rows and passes that a stack was fastest with in the first round; none where nothing worked."""
    done = [run for run in runs if run["stack"] == stack and run["round"] == 1 and run["status"] == "completed"]
    best = max(done, key=lambda run: run["tokens_per_s"], default=None)
    return [(best["rows"], best["parts"])] if best else []


def named(run: Run) -> str:
    """What ran."""
    return f"{run['stack']}, {run['rows']} rows" + (f" in {run['parts']} passes" if run["parts"] > 1 else "")


def told(run: Run, seconds: float) -> str:
    """One line on a run that has ended."""
    words = f"round {run['round']} {named(run)}: {run['status']}"
    if run["status"] != "completed":
        return f"{words}: {run.get('reason')} ({seconds:.0f} s)"
    sizes = f"{gib(run.get('allocated_gib'))} allocated, {gib(run.get('reserved_gib'))} reserved"
    losses = f"loss {run['losses'][0]:.4f} -> {run['losses'][-1]:.4f}"
    return f"{words}: {run['tokens_per_s']:,.0f} tokens/s, {sizes} GiB, {losses} ({seconds:.0f} s)"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), help="what is compared")
    parser.add_argument("--list", action="store_true", help="print rows and stacks, measure nothing")
    parser.add_argument("--stacks", nargs="*", help="some of the row's stacks, in this order")
    parser.add_argument("--rounds", type=positive, default=2, help="how often each stack runs, in turn")
    parser.add_argument(
        "--rows", type=positive, nargs="+", help="rows of a step and a pass to try, instead of the row's own"
    )
    parser.add_argument(
        "--parts", type=positive, nargs="+", help="passes of a padded step to try, where lengths are real"
    )
    parser.add_argument("--steps", type=positive, default=10, help=f"timed steps, behind {WARMUP} that are not")
    parser.add_argument("--tokenizer", type=Path, help="InternLM2's tokenizer.model")
    parser.add_argument("--data", type=Path, help="GSM8K as a jsonl file, for the row of real lengths")
    parser.add_argument("--out", type=Path, help="folder for figures, logs and the section")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-peers"), help="base models, ids, runs")
    parser.add_argument("--results", type=Path, help="the document whose section is replaced: bench/RESULTS.md")
    parser.add_argument("--section", type=Path, help="measure nothing: put this section into --results")
    parser.add_argument("--timeout", type=int, help="seconds a run may take; by default the row's own")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run that would end after these")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that --work has of this row")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    return parser


def cannot_run(options: argparse.Namespace) -> str | None:
    """What is missing for a row."""
    if options.out is None:
        return "--out DIR has to be given: figures, logs and the section go there"
    if options.tiny:
        return absent(options.tokenizer, options.data)
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU here; --tiny tries the row on a CPU"
    files = {"--tokenizer": options.tokenizer} | ({"--data": options.data} if ROWS[options.row].real else {})
    for name, file in files.items():
        if file is None or not file.is_file():
            what = "tokenizer.model of InternLM2" if name == "--tokenizer" else "GSM8K as a jsonl file"
            return f"{name} {file or '...'}: no such file; it has to be {what}"
    return None


def visit_of(options: argparse.Namespace) -> Visit:
    """What the command line says."""
    row = ROWS[options.row]
    row = replace(row, parts=tuple(options.parts)) if options.parts else row
    row = replace(row, rows=tuple(options.rows)) if options.rows else row
    return Visit(
        name=options.row,
        row=tiny(row) if options.tiny else row,
        out=options.out.resolve(),
        work=options.work.resolve(),
        steps=WARMUP + options.steps,
        tokenizer=options.tokenizer.resolve() if options.tokenizer else None,
        data=options.data.resolve() if options.data else None,
        timeout_s=options.timeout or (300 if options.tiny else row.timeout_s),
        tiny=options.tiny,
        ends=time.perf_counter() + options.seconds,
    )


def put(results: Path, found: str) -> None:
    """Put a section into a document."""
    before = results.read_text() if results.is_file() else "# Results\n"
    write_text(results, with_section(before, found))


def main() -> None:
    """Measure one row and write its section."""
    parser = arguments()
    options = parser.parse_args()
    if options.section:
        put(options.results, *sections_of(parser, [options.section], options.results))
        return
    if options.list or options.row is None:
        for name, row in ROWS.items():
            print(f"{name:20} {row.method:6} {row.model:15} {', '.join(row.stacks)}")
        return
    known = ROWS[options.row].stacks
    stacks = options.stacks or known
    if unknown := [stack for stack in stacks if stack not in known]:
        parser.error(f"--stacks {' '.join(unknown)}: this row has {', '.join(known)}")
    if obstacle := cannot_run(options):
        parser.error(obstacle)
    visit = visit_of(options)
    visit.out.mkdir(parents=True, exist_ok=True)
    # A visit that is ended from outside takes its worker along, which would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = shlex.join(["python", "bench/peers.py", *sys.argv[1:]])
    before = visit.work / visit.name / "runs.json"

    def keep(runs: list[Run]) -> None:
        """Leave what there is after every run."""
        write_text(before, json.dumps(runs))
        figures = [{key: value for key, value in run.items() if key != "log"} for run in runs]
        write_text(visit.out / f"{visit.name}.json", json.dumps(figures, indent=1))
        logs = [f"== {named(run)}, round {run['round']}\n{run.get('log', '')}\n" for run in runs]
        write_text(visit.out / f"{visit.name}.log", "\n".join(logs))
        write_text(visit.out / f"{visit.name}.md", section(visit, runs, command))

    done = json.loads(before.read_text()) if options.go_on and before.is_file() else []
    ahead = Ahead(visit.work)
    try:
        provide_base(visit, worker(visit, turns(visit.row, stacks, options.rounds, done)), ahead)
        runs = measure(visit, stacks, options.rounds, keep, done, ahead)
    finally:
        ahead.close()
    if options.results:
        put(options.results, section(visit, runs, command))
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
