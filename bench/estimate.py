"""The memory predictor against measured runs: calibration on some, error on others that are all different.

    python bench/estimate.py --out results/                       on a CUDA GPU, about three minutes
    python bench/estimate.py --cpu --out results/                 a trial of the code on a CPU; its figures mean nothing

Every point runs in a process of its own, as every trial does: in a shared one, whatever the run before left in the
allocator's segments is counted again. As many run side by side as the GPU surely has memory for: that changes how long
they take, not what they reserve. Random weights, rows of random lengths, and the package's own model building, steps,
evaluation and memory meter. Predictions are made by other processes, which see no GPU. The table for bench/RESULTS.md
comes last; it and every point are written to ``--out``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import head, line

from sweeptune.config.allocator import expand_segments
from sweeptune.config.compose import compose
from sweeptune.config.schema import Config
from sweeptune.data import Row, Splits, plan_steps
from sweeptune.models import load_tokenizer
from sweeptune.tracking.calibration import Calibration, Estimate, calibrate, fits
from sweeptune.training.estimate import estimate
from sweeptune.training.evaluate import score_share
from sweeptune.training.memory import MemoryMeter
from sweeptune.training.oom import brief, is_out_of_memory, release_memory
from sweeptune.training.optimizer import build_optimizer
from sweeptune.training.placement import place
from sweeptune.training.session import Progress, Session, build_model, make_accelerator
from sweeptune.training.shapes import planned
from sweeptune.training.speed import Stopwatch
from sweeptune.training.step import train_step

MODELS = {
    "smol": ["model=smollm2_135m"],
    "intern8": ["model=internlm2_1_8b", "model.architecture.num_hidden_layers=8"],
    "intern24": ["model=internlm2_1_8b"],
    "llama": ["model=llama3_2_1b", "model.architecture.num_hidden_layers=6"],
    "qwen": ["model=qwen3_0_6b", "model.architecture.num_hidden_layers=12"],
    "tiny": ["model=tiny"],
}
LIMITS = (4, 6, 8, 12, 16, 24, 32, 40, 48, 64)
"""GiB; at each of them every point is predicted to fit or not."""
STEPS = 4


class Spec(NamedTuple):
    """A point: what is run."""

    model: str
    method: str
    rank: int
    rows: int
    length: int
    checkpointing: bool = False
    more: tuple[str, ...] = ()

    def overrides(self, cpu: bool) -> list[str]:
        """Its settings, as train.py takes them."""
        packed = "data.packing=pack" in self.more
        step = self.rows * self.length * 2 if packed else int(self.rows * self.length * 1.1)
        common = [
            *MODELS[self.model],
            "model.weights=random",
            f"hardware={'cpu' if cpu else 'gpu'}",
            "hardware.on_oom=stop",
            f"method={self.method}",
            f"hardware.micro_batch={self.rows}",
            f"data.max_length={self.length}",
            f"train.tokens_per_step={step}",
            f"train.max_steps={STEPS}",
            "train.epochs=null",
            "eval.batch_size=4",
            f"hardware.gradient_checkpointing={str(self.checkpointing).lower()}",
            *self.more,
        ]
        return common if self.method == "full" else [*common, f"method.rank={self.rank}"]


PACK, EAGER, BF16 = ("data.packing=pack",), ("model.attention=eager",), ("model.dtype=bf16",)
CALIBRATION = [
    Spec("smol", "full", 0, 16, 512),
    Spec("smol", "lora", 16, 16, 512),
    Spec("smol", "qlora", 16, 16, 512),
    Spec("smol", "dora", 8, 8, 512),
    Spec("smol", "lora_int8", 16, 16, 384),
    Spec("smol", "lora", 4, 32, 256, True),
    Spec("smol", "full", 0, 8, 1024, True),
    Spec("smol", "full", 0, 16, 256, False, BF16),
    Spec("smol", "full", 0, 4, 512, False, ("optim=adamw_8bit",)),
    Spec("smol", "qlora", 64, 4, 1024, False, PACK),
    Spec("intern8", "full", 0, 4, 512),
    Spec("intern8", "lora", 16, 8, 512),
    Spec("intern8", "qlora", 16, 8, 512),
    Spec("intern8", "lora", 32, 4, 1024, False, PACK),
    Spec("intern8", "qlora", 8, 4, 1024, True),
    Spec("intern8", "dora", 16, 4, 384),
    Spec("llama", "lora", 16, 8, 512),
    Spec("llama", "full", 0, 4, 384, False, ("optim=paged_adamw_8bit",)),
    Spec("llama", "qlora", 16, 8, 256, False, EAGER),
    Spec("qwen", "lora", 16, 8, 512),
]
HELD_OUT = [
    Spec("smol", "full", 0, 24, 384),
    Spec("smol", "lora", 64, 24, 512),
    Spec("smol", "lora", 8, 48, 256),
    Spec("smol", "qlora", 4, 32, 384),
    Spec("smol", "rslora", 32, 16, 512),
    Spec("smol", "dora", 32, 16, 256),
    Spec("smol", "lora_int8", 8, 32, 256),
    Spec("smol", "lora", 16, 64, 256, True),
    Spec("smol", "full", 0, 8, 1024, False, PACK),
    Spec("smol", "lora", 16, 8, 384, False, EAGER),
    Spec("smol", "lora", 16, 12, 512, False, ("method.dropout=0.1",)),
    Spec("smol", "full", 0, 2, 512, False, ("optim=adamw_8bit",)),
    Spec("intern8", "full", 0, 8, 384, True),
    Spec("intern8", "lora", 64, 16, 256),
    Spec("intern8", "qlora", 32, 4, 2048, False, PACK),
    Spec("intern8", "qlora", 4, 12, 384),
    Spec("intern8", "lora_int8", 16, 4, 512),
    Spec("intern8", "full", 0, 2, 1024, False, BF16),
    Spec("llama", "lora", 8, 4, 1024, False, PACK),
    Spec("llama", "full", 0, 4, 512),
    Spec("llama", "qlora", 64, 16, 512, True),
    Spec("llama", "lora", 16, 8, 384, False, ("method.target_modules=[q_proj,v_proj]",)),
    Spec("qwen", "full", 0, 8, 384),
    Spec("qwen", "qlora", 16, 16, 512),
    Spec("qwen", "dora", 16, 8, 256, True),
    Spec("intern24", "lora", 16, 8, 512),
    Spec("intern24", "qlora", 16, 4, 2048, True),
    Spec("intern24", "qlora", 16, 16, 384),
]
DRY = [
    Spec("tiny", "full", 0, 4, 64),
    Spec("tiny", "lora", 4, 4, 64, True),
    Spec("tiny", "qlora", 4, 4, 64, False, PACK),
    Spec("tiny", "dora", 4, 2, 48),
]


def rows_of(spec: Spec, seed: int, count: int) -> list[Row]:
    """Rows of random lengths, the last two thirds of each with loss; one is as long as may be."""
    draw = random.Random(f"{spec}-{seed}")
    found = []
    for number in range(count):
        length = spec.length if number == 0 else draw.randint(spec.length // 4, spec.length)
        mask = [place >= length // 3 for place in range(length)]
        found.append(Row(f"{seed}-{number}", [draw.randrange(200) for _ in range(length)], mask, length))
    return found


def prepare(spec: Spec, cpu: bool) -> tuple[Config, list[Row], list[Row], list[Any]]:
    """Settings, training rows, held-out rows and the plan of a point: the same for the run and its prediction."""
    config = compose(spec.overrides(cpu))
    rows, held = rows_of(spec, 0, 8 * spec.rows), rows_of(spec, 1, 4)
    return config, rows, held, plan_steps(rows, config.data, config.train, config.seed)


def predict(spec: Spec, cpu: bool) -> Estimate:
    """Predict a point; run in a process without a GPU."""
    config, rows, held, steps = prepare(spec, cpu)
    return estimate(config, planned(config, rows, steps, held))


def measure(spec: Spec, cpu: bool, tokenizer: Any) -> float:
    """Run a point and return its ``peak_memory_gib``."""
    config, rows, held, steps = prepare(spec, cpu)
    accelerator = make_accelerator(config)
    placement = place(config)
    if not cpu:
        torch._C._cuda_clearCublasWorkspaces()
    release_memory(placement.device)
    meter = MemoryMeter(placement.device)
    meter.enter("load")
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(config, placement, Path(folder))
        session = Session(
            config=config,
            folder=Path(folder),
            accelerator=accelerator,
            placement=placement,
            tokenizer=tokenizer,
            splits=Splits(rows, held, held, {}, None),  # type: ignore[arg-type]  # nothing here asks for the ledger
            eval_rows=held,
            steps=steps,
            model=model,
            optimizer=accelerator.prepare_optimizer(build_optimizer(model, config.optim)),
            meter=meter,
            watch=Stopwatch(placement.device),
            metrics=None,
            progress=Progress(micro_batch=config.hardware.micro_batch, eval_batch=config.eval.batch_size),
        )
        try:
            judge(session)
            meter.enter("first_step", release=True)
            for number, step in enumerate(steps):
                train_step(session, step)
                session.progress.step += 1
                if number == 0:
                    meter.enter("steady")
            judge(session)
            meter.close()
            return float(meter.summary()["peak_memory_gib"])
        finally:
            accelerator.free_memory()
            del session, model
            gc.collect()


def judge(session: Session) -> None:
    """Evaluate, in a phase of its own, as the training loop does."""
    with session.meter.interlude("eval", release=True):
        score_share(
            session.model,
            session.splits.eval,
            batch_size=session.progress.eval_batch,
            batch_tokens=session.config.eval.batch_tokens,
            device=session.device,
            autocast=session.autocast,
            pad_id=0,
            description="",
        )


def blind() -> None:
    """Hide the GPU from a process that predicts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def report(points: list[dict[str, Any]]) -> list[str]:
    """The table and what follows from it."""
    known = [(Estimate(**p["estimate"]), p["measured"]) for p in points if p["kind"] == "calibration" and p["measured"]]
    calibration = calibrate(known)
    columns = ("point", "measured GiB", "predicted", "off", "calibrated", "off", "upper 95 %", "of it holes")
    text = head(columns)
    errors, raw, above = [], [], 0
    for point in points:
        if point["kind"] == "calibration":
            continue
        found = Estimate(**point["estimate"])
        center, upper = calibration.center(found), calibration.upper(found)
        if point["measured"] is None:
            text.append(line([point["name"], point["reason"], f"{found.peak_memory_gib:.2f}", "-", "-", "-", "-", "-"]))
            continue
        errors.append(center / point["measured"] - 1)
        raw.append(found.peak_memory_gib / point["measured"] - 1)
        above += point["measured"] > upper
        cells = [point["name"], f"{point['measured']:.2f}", f"{found.peak_memory_gib:.2f}", f"{100 * raw[-1]:+.1f} %"]
        cells += [f"{center:.2f}", f"{100 * errors[-1]:+.1f} %", f"{upper:.2f}", f"{found.parts['cache']:.2f}"]
        text.append(line(cells))
    return [*text, "", *(words(points, calibration, raw, errors, above) if errors else [])]


