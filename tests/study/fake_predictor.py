"""A predictor that costs nothing, in the place of `sweeptune.launch.predictor`: what fake_worker.py will measure, times
the plan's ``foreseen``; ``blind`` makes it fail, ``mute`` makes it end."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import yaml

from tests.study.fake_worker import memory_of


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    plan = json.loads(Path(os.environ["SWEEPTUNE_FAKE"]).read_text())
    for line in sys.stdin:
        settings = Path(line.strip())
        if plan.get("mute"):
            sys.exit(1)
        found = {"failed": "ValueError: told to fail"}
        if not plan.get("blind"):
            config = yaml.safe_load(settings.read_text())
            peak = memory_of(config) * plan.get("foreseen", 1.0)
            found = dict.fromkeys(("peak_memory_gib", "allocated_gib"), peak) | {"phase": "steady", "phases": {}}
            found |= {"parts": {}, "paged_gib": 0.0, "method": config["method"]["name"], "checkpointing": False}
        part = settings.with_suffix(".part")
        part.write_text(json.dumps(found))
        os.replace(part, settings.with_suffix(".json"))


if __name__ == "__main__":
    main()
