"""Predicts memory for a study: reads the path of a frozen configuration per line, and writes ``.json`` beside it.

One process for all of a study's predictions, since importing torch takes longer than predicting. It sees no GPU, and
dies with the study.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeptune.config.compose import load
from sweeptune.launch.worker import die_with_parent
from sweeptune.tracking.files import write_json


def main() -> None:
    """Predict until the input ends."""
    die_with_parent()
    from sweeptune.training.estimate import estimate  # after the parent is known to live: importing torch takes seconds

    for line in sys.stdin:
        settings = Path(line.strip())
        try:
            found: dict[str, Any] = asdict(estimate(load(settings)))
        except Exception as error:  # whatever it is, the probe will tell more, and the study goes on
            found = {"failed": f"{type(error).__name__}: {error}"}
        write_json(settings.with_suffix(".json"), found)


if __name__ == "__main__":
    main()
