"""What bench/equal_training.py says of its losses: the table, and the section of bench/RESULTS.md around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from common import head, line
from peers_table import brief

from sweeptune.report.statistics import interval

KERNELS = ("auto", "plain")
Key = tuple[str, str, int]
"""Method, kernels, seed."""
Loss = dict[str, Any]
"""A run's method, kernels and seed, and its test loss or the reason why there is none."""


def losses_of(found: Sequence[Loss], method: str, kernels: str) -> dict[int, float]:
    """Test losses by seed."""
    return {
        each["seed"]: each["loss"]
        for each in found
        if (each["method"], each["kernels"]) == (method, kernels) and each["loss"] is not None
    }


def difference(a: dict[int, float], b: dict[int, float]) -> tuple[float, str] | None:
    """Mean of a - b over the seeds that both have, and its words: with the paired 95 % t-interval.

    Example:
        >>> difference({0: 1.5, 1: 1.25}, {0: 1.0, 1: 1.0, 2: 1.0})
        (0.375, '+0.3750 [-1.2133, +1.9633]')
    """
    pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not pairs:
        return None
    known = interval(pairs)
    ends = "" if known.low is None else f" [{known.low:+.4f}, {known.high:+.4f}]"
    return known.mean, f"{known.mean:+.4f}{ends}"


def verdict(fused: dict[int, float], plain: dict[int, float], seeds: int) -> tuple[str, str, str]:
    """Difference, spread over plain's seeds, and whether the one is within the other.

    Example:
        >>> verdict({0: 1.01, 1: 1.11}, {0: 1.0, 1: 1.1}, 2)[1:]
        ('0.0707', 'within the spread')
    """
    off = difference(fused, plain)
    spread = statistics.stdev(plain.values()) if len(plain) > 1 else None
    shown = "-" if spread is None else f"{spread:.4f}"
    if off is None:
        return "-", shown, "-"
    if spread is None or len(fused.keys() & plain.keys()) < seeds:
        return off[1], shown, "seeds are missing"
    return off[1], shown, "within the spread" if abs(off[0]) <= spread else "**outside the spread**"


def table(found: Sequence[Loss], methods: Sequence[str], seeds: int) -> list[str]:
    """Test losses, fused and plain; a line for fp8 against bf16; and below, why losses are missing."""
    columns = ["method", "kernels", *(f"seed {seed}" for seed in range(seeds)), "difference", "spread of plain", ""]
    lines = head(columns)
    for method in methods:
        both = {kernels: losses_of(found, method, kernels) for kernels in KERNELS}
        off, spread, word = verdict(both["auto"], both["plain"], seeds)
        for kernels, name in zip(KERNELS, ("fused", "plain"), strict=True):
            values = [f"{both[kernels][seed]:.4f}" if seed in both[kernels] else "-" for seed in range(seeds)]
            last = [f"fused - plain: {off}", spread, word] if kernels == "auto" else ["", "", ""]
            lines.append(line([method, name, *values, *last]))
    if {"lora", "lora_fp8"} <= set(methods):
        fp8, bf16 = (losses_of(found, method, "auto") for method in ("lora_fp8", "lora"))
        values = [f"{fp8[seed] - bf16[seed]:+.4f}" if seed in fp8 and seed in bf16 else "-" for seed in range(seeds)]
        off = difference(fp8, bf16)
        lines.append(line(["lora_fp8 - lora", "fused", *values, off[1] if off else "-", "", ""]))
    failed = [each for each in found if each["loss"] is None]
    why = [f"- {each['method']}, {each['kernels']}, seed {each['seed']}: {brief(each['reason'])}" for each in failed]
    apart = [f"- {method}, seed {seed}: fused and plain saw other data" for method, seed in other_data(found)]
    return [*lines, "", *why, *apart] if why or apart else lines


def other_data(found: Sequence[Loss]) -> list[tuple[str, int]]:
    """Pairs of runs that were not given the same rows, in the same order, to learn or to be judged by."""
    seen = {(each["method"], each["seed"], each["kernels"]): each.get("same") for each in found if each["loss"]}
    cases = sorted({(method, seed) for method, seed, _ in seen})
    both = {case: [seen[*case, kernels] for kernels in KERNELS if (*case, kernels) in seen] for case in cases}
    return [case for case, pair in both.items() if len(pair) == 2 and pair[0] != pair[1]]


def section(found: Sequence[Loss], methods: Sequence[str], seeds: int, steps: int, command: str) -> str:
    """The part of the results."""
    known = [each["environment"] for each in found if each.get("environment")]
    cards = " and ".join(sorted({str(each["device"]) for each in known})) or "-"
    packages: dict[str, str | None] = known[-1]["packages"] if known else {}
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    return "\n".join(
        [
            "## Fused and plain train alike",
            "",
            "```",
            command,
            "```",
            "",
            f"{time.strftime('%Y-%m-%d')}, {cards}{'; ' if versions else ''}{versions}.",
            "",
            f"Test loss in nats a token after {steps} steps; differences are means over seeds with their paired 95 % "
            "t-interval, the spread is the standard deviation over plain's seeds. *Within the spread*: the mean "
            "difference is no larger than what another seed changes.",
            "",
            *table(found, methods, seeds),
            "",
        ]
    )
