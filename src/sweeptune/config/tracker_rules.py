"""Rules for the tracker: its package must be there, and a project's name must be one that W&B takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from sweeptune.config.schema import Config

LONGEST = 128
FORBIDDEN = re.compile(r"[/\\#?%:]")


def has_wandb() -> bool:
    """Whether the package wandb is installed."""
    return find_spec("wandb") is not None


def tracker(config: Config) -> Iterator[str]:
    """What is wrong with the group ``tracker``.

    Example:
        >>> list(tracker(compose(["tracker=wandb", "tracker.project=a/b"])))
        ['tracker.project=a/b: ...']
    """
    chosen, project = config.tracker.name, config.tracker.project
    if chosen != "none" and not has_wandb():
        yield (
            f"tracker={chosen}: the package wandb is not installed. Install it: pip install 'sweeptune[wandb]'; or "
            "leave the tracker out and send the runs later with `sweeptune sync`"
        )
    if not project.strip() or len(project) > LONGEST or FORBIDDEN.search(project):
        yield (
            f"tracker.project={project}: W&B takes 1 to {LONGEST} characters, none of them / \\ # ? % or :. "
            "Use a name such as tracker.project=sweeptune-maths"
        )
