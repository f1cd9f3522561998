"""Whether a training step on a GPU ever waits for the device: torch raises an error where it does.

    python bench/step_waits.py [override ...]

Each case trains a few steps to warm up, and then some under ``torch.cuda.set_sync_debug_mode("error")``, the values of
each step read while the next one runs, as the loop does. Ends with ok, or with what waited. fp16's scaler, paged
optimisers and sdpa attention, whose masks transformers looks at, do wait and are no cases.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from sweeptune.config.check import check
from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.kernels.fuse import fused
from sweeptune.training.session import open_session
from sweeptune.training.step import train_step
from sweeptune.training.values import Arriving, send_back

WARMUP, STEPS = 4, 4
COMMON = ["model=tiny", "hardware=gpu", "hardware.micro_batch=4", "train.tokens_per_step=8192", "data.max_length=512"]
CASES = [
    ["method=full"],
    ["method=lora"],
    ["method=lora", "data.packing=pack"],
    ["method=lora", "hardware.gradient_checkpointing=true"],
    ["method=lora", "hardware.gradient_checkpointing=offload"],
    ["method=qlora"],
    ["method=lora", "optim=adamw_8bit"],
    ["method=lora", "hardware.kernels=plain"],
    ["method=full", "hardware.kernels=plain", "hardware.gradient_checkpointing=true"],
]


def watch(overrides: list[str]) -> str:
    """Train under watch; return which kernels were used."""
    if problems := check(overrides, multirun=False):
        raise SystemExit(str(ConfigError(problems)))
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(compose(overrides), Path(folder))
        session.model.train()
        previous: Arriving | None = None
        for number, step in enumerate(session.steps[: WARMUP + STEPS]):
            if number == WARMUP:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            loss, norm, _ = train_step(session, step)
            issued = send_back(loss, norm)
            if previous is not None:
                previous.wait()
            previous = issued
        torch.cuda.set_sync_debug_mode("default")
        return "plain" if fused(session.model) is None else "fused"


def main() -> None:
    """All cases, each with the overrides of the command line behind its own."""
    waited = 0
    for case in CASES:
        try:
            result = f"ok ({watch([*COMMON, *case, *sys.argv[1:]])} kernels)"
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            import traceback

            where = [frame for frame in traceback.extract_tb(error.__traceback__)][-1]
            result, waited = f"waits: {error} at {where.filename}:{where.lineno} ({where.line})", waited + 1
        print(" ".join(case), "-", result, flush=True)
    print("ok" if not waited else f"{waited} of {len(CASES)} cases wait")
    raise SystemExit(bool(waited))


if __name__ == "__main__":
    main()
