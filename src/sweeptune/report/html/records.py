"""What a report takes from run folders, beyond study.json and trials.jsonl: curves, phases, proofs, fingerprints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeptune.report.remarks import clean
from sweeptune.report.studies import Study, Trial
from sweeptune.tracking.record import RECORD

METRICS = "metrics.jsonl"
POINTS = 60
"""Most points of a curve: more do not fit into the width of a phone, and 2,000 curves have to be sent."""
PHASES = ("load", "proof", "first_step", "steady", "eval", "save")
HOUR = 3600.0


def read(folder: Path) -> dict[str, Any]:
    """The record of a run folder as it is; empty where there is none that can be read."""
    try:
        value = json.loads((folder / RECORD).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def part(record: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """An object inside a record; empty where it is missing or something else."""
    found: Any = record
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def run_folder(study: Study, trial: Trial) -> Path:
    """Where a trial was trained; with several seeds, the first of them."""
    folder = study.folder / trial.folder
    return folder / f"seed-{trial.seeds[0]}" if len(trial.seeds) > 1 else folder


def curve(folder: Path) -> list[list[float]]:
    """Tokens and eval loss of every evaluation, at most `POINTS` of them, the first and the last always.

    Steps after a resume repeat those before it; the later line of the same tokens counts.
    """
    found: dict[float, float] = {}
    try:
        with (folder / METRICS).open("rb") as lines:
            for line in lines:
                if b'"eval_loss"' not in line:  # a cheap look: most lines are training steps
                    continue
                tokens, loss = _point(line)
                if tokens is not None and loss is not None:
                    found[tokens] = loss
    except OSError:
        return []
    points = sorted(found.items())
    if len(points) > POINTS:
        points = [points[round(place * (len(points) - 1) / (POINTS - 1))] for place in range(POINTS)]
    return [[tokens for tokens, _ in points], [short(loss) for _, loss in points]] if points else []


def _point(line: bytes) -> tuple[float | None, float | None]:
    try:
        row = json.loads(line)
    except ValueError:  # torn by a kill
        return None, None
    return (number(row.get("tokens")), number(row.get("eval_loss"))) if isinstance(row, dict) else (None, None)


def short(value: float) -> float:
    """Six digits that count: what no screen shows is not sent."""
    return float(f"{value:.6g}")


def phases(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peak memory of each phase in GiB, in pieces that add up to it.

    On a GPU what tensors held, what the allocator reserved beyond that, and what bitsandbytes paged; the first two
    peaks need not be of the same moment, their sum is the reserved peak. On a CPU the resident set.
    """
    found = []
    given = part(record, "memory", "phases")
    for name in [*(key for key in PHASES if key in given), *(key for key in given if key not in PHASES)]:
        own = part(given, name)
        allocated, reserved = number(own.get("allocated_gib")), number(own.get("reserved_gib"))
        if reserved is None:
            pieces = [("resident", number(own.get("host_gib")) or 0.0)]
        else:
            held = min(reserved, allocated or 0.0)
            pieces = [("allocated", held), ("reserved beyond", reserved - held)]
        if paged := number(own.get("paged_gib")):
            pieces.append(("paged", paged))
        if known := [[kind, short(size)] for kind, size in pieces if size]:
            found.append({"phase": clean(name).replace("_", " "), "pieces": known})
    return found


def gpus(study: Study, record: Mapping[str, Any]) -> int:
    """How many devices a run had to itself."""
    found = number(part(record, "fingerprint", "cost").get("ranks"))
    found = found or number(study.fixed.get("hardware.gpus_per_trial")) or 1
    return max(1, int(found))


def training_hours(study: Study, trial: Trial, record: Mapping[str, Any]) -> float | None:
    """Device-hours of one training of a configuration: its seconds times its devices."""
    seconds = number(part(record, "train").get("seconds"))
    if seconds is None:
        seconds = trial.seconds / max(1, len(trial.seeds)) if trial.seconds else None
    return None if seconds is None else seconds * gpus(study, record) / HOUR


def on_gpu(study: Study, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether hours are a GPU's."""
    return "cuda" in str(study.fixed.get("hardware.device")) or any(
        part(record, "environment").get("driver") for record in records
    )


def proof_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run proved of itself, a line for each proof."""
    found = []
    for name, value in part(record, "proofs").items():
        found.append((clean(name), _proof(value)))
    return found


def _proof(value: Any) -> str:
    if value is None:
        return "not needed by this run"
    if not isinstance(value, dict):
        return clean(str(value))
    words = [f"passed {value['passed']} times"] if isinstance(value.get("passed"), int) else []
    worst = part(value, "worst")
    error, tolerance = number(worst.get("relative_error")), number(worst.get("tolerance"))
    if error is not None and tolerance is not None:
        words.append(f"worst error {100 * error:.2g} %, {100 * tolerance:g} % allowed")
    rest = {key: item for key, item in value.items() if key not in ("passed", "worst")}
    words += [f"{clean(key).replace('_', ' ')} {clean(_plain(item))}" for key, item in rest.items()]
    return ", ".join(words) or "passed"


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def ledger_rows(record: Mapping[str, Any]) -> list[list[Any]]:
    """Tokens by role, and how many of them bear loss: dataset, template, role, tokens, with loss, share of the loss."""
    rows: list[list[Any]] = []
    given = part(record, "train", "data", "ledger").get("parts")
    for own in given if isinstance(given, list) else []:
        roles = part(own, "roles")
        whole = number(own.get("loss_tokens")) if isinstance(own, dict) else None
        for role in sorted(roles):
            cells = [cell for cell in part(roles, role).values() if isinstance(cell, list) and len(cell) == 2]
            tokens, learned = (sum(number(cell[place]) or 0 for cell in cells) for place in (0, 1))
            share = learned / whole if whole else None
            rows.append([clean(str(own.get("template"))), clean(role), tokens, learned, share])
    return rows
