"""A verdict in sentences: who is better than whom, how sure that is, and what would decide the rest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sweeptune.config.secrets import MASK
from sweeptune.report.cells import UNKNOWN
from sweeptune.report.findings import why_none
from sweeptune.report.statistics import Pair, seeds_needed, smallest_found
from sweeptune.report.studies import Study
from sweeptune.report.verdict import Verdict, judge

SEEDS = 3
"""Confirmation seeds where the study names none."""
NEARLY = 1.1
"""Tokens that differ by no more than this factor are as good as equal."""
LINKS = {
    "better": "is better than",
    "worse": "is worse than",
    "tied": "is tied with",
    "undecided": "is undecided against",
}


def verdict_words(study: Study, verdict: Verdict | None = None) -> list[str]:
    """The verdict as a few lines, the command that would decide what is open last.

    Args:
        study: What `sweeptune.report.studies.read_study` read.
        verdict: What `sweeptune.report.verdict.judge` said of it, where that is known already.

    Example:
        >>> print(*verdict_words(read_study("multirun/demo")), sep="\\n")
        undecided: full, lora, qlora. These are search figures of one seed: ...
        to decide: sweeptune compare multirun/demo --confirm --seeds 3
    """
    verdict = verdict or judge(study)
    found = [*_sentences(study, verdict), *_over(study, verdict), *_missing(study, verdict)]
    return [*found, *_tuning(study, verdict), *_next(study, verdict)]


def in_words(pair: Pair) -> str:
    """``lora is better than full: 0.038 nat lower, 95 % interval 0.029 to 0.047``"""
    if pair.difference is None or pair.reason:
        return f"{pair.a} is undecided against {pair.b}: {pair.reason or 'nothing to compare'}"
    head = f"{pair.a} {LINKS[pair.word]} {pair.b}"
    size = f"{abs(pair.difference):.4f} nat {'lower' if pair.difference <= 0 else 'higher'}"
    return f"{head}: {size}, interval {bounds(pair)}"


def bounds(pair: Pair) -> str:
    """``-0.0465 to -0.0292``; a dash where there is no interval."""
    return UNKNOWN if pair.low is None or pair.high is None else f"{pair.low:+.4f} to {pair.high:+.4f}"


def confirm_command(study: Study, seeds: int | None = None) -> str:
    """What runs the confirmation, or goes on with it."""
    more = "" if seeds is None else f" --seeds {seeds}"
    return f"sweeptune compare {shlex.quote(str(study.folder))} --confirm{more}"


def untried_words(study: Study) -> list[str]:
    """Which methods a study was left before, and the command that goes on with it; nothing where it tried them all."""
    untried = [method for method in study.methods if method not in study.tried]
    if not (study.left and untried):
        return []
    command = str(study.header.get("command") or "")
    again = [f"to go on: {command}"] if command and MASK not in command else []
    return [f"no trial ended yet: {_list(untried)}; the command that began the study goes on with it", *again]


def _sentences(study: Study, verdict: Verdict) -> list[str]:
    judged = [arm.method for arm in verdict.arms if arm.losses]
    if len(study.methods) < 2:
        return ["one method: there is nothing to decide between methods"]
    if not judged:
        best = [arm for arm in verdict.arms if arm.best]
        if not best:
            return ["undecided: nothing has completed"]
        one = " of one seed" if all(arm.best and len(arm.best.seeds) < 2 for arm in best) else ""
        names = ", ".join(arm.method for arm in best)
        return [
            f"undecided: {names}. These are search figures{one}: each method's best was chosen by the very losses that "
            "would judge it. Unseen seeds and the test split decide"
        ]
    if len(judged) == 1:
        return [f"undecided: only {judged[0]} has judged runs, so there is nothing to compare it with"]
    return [_headline(verdict, judged), *_others(verdict, judged[0])]


def _headline(verdict: Verdict, judged: list[str]) -> str:
    """What the leader is, seen from each other method, in one sentence."""
    leader = judged[0]
    own = {word: [p.b for p in verdict.pairs if p.a == leader and p.word == word] for word in ("better", "tied")}
    opened = [p.b for p in verdict.pairs if p.a == leader and p.word not in own]
    seeds = f"{len(verdict.seeds)} seed{'s' if len(verdict.seeds) != 1 else ''}"
    parts = [f"better than {_list(own['better'])}"] if own["better"] else []
    parts += [f"tied with {_list(own['tied'])}"] if own["tied"] else []
    parts += [f"undecided against {_list(opened)}"] if opened else []
    if len(verdict.seeds) == 1:
        return f"undecided: {leader} has the lowest {verdict.split} loss, of one seed, and another seed may turn that"
    where = f"{verdict.split} loss over {seeds}"
    if own["better"] and not own["tied"] and not opened:
        return f"{leader} is best: its {where} is {parts[0]}"
    return f"{leader} has the lowest {where}: it is {', '.join(parts)}"


def _others(verdict: Verdict, leader: str) -> list[str]:
    """The pairs that the headline leaves out, by their words."""
    lines = []
    for pair in verdict.pairs:
        if pair.reason and len(verdict.seeds) > 1:
            lines.append(in_words(pair))
    rest = [pair for pair in verdict.pairs if leader not in (pair.a, pair.b) and not pair.reason]
    said = [f"{a} {LINKS[word]} {_list(found)}" for (a, word), found in _grouped(rest).items()]
    return [*lines, *([f"among the others, {'; '.join(said)}"] if said else [])]


def _grouped(pairs: Sequence[Pair]) -> dict[tuple[str, str], list[str]]:
    """What a method is, and from whom seen; certain words first."""
    found: dict[tuple[str, str], list[str]] = {}
    for pair in sorted(pairs, key=lambda pair: list(LINKS).index(pair.word)):
        found.setdefault((pair.a, pair.word), []).append(pair.b)
    return found


def _over(study: Study, verdict: Verdict) -> list[str]:
    """Which bests kept the limit of memory in the search, but not with the seeds that confirmed them."""
    limit = study.limits.get("peak_memory_gib")
    if limit is None:
        return []
    highest = {arm.method: max(study.peaks(arm.best), default=0.0) for arm in verdict.arms if arm.best}
    over = [f"{method} up to {peak:.2f} GiB" for method, peak in highest.items() if peak > limit]
    if not over:
        return []
    return [
        f"the limit of {limit:g} GiB was kept in the search but not by every confirmation run: {', '.join(over)}",
        f"to see what kept it: sweeptune recommend {shlex.quote(str(study.folder))} --memory {limit:g}GiB",
    ]


def _missing(study: Study, verdict: Verdict) -> list[str]:
    """What no sentence on the losses speaks of."""
    found = [text for arm in verdict.arms for text in arm.missing]
    out = [arm.method for arm in verdict.arms if arm.best is None and not arm.losses and arm.method in study.tried]
    lines = [f"confirmation runs that did not complete: {', '.join(found)}"] if found else []
    if out and any(arm.best for arm in verdict.arms):
        lines.append(f"not compared: {', '.join(f'{method} ({why_none(study, method)})' for method in out)}")
    return lines


def _tuning(study: Study, verdict: Verdict) -> list[str]:
    """Say where one method was tuned with more tokens than another."""
    spent = {arm.method: arm.tokens for arm in verdict.arms if arm.trials}
    if len(spent) < 2 or max(spent.values()) <= 0:
        return []
    longest = max((trial.tokens for trial in study.trials if trial.counts), default=0)
    low, high = min(spent.values()), max(spent.values())
    if study.allocate == "equal" and (high - low <= longest or high <= NEARLY * low):
        return []  # equal up to one trial, which is as equal as trials can be
    whole = sum(spent.values())
    shares = ", ".join(f"{name} {100 * tokens / whole:.0f} %" for name, tokens in spent.items())
    why = ", the sampler chose the methods (study.allocate=joint)" if study.allocate == "joint" else " so far"
    return [f"unequal tuning{why}: of all tokens {shares}; more tuning finds lower losses"]


def _next(study: Study, verdict: Verdict) -> list[str]:
    """The command that would decide what is open; before every method has been tried, the study's own."""
    if untried := untried_words(study):
        return untried
    judged = [arm for arm in verdict.arms if arm.losses]
    if len(study.methods) < 2:
        return []
    wanted = int((study.header.get("study") or {}).get("confirm_seeds") or 0)
    if not judged or verdict.split == "eval":
        settled = judged and all(pair.word != "undecided" for pair in verdict.pairs) and verdict.pairs
        if settled or not any(arm.best for arm in verdict.arms):
            return []
        return [f"to decide: {confirm_command(study, max(wanted, SEEDS))}"]
    if any(arm.missing for arm in verdict.arms):
        return [f"to decide: {confirm_command(study)}"]
    opened = [pair for pair in verdict.pairs if pair.word == "undecided" and pair.seeds]
    if not opened:
        return []
    return _more_seeds(study, verdict, opened, len(judged))


def _more_seeds(study: Study, verdict: Verdict, opened: list[Pair], methods: int) -> list[str]:
    needed = [seeds_needed(pair, methods, study.margin) for pair in opened]
    known = [seeds for seeds in needed if seeds is not None]
    if len(verdict.seeds) == 1:
        return [f"to decide: {confirm_command(study, SEEDS)}"]
    smallest = [size for pair in opened if (size := smallest_found(pair)) is not None]
    lines = [f"so few seeds would find a difference of {max(smallest):.3f} nat in 80 % of studies"] if smallest else []
    if not known:
        return [*lines, "more seeds are unlikely to decide what is open: the differences are too small for the noise"]
    several = f"all {len(opened)}" if len(known) == len(opened) else f"{len(known)} of the {len(opened)}"
    decides = "the open pair" if len(opened) == 1 else f"{several} open pairs"
    lines.append(f"to decide {decides}: {confirm_command(study, max(known))}")
    return lines


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
