"""Rules of a study: what it may improve and limit, and which sampler can search which space."""

from __future__ import annotations

from collections.abc import Iterator

from sweeptune.config.schema import Config, Sampler, StudyConfig
from sweeptune.config.space import Space
from sweeptune.config.words import nearest

SHORT_NAMES = ("eval_loss", "peak_memory_gib", "tokens_per_s")
"""The figures that methods are compared by; all others are dotted fields of the record."""
GROWING = ("tokens_per_s", "loss_tokens_per_s", "mfu", "matmul_efficiency")
"""Figures that are better when they are larger; all others are better when they are smaller."""
FIGURES = {
    "eval": ("loss", "best_loss", "initial_loss", "perplexity", "bits_per_byte", "loss_tokens", "samples"),
    "memory": (
        "peak_memory_gib",
        "peak_allocated_gib",
        "peak_reserved_gib",
        "paged_gib",
        "device_gib",
        "host_peak_gib",
    ),
    "speed": (
        "tokens_per_s",
        "loss_tokens_per_s",
        "step_ms",
        "flops_per_token",
        "mfu",
        "matmul_efficiency",
        "excluded_s",
    ),
    "train": ("steps", "tokens", "loss_tokens", "final_loss", "seconds"),
    "params": ("total", "trainable"),
}
"""The numbers of a record (DESIGN section 5); ``test`` is for verdicts, never for a search."""
OPEN = ("eval.tasks.", "memory.phases.")
"""Parts of the record whose names a run decides."""


def grows(figure: str) -> bool:
    """Whether more of a figure is better.

    Example:
        >>> grows("speed.tokens_per_s"), grows("eval_loss")
        (True, False)
    """
    return figure.rpartition(".")[2] in GROWING


def study_figures(config: Config) -> Iterator[str]:
    """Objectives and constraints that no record has."""
    study = config.study
    for name in study.objectives:
        if trouble := _figure_trouble(name):
            yield f"study.objectives=[{', '.join(study.objectives)}]: {trouble}"
    for name in study.constraints:
        if trouble := _figure_trouble(name):
            yield f"study.constraints.{name}={study.constraints[name]}: {trouble}"
        elif study.constraints[name] <= 0:
            yield (
                f"study.constraints.{name}={study.constraints[name]:g}: nothing can keep it. Use a number above 0, for "
                f"example study.constraints={{{name}: 8}}"
            )
    twice = [name for at, name in enumerate(study.objectives) if name in study.objectives[:at]]
    if twice:
        yield f"study.objectives=[{', '.join(study.objectives)}]: {twice[0]} stands there twice. Take one out"


def chosen_sampler(space: Space, study: StudyConfig) -> Sampler:
    """The sampler by name: ``auto`` is the grid where it can be listed and ``trials`` is null, else TPE."""
    if study.sampler != "auto":
        return study.sampler
    return "grid" if space.finite and study.trials is None else "tpe"


def search_problems(space: Space, study: StudyConfig) -> list[str]:
    """What the sampler cannot do with the space.

    Args:
        space: Its parameters, as read.
        study: The settings of the study.
    """
    sampler, problems = chosen_sampler(space, study), []
    if sampler == "grid" and not space.finite:
        endless = ", ".join(space.endless)
        problems.append(
            f"study.sampler=grid: an interval has no end of values ({endless}), so there is no grid of them. "
            "List the values (a,b,c), or use study.sampler=tpe study.trials=<n>"
        )
    elif sampler != "grid" and study.trials is None:
        why = f", and {', '.join(space.endless)} has no end of values" if space.endless else ""
        problems.append(
            f"study.trials=null with study.sampler={sampler}{why}: the search would never end. Say how many trials "
            "there shall be, for example study.trials=30"
        )
    firsts = len(space.baselines()) if study.baselines else 0
    if study.trials is not None and study.trials < firsts:
        problems.append(
            f"study.trials={study.trials} with study.baselines=true: each of the {firsts} methods runs at its "
            f"recommended settings first, and these are among the trials. Use study.trials={firsts} or more, for "
            f"example study.trials={firsts + 10}, or study.baselines=false"
        )
    if sampler != "grid" and "seed" in space.swept:
        problems.append(
            f"seed is swept with study.sampler={sampler}: a sampler would look for lucky seeds. Train every "
            "configuration with several seeds, whose mean counts: study.replicates=3; only a grid may sweep the seed"
        )
    return problems


def pruning_trouble(space: Space, study: StudyConfig) -> str | None:
    """Why nothing of a study can be pruned, and what to set; None where pruning is off or can work.

    A trial is behind when others are better by more than what the seed alone does, so something must run with several
    seeds: baselines do where trials may be pruned, and every trial with ``study.replicates`` above 1. A trial of a grid
    over the seed has that one seed, whatever ``study.replicates`` says.
    """
    swept = "seed" in space.swept
    of_baselines = study.baselines and not all("seed" in point for point in space.baselines())
    of_trials = study.replicates > 1 and not swept
    if not study.prune or of_baselines or of_trials:
        return None
    if not swept:
        seeds, fix = f"With study.replicates={study.replicates} every trial has one seed", " or study.replicates=2"
    else:
        seeds, fix = "Every trial of a grid over the seed has one seed", ", or do not sweep the seed"
    fix = "Do not sweep the seed" if study.baselines else f"Set study.baselines=true{fix}"
    return (
        f"study.prune=true: nothing can be pruned. {seeds}, and no baseline has two, so what the seed alone does stays "
        f"unknown, and no trial can be told to be clearly behind. {fix}"
    )


def _figure_trouble(name: str) -> str | None:
    part, _, figure = name.partition(".")
    if name in SHORT_NAMES or figure in FIGURES.get(part, ()) or name.startswith(OPEN):
        return None
    if part == "test":
        return f"{name} is for the verdict, and a search that looked at it would spoil it. Use eval{name[4:]}"
    known = [*SHORT_NAMES, *(f"{section}.{item}" for section, items in FIGURES.items() for item in items)]
    # The right figure under the wrong part, or under none: loss, eval.tokens_per_s.
    same = [item for item in known if item.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same[0] if same else nearest(name, known)
    fix = f"Did you mean {near}?" if near else f"Allowed: {', '.join(SHORT_NAMES)}, or a field such as eval.perplexity"
    return f"no record has {name}. {fix}"
