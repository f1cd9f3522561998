"""The panels of a study's dashboard, in the groups in which they are read.

Every panel reads ``result/*`` of the summary, which a run writes once at its end, or metrics against ``train/tokens``;
never an aggregate of a metric that W&B keeps (``summary="min"`` would turn the key's number into an object).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from sweeptune.report.dashboard.story import Story
from sweeptune.tracking.describe import STUDY_KEY

WIDTH, HEIGHT, COLUMNS = 12, 9, 2
"""Of a panel, in units of W&B's grid of 24 columns."""
METHOD = "method.name"
Runs = Literal["search", "failed", "confirm"]
LOSS, MEMORY, SPEED = "result/eval_loss", "result/peak_memory_gib", "result/tokens_per_s"


@dataclass(frozen=True)
class Group:
    """Panels under one heading.

    Attributes:
        name: The heading.
        panels: In reading order.
        runs: What they are about: runs of the search that did not fail, runs that failed, or confirmations.
    """

    name: str
    panels: list[Any]
    runs: Runs = "search"


def groups(story: Story) -> list[Group]:
    """All groups of a study's dashboard.

    Args:
        story: What the study has to say.
    """
    return [
        Group("Loss against cost", _placed([_scatter(story), _curve("eval/loss"), _curve("train/loss")])),
        Group("Speed and memory", _placed([*_bars(), _over_tokens("mem/peak_gib", "Peak memory so far, GiB")])),
        Group("Settings", _placed([_parallel(story), wr.ParameterImportancePlot(with_respect_to=LOSS)])),
        Group("Against the baseline", _placed([wr.RunComparer(diff_only="split")], columns=1)),
        Group("Failures", _placed([_failures(), wr.MarkdownPanel(markdown=story.failures)]), "failed"),
    ]


def confirmation() -> Group:
    """Runs on unseen seeds: for the report only, because a workspace shows the same runs in every section."""
    test = wr.BarPlot(
        title="Test loss on unseen seeds: mean and range by method",
        metrics=["result/test_loss"],
        groupby=wr.Config(METHOD),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )
    return Group("Confirmation", _placed([_curve("eval/loss"), test]), "confirm")


def filters(story: Story, runs: Runs | None = None) -> expr.And:
    """Which runs of the project are shown.

    Confirmations repeat the best settings, on devices that they share: among the search's runs they would weigh down
    means of speed and memory, and let the winners count several times where settings are compared.

    Args:
        story: The study's.
        runs: Only those; None: of the search, failed or not.
    """
    found = [
        expr.Config(STUDY_KEY) == story.key,
        expr.Summary("result/status") != "interrupted",  # a later attempt went on, and has its rows
    ]
    if runs == "confirm":
        found.append(expr.Metric("JobType") == "confirm")
    elif runs != "failed":  # a confirmation that failed is a failure like any other
        found.append(expr.Metric("JobType") != "confirm")
    if runs is not None:
        found.append(expr.Summary("result/failed") == int(runs == "failed"))
    return expr.And(*found)


def _scatter(story: Story) -> wr.ScatterPlot:
    limit = "".join(f"; limit {value:g}" for name, value in story.limits.items() if name == "peak_memory_gib")
    return wr.ScatterPlot(
        title=f"Eval loss against peak memory, GiB{limit}",
        x=wr.SummaryMetric(MEMORY),
        y=wr.SummaryMetric(LOSS),
        z=wr.SummaryMetric(SPEED),
        legend_template="${run:displayName}",
    )


def _curve(metric: str) -> wr.LinePlot:
    return wr.LinePlot(
        title=f"{metric} over tokens, mean and deviation by method",
        x="train/tokens",
        y=[metric],
        title_x="real tokens trained",
        groupby=wr.Config(METHOD),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _over_tokens(metric: str, title: str) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x="train/tokens",
        y=[metric],
        groupby=wr.Config(METHOD),
        groupby_aggfunc="max",
        groupby_rangefunc="minmax",
    )


def _bars() -> list[wr.BarPlot]:
    shown = ((SPEED, "Tokens per second"), (MEMORY, "Peak memory, GiB"), ("result/seconds", "Training time, s"))
    return [
        wr.BarPlot(
            title=f"{title}: mean and range by method",
            metrics=[metric],
            groupby=wr.Config(METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for metric, title in shown
    ]


def _parallel(story: Story) -> wr.ParallelCoordinatesPlot:
    """Every swept setting, then what came of it."""
    settings = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key, log=key.endswith(".lr") or None)
        for key in (METHOD, *story.swept)
    ]
    results = [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(metric), display_name=metric.removeprefix("result/"))
        for metric in (MEMORY, SPEED, LOSS)
    ]
    return wr.ParallelCoordinatesPlot(title="Settings and what came of them", columns=[*settings, *results])


def _failures() -> wr.BarPlot:
    return wr.BarPlot(
        title="Failed runs by method",
        metrics=["result/failed"],
        groupby=wr.Config(METHOD),
        groupby_aggfunc="sum",
    )


def _placed(panels: list[Any], columns: int = COLUMNS) -> list[Any]:
    """Panels side by side, row after row; one that stands alone takes the width of all."""
    wide = WIDTH * COLUMNS // columns
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        panel.layout = wr.Layout(x=column * wide, y=row * HEIGHT, w=wide, h=HEIGHT)
    return panels
