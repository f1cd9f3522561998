"""Where one training step's time goes on a GPU: wall time, time with a kernel running, and the longest kernels.

python bench/step_profile.py method=lora data=jsonl data.path=gsm8k.jsonl data.max_length=512
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sweeptune.config.check import check
from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.training.session import open_session
from sweeptune.training.step import train_step

WARMUP, STEPS, SHOWN = 4, 2, 8


def main() -> None:
    """Profile the run that the overrides describe."""
    overrides = ["hardware=gpu", *sys.argv[1:]]
    if problems := check(overrides, multirun=False):
        raise SystemExit(str(ConfigError(problems)))
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(compose(overrides), Path(folder))
        session.model.train()
        for step in session.steps[:WARMUP]:
            train_step(session, step)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for step in session.steps[WARMUP : WARMUP + STEPS]:
            train_step(session, step)
        torch.cuda.synchronize()
        wall = (time.perf_counter() - begin) / STEPS * 1000
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for step in session.steps[WARMUP : WARMUP + STEPS]:
                train_step(session, step)
            torch.cuda.synchronize()
    kernels = profiler.key_averages()
    busy = sum(kernel.self_device_time_total for kernel in kernels) / STEPS / 1000
    count = sum(kernel.count for kernel in kernels) / STEPS
    share = f"{busy:.0f} ms of them with a kernel running ({busy / wall:.0%})"
    print(f"one step: {wall:.0f} ms, {share}, {count:.0f} kernels")
    for kernel in sorted(kernels, key=lambda k: -k.self_device_time_total)[:SHOWN]:
        spent = kernel.self_device_time_total / STEPS / 1000
        print(f"{spent:8.1f} ms  {kernel.count / STEPS:6.0f} x  {kernel.key[:90]}")


if __name__ == "__main__":
    main()
