"""``sweeptune dashboard multirun/STUDY``: make the workspace and the report, or print what they would be.

What was made is noted in the study's ``dashboard.json``, so that the next call changes it instead of making another.
How W&B draws it only its own server can show; the tests hold the specification that is sent.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeptune.config.errors import ConfigError
from sweeptune.report.cells import escape
from sweeptune.report.dashboard.story import Story, tell
from sweeptune.report.studies import Study
from sweeptune.tracking.files import write_json
from sweeptune.tracking.wandb_run import has_key, server

NOTE = "dashboard.json"
ID_KEYS = ("__id__", "id")
COLUMNS = ("result/eval_loss", "result/peak_memory_gib", "result/tokens_per_s", "result/status")


@dataclass(frozen=True)
class Saved:
    """Where the dashboard is.

    Attributes:
        server: Address it was saved to.
        project: ``entity/project``.
        workspace: Name of the view, which is in its address.
        workspace_id: Its id.
        workspace_url: Its page.
        report_id: The report's id.
        report_url: Its page.
    """

    server: str
    project: str
    workspace: str
    workspace_id: str
    workspace_url: str
    report_id: str
    report_url: str


def specification(study: Study, *, project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """What would be sent, as plain JSON; needs neither key nor network. Ids that W&B draws by lot are numbered.

    Args:
        study: As `sweeptune.report.studies.read_study` read it.
        project: Replaces ``tracker.project`` of the study.
        entity: Replaces ``tracker.entity``.

    Raises:
        ConfigError: The package is not installed.
    """
    story = tell(study)
    project, entity = project or story.project, entity or story.entity or ""
    workspace = _workspace(story, entity, project)._to_model()
    # Without an entity the run sets name no project: W&B's client asks the server for its number when it saves.
    report = _report(story, entity, project, asks=False)._to_model()
    found = {
        "entity": entity or None,
        "project": project,
        "workspace": {"name": workspace.display_name, "spec": _plain(workspace.spec)},
        "report": {"title": report.display_name, "description": report.description, "spec": _plain(report.spec)},
    }
    numbered: dict[str, Any] = _numbered(found)
    return numbered


def save(study: Study, *, project: str | None = None, entity: str | None = None) -> Saved:
    """Make the workspace and the report on the server, or change those that an earlier call made.

    Args:
        study: As `sweeptune.report.studies.read_study` read it.
        project: Replaces ``tracker.project`` of the study.
        entity: Replaces ``tracker.entity``.

    Raises:
        ConfigError: No package, no key, or the server does not take it.
    """
    _check_package()
    if not has_key():
        raise ConfigError(
            f"sweeptune dashboard: no key for {server()}. Log in once with `wandb login`, or set WANDB_API_KEY; "
            "--dry-run writes the specification without one"
        )
    import wandb

    story = tell(study)
    try:
        owner = entity or story.entity or str(wandb.Api(timeout=20).default_entity)
        where = project or story.project
        known = _known(study.folder, f"{owner}/{where}")
        workspace = _workspace(story, owner, where)
        report = _report(story, owner, where, asks=True)
        if known is not None:  # W&B's client has no public way to save over a view without loading it first
            workspace._internal_name, workspace._internal_id = known.workspace, known.workspace_id
            report.id = known.report_id
        workspace.save()
        report.save()
    except Exception as error:  # W&B's own, of any kind
        words = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"sweeptune dashboard: {server()} did not take it ({type(error).__name__}: {words}). Send the runs first "
            f"with `sweeptune sync {study.folder}`; --dry-run writes the specification without a server"
        ) from error
    saved = Saved(
        server(),
        f"{owner}/{where}",
        workspace._internal_name,
        workspace._internal_id,
        workspace.url,
        report.id,
        report.url,
    )
    write_json(study.folder / NOTE, asdict(saved))
    return saved


def _workspace(story: Story, entity: str, project: str) -> Any:
    _check_package()
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    from sweeptune.report.dashboard.panels import filters, groups

    words = [f"# {escape(story.name)}", *map(escape, (story.title, *story.verdict)), story.methods]
    verdict = ws.Section("Verdict", panels=[wr.MarkdownPanel(markdown="\n\n".join(words))], is_open=True)
    sections = [ws.Section(group.name, panels=group.panels, is_open=group.runs != "failed") for group in groups(story)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sweeptune: {_printable(story.name)}",
        sections=[verdict, *sections],
        settings=ws.WorkspaceSettings(x_axis="train/tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=filters(story),
            order=[expr.Ordering(expr.Summary("result/eval_loss"), ascending=True)],
            pinned_columns=["run:displayName", *(f"summary:{key}" for key in COLUMNS)],
            baseline_run=story.baseline,
        ),
    )


def _report(story: Story, entity: str, project: str, *, asks: bool) -> Any:
    import wandb_workspaces.reports.v2 as wr

    from sweeptune.report.dashboard.panels import confirmation, filters, groups

    place = {"entity": entity, "project": project} if asks else {}
    blocks: list[Any] = [wr.H2("Verdict"), *(wr.P(line) for line in story.verdict), wr.MarkdownBlock(story.methods)]
    for group in [*groups(story), confirmation()]:
        runs = wr.Runset(name=group.runs, filters=filters(story, group.runs), **place)
        blocks += [wr.H2(group.name), wr.PanelGrid(runsets=[runs], panels=group.panels)]
    blocks += [wr.H2("Again"), wr.CodeBlock(code=story.command, language="python")]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"sweeptune: {_printable(story.name)}"[:128],
        description=story.title,
        blocks=blocks,
        width="fluid",
    )


def _known(folder: Path, project: str) -> Saved | None:
    """What an earlier call made in this project."""
    try:
        found = Saved(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if (found.server, found.project) == (server(), project) else None


def _check_package() -> None:
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"sweeptune dashboard: {error.name} is not installed. pip install 'sweeptune[wandb]'"
        ) from None


def _printable(name: str) -> str:
    """A name as W&B takes it: without emoji."""
    return re.sub(r"[^\w\s.,:;()+-]", "", name).strip() or "study"


def _plain(spec: Any) -> Any:
    return json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))


def _numbered(value: Any) -> Any:
    """Put numbers in the place of random ids, wherever they are referred to."""
    names: dict[str, str] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            for key, inner in part.items():
                if key in ID_KEYS and isinstance(inner, str) and inner and inner not in names:
                    names[inner] = f"id-{len(names) + 1}"
                collect(inner)
        elif isinstance(part, list):
            for inner in part:
                collect(inner)

    def replace(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: replace(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [replace(inner) for inner in part]
        return names.get(part, part) if isinstance(part, str) else part

    collect(value)
    return replace(value)
