"""How far off the gradient proof is when gradients are right, and when they are not: what its tolerance rests on.

    python bench/proofs.py --data gsm8k.jsonl

For every method and precision the proof runs with several seeds on the embedded model; then with planted faults.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from sweeptune.config.compose import compose
from sweeptune.training import proofs
from sweeptune.training.loop import prove
from sweeptune.training.session import Session, open_session

SEEDS = 2
CASES = [
    *((method, "bf16") for method in ("full", "lora", "qlora", "lora_int8", "dora")),
    ("lora", "fp16"),
    ("lora", "fp32"),
]
FAULTS: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
    "none": lambda name, grad: grad,
    "half of it": lambda name, grad: grad * 0.5,
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


def errors_of(session: Session, change: float) -> list[float]:
    """The proof's relative error at one step length, with several seeds; measured, not judged."""
    compute = session.placement.arithmetic
    with replaced(proofs.TOLERANCE, compute, 1e9), replaced(proofs.CHANGES, compute, (change,)):
        for seed in range(SEEDS):
            session.progress.step = seed
            prove(session)
    return [proof["relative_error"] for proof in session.progress.gradient_proofs[-SEEDS:]]


@contextmanager
def replaced(table: dict[torch.dtype, Any], key: torch.dtype, value: Any):
    """Replace one entry for a while."""
    before = table[key]
    table[key] = value
    yield
    table[key] = before


def main() -> None:
    """Print a line per method, precision, fault and step length: smallest and largest error, and the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--only", nargs="*", choices=[method for method, _ in CASES], help="some of the methods")
    options = parser.parse_args()
    print("| method | precision | fault | loss change, nats | smallest error | largest error | tolerance |")
    print("|---|---|---|---|---|---|---|")
    for method, precision in CASES:
        if options.only and method not in options.only:
            continue
        AcceleratorState._reset_state(reset_partial_state=True)
        overrides = ["hardware=gpu", "data=jsonl", f"data.path={options.data}", f"method={method}"]
        config = compose([*overrides, f"hardware.precision={precision}"])
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(config, Path(folder))
            compute = session.placement.arithmetic
            for name, change in FAULTS.items():
                for length in proofs.CHANGES[compute]:
                    with fault(session, change):
                        errors = errors_of(session, length)
                    print(
                        f"| {method} | {precision} | {name} | {length} | {min(errors):.1%} | {max(errors):.1%} "
                        f"| {proofs.TOLERANCE[compute]:.0%} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
