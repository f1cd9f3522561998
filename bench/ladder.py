"""Memory by phase and speed before and after each technique, on one GPU a run.

    python bench/ladder.py --list
    python bench/ladder.py --tokenizer tokenizer.model --out results/ --gpus 4
    python bench/ladder.py --tokenizer tokenizer.model --out results/ --only lora full/bf16 --go-on    what was left
    python bench/ladder.py --section results/ladder-*.md --results bench/RESULTS.md      put them into the results
    python bench/ladder.py --tiny --out results/      a trial on a CPU

Every rung is a run of its own through what train.py runs, on full rows of InternLM2-1.8B's shape with random weights
(`peers.py`'s data, base model and ``--work``). What has no setting of its own is taken away by a patch in the process
(`ladder_patches.py`). The next run's imports go on beside the one that has the GPU. When a run ends, ``ladder.json``,
``ladder.log`` and a section for each ladder in ``--out`` are written anew, so that a visit that is cut off loses
nothing; what failed is a line of the table.
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

from common import ROOT, gib, positive, sections_of
from ladder_patches import work
from ladder_rungs import LADDERS, Rung, rungs, tiny
from ladder_table import Run, section, table
from peers import make_steps, overrides, provide_base, put, settled
from peers_rows import LR, WARMUP, Row, Visit
from peers_rows import tiny as tiny_row
from spread import Task, slots, spread

from sweeptune.config.check import check
from sweeptune.tracking.files import write_text
from sweeptune.tracking.record import find_records

STEPS = 15
KEPT = ("speed", "memory", "eval", "fingerprint", "environment", "proofs", "params", "command")
"""Parts of a record that ``ladder.json`` has."""


def visit_of(options: argparse.Namespace, ladder: str) -> Visit:
    """The conditions of a ladder, in the words of bench/peers.py; rungs of full fine-tuning begin with fp32 weights."""
    row = Row(ladder, dtype="fp32" if ladder == "full" else "bf16")
    return Visit(
        name="ladder",
        row=tiny_row(row) if options.tiny else row,
        out=options.out.resolve(),
        work=options.work.resolve(),
        steps=options.steps,
        tokenizer=options.tokenizer.resolve() if options.tokenizer else None,
        data=None,
        timeout_s=options.timeout,
        tiny=options.tiny,
    )


def settings(visit: Visit, rung: Rung) -> list[str]:
    """All overrides of a rung."""
    return settled([*overrides(visit, visit.row.rows[0]), *rung.overrides])


def task_of(visit: Visit, ladder: str, rung: Rung) -> Task:
    """The rung as a command; what it runs is written to a file beside its log."""
    folder = visit.work / visit.name / "runs" / f"{ladder}-{rung.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {
        "overrides": settings(visit, rung),
        "patches": list(rung.patches),
        "folder": str(folder / "run"),
        "target": str(folder / "inside.json"),
    }
    write_text(folder / "rung.json", json.dumps(job, indent=1))
    command = [sys.executable, str(ROOT / "bench" / "ladder.py"), "--worker", str(folder / "rung.json")]
    return Task(f"{ladder}/{rung.name}", [*command, "--wait"], folder / "log.txt", waits=True)


def read(task: Task, rung: Rung, code: int | None, timeout_s: float) -> Run:
    """What a run left: a failure is what it is, and so is a run of something else than the rung says."""
    folder = task.log.parent
    ladder = task.name.partition("/")[0]
    found: Run = {"ladder": ladder, "rung": rung.name, "log": task.log.read_text(errors="replace")[-3000:]}
    records = find_records(folder / "run")
    inside: dict[str, Any] = {}
    if (folder / "inside.json").is_file():
        inside = json.loads((folder / "inside.json").read_text())
    shutil.rmtree(folder / "run", ignore_errors=True)  # a checkpoint of full fine-tuning takes gigabytes
    if code is None:
        return found | {"status": "timeout", "reason": f"not ready after {timeout_s:.0f} s"}
    if not records:
        last = (found["log"].strip() or "nothing").splitlines()[-1]
        return found | {"status": "crashed", "reason": f"ended with {code} and left no record: {last}"}
    record = records[0][1]
    found |= {"status": record["status"], "reason": record["reason"], **inside}
    found |= {part: record.get(part) for part in KEPT}
    if record["status"] == "completed":
        ran = (record["fingerprint"]["cost"] or {}).get("kernels")
        if ran != rung.kernels:
            found |= {"status": "other kernels", "reason": f"ran with {ran} kernels instead of {rung.kernels}"}
        elif inside.get("unused"):
            found |= {"status": "no patch", "reason": f"never came by {', '.join(inside['unused'])}"}
        elif code != 0 or not inside:
            found |= {"status": "crashed", "reason": f"ended with {code} after its record"}
    return found


def measure(options: argparse.Namespace, runs: list[Run], keep: Any) -> None:
    """Run every rung that ``runs`` has not yet, and add it there."""
    planned = {f"{ladder}/{rung.name}": (ladder, rung) for ladder, rung in rungs(options.only)}
    known = {f"{run['ladder']}/{run['rung']}" for run in runs}
    tasks: list[Task] = []
    for name, (ladder, rung) in planned.items():
        if name in known:
            continue
        visit, rung = visit_of(options, ladder), tiny(rung) if options.tiny else rung
        planned[name] = ladder, rung
        if problems := check(settings(visit, rung), multirun=False):
            reason = problems[0]
            runs.append({"ladder": ladder, "rung": rung.name, "status": "skipped", "reason": reason, "log": reason})
            keep(runs)
            continue
        tasks.append(task_of(visit, ladder, rung))

    def ended(task: Task, code: int | None, seconds: float) -> None:
        runs.append(read(task, planned[task.name][1], code, options.timeout))
        print(told(runs[-1], seconds), flush=True)
        keep(runs)

    ends = time.monotonic() + options.seconds
    left = spread(tasks, slots(options.gpus), ended, timeout_s=options.timeout, ends=ends)
    if left:
        print(f"no time is left for {', '.join(task.name for task in left)}; go on with --go-on", flush=True)


def told(run: Run, seconds: float) -> str:
    """One line on a run that has ended."""
    words = f"{run['ladder']}/{run['rung']}: {run['status']}"
    if run["status"] != "completed":
        return f"{words}: {run['reason']} ({seconds:.0f} s)"
    rate = run["speed"]["tokens_per_s"]
    return f"{words}: {rate or 0:,.0f} tokens/s, {gib(run['memory']['peak_memory_gib'])} GiB ({seconds:.0f} s)"


def conditions(visit: Visit) -> str:
    """What holds for every rung of a ladder."""
    row = visit.row
    return (
        f"The shape of {row.model} with random weights, {row.rows[0]} full rows of {row.length} tokens a step in one "
        f"pass, {visit.steps} steps, {max(0, visit.steps - WARMUP)} of them timed; AdamW, linear schedule from {LR:g}, "
        "clipping at 1.0, unless a line says otherwise; one run of each, one process a GPU, while the next one's "
        "imports go on beside it on other cores."
    )


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print ladders and rungs, measure nothing")
    parser.add_argument("--only", nargs="+", help="some ladders or rungs: lora full/bf16")
    parser.add_argument("--gpus", type=positive, default=1, help="runs are spread over so many, one at a time on each")
    parser.add_argument("--steps", type=positive, default=STEPS, help="of each rung, the first ones untimed")
    parser.add_argument("--tokenizer", type=Path, help="InternLM2's tokenizer.model")
    parser.add_argument("--out", type=Path, help="folder for figures, logs and sections")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-peers"), help="base model, data, runs")
    parser.add_argument("--section", type=Path, nargs="+", help="measure nothing: put these sections into --results")
    parser.add_argument("--results", type=Path, help="the document whose sections are replaced: bench/RESULTS.md")
    parser.add_argument("--timeout", type=float, default=240, help="seconds a run may take")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run that would end after these")
    parser.add_argument("--go-on", action="store_true", help="keep the runs that --out has")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure the rungs and write their sections."""
    parser = arguments()
    options = parser.parse_args()
    if options.worker:
        sys.exit(work(options.worker, wait=options.wait))
    if options.section:
        for each in sections_of(parser, options.section, options.results):
            put(options.results, each)
        return
    if options.list:
        for ladder, rung in rungs(options.only):
            print(f"{ladder + '/' + rung.name:30} {' '.join([*rung.overrides, *rung.patches])}")
        return
    if options.out is None or (options.tokenizer is None and not options.tiny):
        parser.error("--out and, unless --tiny, --tokenizer have to be given")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes what runs along
    rungs(options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "bench/ladder.py", *sys.argv[1:]])
    before = options.out / "ladder.json"
    runs: list[Run] = json.loads(before.read_text()) if options.go_on and before.is_file() else []
    base = visit_of(options, "lora")
    provide_base(base)
    make_steps(base, base.row.rows[0])  # writes the rows, and sees that they are full

    def keep(runs: list[Run]) -> None:
        """Leave what there is after every run."""
        write_text(before, json.dumps(runs, indent=1))
        logs = [f"== {run['ladder']}/{run['rung']}\n{run['log']}\n" for run in runs]
        write_text(options.out / "ladder.log", "\n".join(logs))
        for ladder in dict.fromkeys(run["ladder"] for run in runs):
            found = section(ladder, runs, command, conditions(visit_of(options, ladder)))
            write_text(options.out / f"ladder-{ladder}.md", found)

    measure(options, runs, keep)
    for ladder in [ladder for ladder in LADDERS if any(run["ladder"] == ladder for run in runs)]:
        if options.results:
            put(options.results, section(ladder, runs, command, conditions(visit_of(options, ladder))))
        print("\n".join([f"\n{ladder}", *table(ladder, runs)]))


if __name__ == "__main__":
    main()
