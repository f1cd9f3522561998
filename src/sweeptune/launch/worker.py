"""A run in a process of its own: ``python -m sweeptune.launch.worker RUN_FOLDER``.

It reads the frozen config.yaml of the folder, so editing conf/ or composing again cannot change what it does. Above one
rank this process is torchrun, and every rank runs this file again. It dies with the process that started it.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sweeptune.config.allocator import expand_segments
from sweeptune.config.compose import load
from sweeptune.config.schema import Config

PARENT = "SWEEPTUNE_PARENT"
EXIT_CODES = {"completed": 0, "pruned": 0, "invalid_config": 2, "interrupted": 130}
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; where the parent is gone already, stop at once."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # then the parent is torchrun, not our launcher
    expected = os.environ.get(PARENT)
    if not under_torchrun and expected is not None and os.getppid() != int(expected):
        sys.exit(f"sweeptune: the launcher {expected} is gone")


def main() -> int:
    """Run the folder named on the command line; the exit status says how it ended."""
    die_with_parent()
    faulthandler.enable()
    expand_segments()  # for a worker that is started by hand; ours are given it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds the frozen config.yaml")
    parser.add_argument("--command", default="", help="the command line that reproduces the run")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the run")
    options = parser.parse_args()
    if options.ranks > 1:
        return run_ranks(options.folder, options.command, options.ranks)
    record = run_here(load(options.folder / "config.yaml"), options.folder, options.command)
    if os.environ.get("RANK", "0") != "0" and record["status"] != "crashed":
        return 0  # torchrun kills all ranks when one fails: rank 0, which still writes, must be the one that tells
    return EXIT_CODES.get(record["status"], 1)


def run_here(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """`sweeptune.training.run`, in a process that is there for nothing else."""
    from sweeptune.training import run  # not before it is needed: importing torch takes seconds

    # What has been imported stays: half a million objects, which tidying up around an evaluation need not go through.
    gc.freeze()
    try:
        return run(config, folder, command)
    finally:
        gc.unfreeze()  # or Triton complains of leaks when the interpreter ends


def run_ranks(folder: Path, command: str, ranks: int) -> int:
    """Be torchrun, in this process, so that it and with it the ranks die with the launcher."""
    from torch.distributed.run import main as torchrun

    worker = ["-m", "sweeptune.launch.worker", str(folder), f"--command={command}"]
    try:
        torchrun(["--standalone", f"--nproc_per_node={ranks}", *worker])
    except Exception:  # a rank failed; torchrun has said so, and the record says why
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
