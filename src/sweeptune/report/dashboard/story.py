"""What a study's dashboard says, before it is put into W&B's words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeptune.config.errors import ConfigError
from sweeptune.report.html.page import methods, reference
from sweeptune.report.html.records import run_folder
from sweeptune.report.sheet import sheet_markdown
from sweeptune.report.studies import Study, Trial, swept
from sweeptune.report.study_sheets import failures_sheet, methods_sheet, title
from sweeptune.report.verdict import best_of, judge
from sweeptune.report.words import verdict_words
from sweeptune.tracking.describe import Place, card, key_of

MOST = 50
"""Failures that are listed; the runs themselves are all there."""


@dataclass(frozen=True)
class Story:
    """What is shown of a study.

    Attributes:
        name: The study's, which is also the W&B group.
        key: Tells its runs from those of another study of that name (`sweeptune.tracking.describe.key_of`).
        title: One line on what was compared.
        command: What began it.
        verdict: In words, a sentence each.
        methods: The table by method, as Markdown.
        failures: The table of failures, as Markdown.
        swept: Settings that were changed, dotted, without the method.
        limits: ``study.constraints``.
        baseline: W&B id of the run that others are compared with; None where its folder is not there.
        project: Where the study's runs go by their settings.
        entity: Likewise; None is the key's default.
    """

    name: str
    key: str
    title: str
    command: str
    verdict: list[str]
    methods: str
    failures: str
    swept: list[str]
    limits: dict[str, float]
    baseline: str | None
    project: str
    entity: str | None


def tell(study: Study) -> Story:
    """Gather what a study's dashboard says.

    Args:
        study: As `sweeptune.report.studies.read_study` read it.

    Example:
        >>> tell(read_study("multirun/demo")).swept
        ['optim.lr', 'method.rank']
    """
    verdict = judge(study)
    failures = failures_sheet(study, MOST)
    first = reference(verdict, methods(study))
    best = best_of(study, first) if first is not None else None
    return Story(
        name=study.name,
        key=key_of(study.folder / "0", Place(study.folder, study.header, None, "trial", None)),
        title=title(study),
        command=str(study.header.get("command") or ""),
        verdict=verdict_words(study, verdict),
        methods=sheet_markdown(methods_sheet(study, verdict)),
        failures=sheet_markdown(failures) if failures.rows else "No run failed.",
        swept=list(dict.fromkeys(key for trial in study.trials for key in swept(trial))),
        limits=study.limits,
        baseline=_run_id(study, best),
        project=str(study.fixed.get("tracker.project") or "sweeptune"),
        entity=study.fixed.get("tracker.entity"),
    )


def _run_id(study: Study, trial: Trial | None) -> str | None:
    if trial is None:
        return None
    folder: Path = run_folder(study, trial)
    try:
        return card(folder).id
    except ConfigError:
        return None
