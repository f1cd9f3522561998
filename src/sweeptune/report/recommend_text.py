"""A recommendation for people and programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from sweeptune.report.cells import UNKNOWN, span, stdout_console
from sweeptune.report.recommend import Candidate, Recommendation
from sweeptune.report.sheet import portable, print_words
from sweeptune.report.studies import Study
from sweeptune.report.study_sheets import settings
from sweeptune.report.words import confirm_command, in_words, untried_words
from sweeptune.tracking.calibration import CONTEXT_GIB


def render_recommendation(study: Study, found: Recommendation, as_json: bool = False) -> None:
    """Print a recommendation to stdout; its last line is the command, never broken."""
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
        return
    console = stdout_console()
    limits = [f"{found.memory_gib:.2f} GiB"] if found.memory_gib is not None else []
    limits += [f"at least {found.min_tokens_per_s:,.0f} tokens/s"] if found.min_tokens_per_s is not None else []
    within = f" within {' and '.join(limits)}" if limits else ""
    fit = f"{found.fitting} of {found.measured} configurations fit" if limits else f"{found.measured} measured"
    print_words(console, f"{study.folder}{within}: {fit}", style="bold")
    if untried := untried_words(study):
        print_words(console, "; ".join(untried))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(study, found):
        style = "bold green" if name == "use" else ""
        table.add_row(Text(name), Text(portable(console, text), style=style))
    console.print(table)
    console.print()
    console.print(Text(found.command), soft_wrap=True)


def _lines(study: Study, found: Recommendation) -> list[tuple[str, str]]:
    chosen = found.chosen
    lines = [("use", _name(chosen)), (f"{chosen.split} loss", _loss(chosen))]
    lines += _costs(found)
    lines.append(("because", found.why))
    if found.runner_up is not None:
        other = found.runner_up
        costs = f"{_span(other.peak_gib, '.2f')} GiB, {_span(other.tokens_per_s, ',.0f')} tokens/s"
        figures = f"{other.split} loss {_loss(other)}; {costs}"
        lines += [("runner-up", _name(other)), ("", figures)]
    if found.pair is not None:
        lines.append(("", in_words(found.pair)))
    elif found.runner_up is not None:
        lines.append(("", f"which of the two is better is undecided: {confirm_command(study)}"))
    return lines


def _costs(found: Recommendation) -> list[tuple[str, str]]:
    """Memory with the room that is left, and speed, each with its range over the runs."""
    chosen = found.chosen
    runs = f" over {chosen.runs} runs" if chosen.runs > 1 else ""
    lines = [("peak memory", f"{_span(chosen.peak_gib, '.2f')} GiB{runs}")]
    if found.memory_gib is not None and chosen.peak_gib is not None:
        room = found.memory_gib - chosen.peak_gib[1]
        lines[0] = ("peak memory", f"{lines[0][1]}, {room:.2f} GiB below the limit")
        if room < CONTEXT_GIB:
            words = f"a CUDA context comes on top, up to {CONTEXT_GIB} GiB: leave that room on a GPU of this size"
            lines.append(("", words))
    return [*lines, ("speed", f"{_span(chosen.tokens_per_s, ',.0f')} tokens/s")]


def _name(candidate: Candidate) -> str:
    own = settings(candidate.trial)
    return f"{candidate.trial.method}, trial {candidate.trial.number}{f': {own}' if own != UNKNOWN else ''}"


def _loss(candidate: Candidate) -> str:
    found = candidate.loss
    seeds = f"{found.seeds} seed{'' if found.seeds == 1 else 's'}"
    if found.low is None or found.high is None:
        return f"{found.mean:.4f} ({seeds}, so no interval)"
    whose = "95 % interval" if found.seeds > 1 else "95 % of single runs"
    return f"{found.mean:.4f}, {whose} {found.low:.4f} to {found.high:.4f} ({seeds})"


def _span(values: tuple[float, float] | None, form: str) -> str:
    return "unknown" if values is None else span(values, form)
