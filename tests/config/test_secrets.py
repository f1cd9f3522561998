"""Passwords in addresses are shown nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import StudyConfig
from sweeptune.config.secrets import masked
from sweeptune.report.studies import read_study
from sweeptune.study.store import Store, differences
from tests.report.fake_study import leave_study

STORAGE = "postgresql://ann:hunter2pw@127.0.0.1:9/opt"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"'study.storage={STORAGE}' seed=1", "'study.storage=postgresql://ann:***@127.0.0.1:9/opt' seed=1"),
        ("redis://:hunter2pw@host", "redis://:***@host"),
        ("mysql+pymysql://a:hunter2pw/x@y@host/db b:c@d", "mysql+pymysql://a:***@host/db b:c@d"),
        ("postgresql://db/opt?user=a&password=hunter2pw&x=1", "postgresql://db/opt?user=a&password=***&x=1"),
        (
            "http://127.0.0.1:9/a me@example.com sqlite:////a/b.db",
            "http://127.0.0.1:9/a me@example.com sqlite:////a/b.db",
        ),
    ],
)
def test_a_password_is_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_no_error_shows_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        Store(tmp_path).check_storage(StudyConfig(name="s", storage=STORAGE))
    assert "ann:***@127.0.0.1" in str(raised.value) and "hunter2pw" not in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        compose([f"study.trials={STORAGE}"])
    assert "hunter2pw" not in str(raised.value)


def test_a_study_goes_on_with_a_changed_password_and_not_with_another_database() -> None:
    known = {"overrides": [f"study.storage={STORAGE}"], "space": {"parameters": []}, "study": {"storage": STORAGE}}
    changed = STORAGE.replace("hunter2pw", "other")
    assert differences(known, known | {"study": {"storage": changed}}) == []
    (other,) = differences(known, known | {"study": {"storage": STORAGE.replace("opt", "else")}})
    assert "ann:***@127.0.0.1:9/else" in other and "hunter2pw" not in other


def test_a_password_that_an_earlier_version_noted_is_not_reported(tmp_path: Path) -> None:
    study = leave_study(tmp_path / "s", ["full"], command=f"python train.py --multirun study.storage={STORAGE}")
    assert json.loads((study / "study.json").read_text())["command"].endswith(STORAGE)
    assert read_study(study).header["command"].endswith("study.storage=postgresql://ann:***@127.0.0.1:9/opt")