def words(
    points: list[dict[str, Any]], calibration: Calibration, raw: list[float], errors: list[float], above: int
) -> list[str]:
    """The figures that the issue asks for."""
    sizes = [abs(error) for error in errors]
    wrong = missed = right = 0
    for point in points:
        if point["kind"] == "held out" and point["measured"]:
            for limit in LIMITS:
                fitting = fits(Estimate(**point["estimate"]), limit, calibration)
                real = point["measured"] <= limit
                wrong, missed, right = wrong + (fitting and not real), missed + (real and not fitting), right + real
    return [
        f"{len(calibration.points)} points calibrate, {len(errors)} are held out: median error "
        f"{100 * statistics.median(sizes):.1f} %, worst {100 * max(sizes):.1f} % (uncalibrated "
        f"{100 * statistics.median(map(abs, raw)):.1f} % and {100 * max(map(abs, raw)):.1f} %); "
        f"{above} above the upper bound.",
        f"At {len(LIMITS)} limits from {LIMITS[0]} to {LIMITS[-1]} GiB: {wrong} predicted to fit did not, "
        f"{missed} of {right} that fit were predicted not to.",
    ]


def alone(spec: Spec, cpu: bool, need: int) -> tuple[float | None, str | None]:
    """Measure a point in this process, when the GPU has ``need`` GiB for it; or why that failed."""
    tokenizer = load_tokenizer(compose(["model=tiny"]).model)
    with turn:
        for _ in range(need):
            room.acquire()
    try:
        return measure(spec, cpu, tokenizer), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, brief(error)
    finally:
        for _ in range(need):
            room.release()


