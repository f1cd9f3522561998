"""A study on one CUDA GPU with the embedded model's real weights, under a memory limit, with its verdict.

    python bench/study.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k.jsonl --out results/

It is the command that a user would type; the same again goes on where a visit ended. ``--out`` gets the study's folder
without weights, as study.tar.gz; `sweeptune compare` on it, anywhere, prints the tables for bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT
from gpu import provide_model

STUDY = [
    "space=method_tradeoff",
    "method=full,lora,qlora",
    "method.rank=16",
    "hardware.micro_batch=4,8,16",
    "study.constraints={peak_memory_gib: 8}",
    "study.trials=20",
    "study.prune=false",
    "study.trials_per_gpu=5",
    "study.probe_steps=8",
    "hardware=gpu",
    "data=jsonl",
    "data.max_length=512",
    "train.tokens_per_step=4096",
    "train.max_steps=20",
    "train.epochs=null",
    "eval.max_samples=64",
    "eval.batch_size=16",
]


def main() -> None:
    """Run the study, then keep what is not weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the embedded model's file, where nothing can be downloaded")
    parser.add_argument("--data", type=Path, required=True, help="a jsonl file of questions and answers")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets study.tar.gz")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sweeptune-study"), help="where the study lives")
    parser.add_argument("--limit-s", type=float, default=560, help="stop at a checkpoint after so many seconds")
    parser.add_argument("overrides", nargs="*", help="more settings")
    options = parser.parse_args()
    begin = time.perf_counter()
    provide_model(options.gguf)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), "--multirun", *STUDY, f"data.path={options.data.resolve()}"]
    process = subprocess.Popen([*command, *options.overrides], cwd=options.work)
    try:
        process.wait(options.limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(60)
    away = shutil.ignore_patterns("checkpoints", "code", "slots", "*.safetensors")
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(options.work / "multirun", kept, ignore=away, dirs_exist_ok=True)
        shutil.make_archive(str(options.out / "study"), "gztar", kept)
    print(f"ended with status {process.returncode} after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
