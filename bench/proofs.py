"""How far off the gradient proof is when gradients are right, and when they are not: what its tolerance rests on.

    python bench/proofs.py --data gsm8k.jsonl --gguf SmolLM2-135M-Instruct.Q4_1.gguf

For every method and precision the proof runs with several seeds on the embedded model, before training and after some
steps, with few rows and with many; then with planted faults.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from common import absent, head, line
from gpu import provide_model

from sweeptune.config.compose import compose
from sweeptune.training import proofs
from sweeptune.training.loop import count, prove
from sweeptune.training.session import Session, open_session
from sweeptune.training.step import train_step

SEEDS = 4
STEPS = 20
CASES = [
    *((method, "bf16") for method in ("full", "lora", "qlora", "lora_int8", "dora", "lora_fp8")),
    ("lora", "fp16"),
    ("lora", "fp32"),
]
FAULTS: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
    "none": lambda name, grad: grad,
    "half of it": lambda name, grad: grad * 0.5,
    "doubled": lambda name, grad: grad * 2.0,
    "A's missing": lambda name, grad: torch.zeros_like(grad) if "lora_A" in name else grad,
}


@contextmanager
def fault(session: Session, change: Callable[[str, torch.Tensor], torch.Tensor]):
    """Change every gradient on its way."""
    hooks = [
        p.register_hook(lambda grad, name=name: change(name, grad))
        for name, p in session.model.named_parameters()
        if p.requires_grad
    ]
    yield
    for hook in hooks:
        hook.remove()


def seeds(session: Session) -> Iterator[None]:
    """Give the proof one seed after the other: it takes the step's number."""
    step = session.progress.step
    for session.progress.step in range(SEEDS):
        yield
    session.progress.step = step


def errors_of(session: Session, change: float, rows: int) -> list[float]:
    """The proof's relative error at one step length, with several seeds; measured, not judged."""
    compute = session.arithmetic
    tables = (proofs.TOLERANCE, 1e9), (proofs.ATTEMPTS, (proofs.Attempt(rows, (change, change)),))
    with ExitStack() as stack:
        for table, value in tables:
            stack.enter_context(replaced(table, compute, value))
        for _ in seeds(session):
            prove(session)
    return [proof["relative_error"] for proof in session.progress.gradient_proofs[-SEEDS:]]


def proven(session: Session) -> int:
    """How many of the seeds the proof passes with, as it runs in training."""
    passed = 0
    for _ in seeds(session):
        with suppress(proofs.ProofFailed):
            prove(session)
            passed += 1
    return passed


def train(session: Session) -> None:
    """A few steps, after which a model curves and rounds otherwise than at its start."""
    session.model.train()
    for step in session.steps[:STEPS]:
        train_step(session, step)
        count(session, step)


@contextmanager
def replaced(table: dict[torch.dtype, Any], key: torch.dtype, value: Any):
    """Replace one entry for a while."""
    before = table[key]
    table[key] = value
    yield
    table[key] = before


def main() -> None:
    """Measure every case, before and after some steps of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where it cannot be downloaded")
    parser.add_argument("--only", nargs="*", choices=sorted({method for method, _ in CASES}), help="methods")
    tried = sorted({change for attempts in proofs.ATTEMPTS.values() for _, changes in attempts for change in changes})
    parser.add_argument("--changes", type=float, nargs="*", choices=tried, help="some of the loss changes, in nats")
    parser.add_argument("--as-it-runs", action="store_true", help="no single changes: how often does the proof pass?")
    parser.add_argument("overrides", nargs="*", help="more settings, such as optim.lr=1e-4")
    options = parser.parse_args()
    if missing := absent(options.data, options.gguf):
        parser.error(missing)
    if not torch.cuda.is_available() and "hardware=cpu" not in options.overrides:
        parser.error("torch finds no CUDA GPU here; model=tiny hardware=cpu tries it on a CPU")
    provide_model(options.gguf)
    print("\n".join(head(("method", "precision", "steps", "rows", "fault", "change, nats", "errors", "tolerance"))))
    for method, precision in CASES:
        if options.only and method not in options.only:
            continue
        AcceleratorState._reset_state(reset_partial_state=True)
        overrides = [
            "hardware=gpu",
            "data=jsonl",
            f"data.path={options.data}",
            f"method={method}",
            "data.max_length=512",
        ]
        length = ["train.tokens_per_step=4096", "hardware.micro_batch=8", f"train.max_steps={STEPS}"]
        config = compose([*overrides, *length, *options.overrides, f"hardware.precision={precision}"])
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(config, Path(folder))
            show = partial(measure, session, method, precision, [] if options.as_it_runs else options.changes)
            show()
            train(session)
            show()


def measure(session: Session, method: str, precision: str, changes: list[float] | None) -> None:
    """A line per number of rows, fault and step length with the errors of all seeds, from small to large, then one per
    fault with how often the proof passes as it runs."""
    compute = session.arithmetic
    tries = [
        (attempt.rows, length)
        for attempt in proofs.ATTEMPTS[compute]
        for length in attempt.changes
        if changes is None or length in changes
    ]
    for (rows, length), (name, change) in product(tries, FAULTS.items()):
        with fault(session, change):
            errors = sorted(errors_of(session, length, rows))
        cells = (method, precision, session.progress.step, rows, name, length)
        print(
            line((*map(str, cells), " ".join(f"{e:.1%}" for e in errors), f"{proofs.TOLERANCE[compute]:.0%}")),
            flush=True,
        )
    for name, change in FAULTS.items():
        with fault(session, change):
            passed = f"proven {proven(session)} of {SEEDS} times"
        print(line((method, precision, str(session.progress.step), "as it runs", name, "-", passed, "-")), flush=True)


if __name__ == "__main__":
    main()
