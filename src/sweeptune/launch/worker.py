"""A run in a process of its own: ``python -m sweeptune.launch.worker RUN_FOLDER [COMMAND]``.

It reads the frozen config.yaml of the folder, so editing conf/ or composing again cannot change what it does; under
torchrun every rank runs this file. It dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from pathlib import Path

from sweeptune.config.compose import load

PARENT = "SWEEPTUNE_PARENT"
EXIT_CODES = {"completed": 0, "invalid_config": 2, "interrupted": 130}
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
    folder = Path(sys.argv[1])
    from sweeptune.training import run  # after the parent is known to live: importing torch takes seconds

    record = run(load(folder / "config.yaml"), folder, command=sys.argv[2] if len(sys.argv) > 2 else "")
    return EXIT_CODES.get(record["status"], 1)


if __name__ == "__main__":
    sys.exit(main())
