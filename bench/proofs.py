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

import torch
from accelerate.state import AcceleratorState

from sweeptune.config.compose import compose
from sweeptune.training import proofs
from sweeptune.training.loop import prove
from sweeptune.training.session import Session, open_session

SEEDS = 3
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


def main() -> None:
    """Print one line per method, precision and fault: the largest and smallest error, and the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    options = parser.parse_args()
    print("| method | precision | fault | smallest error | largest error | tolerance |\n|---|---|---|---|---|---|")
    for method, precision in CASES:
        AcceleratorState._reset_state(reset_partial_state=True)
        overrides = ["hardware=gpu", "data=jsonl", f"data.path={options.data}", f"method={method}"]
        config = compose([*overrides, f"hardware.precision={precision}"])
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(config, Path(folder))
            tolerance = dict(proofs.TOLERANCE)
            proofs.TOLERANCE.update(dict.fromkeys(tolerance, 1e9))  # measure, do not judge; only the first step length
            for name, change in FAULTS.items():
                with fault(session, change):
                    for seed in range(SEEDS):
                        session.progress.step = seed
                        prove(session)
                errors = [proof["relative_error"] for proof in session.progress.gradient_proofs[-SEEDS:]]
                allowed = tolerance[session.placement.compute]
                print(
                    f"| {method} | {precision} | {name} | {min(errors):.1%} | {max(errors):.1%} | {allowed:.0%} |",
                    flush=True,
                )
            proofs.TOLERANCE.update(tolerance)


if __name__ == "__main__":
    main()
