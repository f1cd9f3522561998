"""Studies: what a ``--multirun`` is. A search over settings that survives crashes and compares methods fairly."""

from __future__ import annotations

from pathlib import Path


def confirm(folder: Path, seeds: int | None = None) -> None:
    """Train each method's best configuration with seeds that the search did not use, and judge it on ``test``.

    Args:
        folder: A study's.
        seeds: How many in all, those that are there already included; by default ``study.confirm_seeds``, else 3.

    Raises:
        ConfigError: The folder is no study.
    """
    from sweeptune.study.command import confirm as run_confirmation  # Optuna takes a second to import

    run_confirmation(folder, seeds)
