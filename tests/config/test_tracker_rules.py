"""The group tracker: a missing package and an impossible project are told before anything is loaded."""

from __future__ import annotations

import pytest

from sweeptune.config import tracker_rules
from sweeptune.config.check import check


@pytest.mark.parametrize("name", ["wandb", "wandb_offline"])
def test_a_missing_package_is_told_at_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_rules, "has_wandb", lambda: False)
    (problem,) = check([f"tracker={name}"], multirun=False)
    assert problem.startswith(f"tracker={name}: ") and "pip install 'sweeptune[wandb]'" in problem
    assert check(["tracker=none"], multirun=False) == []
    assert check([f"tracker={name}", "method=full,lora", "study.name=s"], multirun=True) != []


@pytest.mark.parametrize("project", ["a/b", "100%", "'a b:c'", "''", "x" * 129])
def test_a_project_that_wandb_refuses_is_told(project: str) -> None:
    problems = check([f"tracker.project={project}"], multirun=False)
    assert len(problems) == 1 and "tracker.project" in problems[0]
    assert check(["tracker.project=sweeptune-maths", "tracker.entity=team"], multirun=False) == []