def share(the_turn: Any, the_room: Any) -> None:
    """Give a process what decides whether its point may run now."""
    global turn, room
    turn, room = the_turn, the_room


def main() -> None:
    """Measure and predict everything, then print the table."""
    expand_segments()  # as a run; the processes below inherit it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the points")
    parser.add_argument("--cpu", action="store_true", help="a trial of the code")
    parser.add_argument("--room", type=int, default=70, help="GiB of the GPU that all measurements together may take")
    cores = os.cpu_count() or 1
    parser.add_argument("--predict", type=int, default=max(1, cores // 2), help="processes that predict")
    parser.add_argument("--measure", type=int, default=max(1, cores // 3), help="processes that measure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    todo = [(spec, "calibration") for spec in (DRY[:2] if options.cpu else CALIBRATION)]
    todo += [(spec, "held out") for spec in (DRY[2:] if options.cpu else HELD_OUT)]
    spawn = get_context("spawn")
    shared = (spawn.Lock(), spawn.Semaphore(options.room))
    points: dict[Future[Any], dict[str, Any]] = {}
    with (
        ProcessPoolExecutor(options.predict, spawn, blind) as predictors,
        ProcessPoolExecutor(options.measure, spawn, share, shared, max_tasks_per_child=1) as measurers,
    ):
        predictions = {predictors.submit(predict, spec, options.cpu): (spec, kind) for spec, kind in todo}
        for prediction in as_completed(predictions):
            spec, kind = predictions[prediction]
            name = " ".join([*map(str, spec[:5]), *(["checkpointing"] if spec.checkpointing else []), *spec.more])
            found = prediction.result()
            need = min(options.room, math.ceil(1.15 * found.peak_memory_gib) + 2)
            measurement = measurers.submit(alone, spec, options.cpu, need)
            points[measurement] = {"spec": spec, "name": name, "kind": kind, "estimate": asdict(found)}
        for measurement in as_completed(points):
            point = points[measurement]
            point["measured"], point["reason"] = measurement.result()
            off = f"predicted {point['estimate']['peak_memory_gib']:.2f}, measured {point['measured']}"
            print(f"{time.perf_counter() - begin:6.1f} s  {point['name']}: {off} {point['reason'] or ''}", flush=True)
            ended = [p for p in points.values() if "measured" in p]
            (options.out / "points.json").write_text(json.dumps(ended, indent=1))
    order = {spec: place for place, (spec, _) in enumerate(todo)}
    text = "\n".join(report(sorted(points.values(), key=lambda point: order[point["spec"]])))
    (options.out / "estimate.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
