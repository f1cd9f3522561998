"""What many tests share: a small real dataset, settings for the tiny model, and clean process-wide state."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from sweeptune.config.compose import compose
from sweeptune.config.schema import Config
from sweeptune.models.fetch import cache_dir


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps device and precision for the whole process; tests use several."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenized rows of tests stay out of the user's cache; fetched models are found in it all the same."""
    models = cache_dir() / "models"
    own = tmp_path_factory.mktemp("cache")
    if models.is_dir():
        (own / "models").symlink_to(models.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPTUNE_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 questions whose answers follow a rule, of many lengths."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = []
    for _ in range(120):
        a, b = draw.randrange(10 ** draw.randint(1, 5)), draw.randrange(10 ** draw.randint(1, 3))
        rows.append({"question": f"{a}+{b}?", "answer": f"{a} plus {b} is {a + b}." * draw.randint(1, 3)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(jsonl: Path) -> Callable[..., Config]:
    """Compose settings for the tiny model on the CPU: ``settings("method=lora", "train.max_steps=3")``."""

    def make(*overrides: str) -> Config:
        given = {override.partition("=")[0] for override in overrides}
        defaults = [
            "model=tiny",
            "hardware=cpu",
            "data=jsonl",
            f"data.path={jsonl}",
            "data.max_length=192",
            "data.eval_fraction=0.15",
            "data.test_fraction=0.1",
            "train.tokens_per_step=512",
            "train.max_steps=6",
        ]
        return compose([*(d for d in defaults if d.partition("=")[0] not in given), *overrides])

    return make
