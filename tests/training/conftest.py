"""Tests here open sessions and train, seconds each: ``make test-fast`` leaves them to ``make test``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _imports_stay() -> Iterator[None]:
    """As in a run's own process (`sweeptune.launch.worker.run_here`): otherwise most of a tiny run is tidying up."""
    import sweeptune.training  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
