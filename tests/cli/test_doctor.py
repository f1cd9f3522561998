"""``sweeptune doctor`` on a machine without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeptune.report import doctor
from tests.cli.conftest import Command

SUBJECTS = {
    "Python",
    "torch",
    "bf16",
    "4-bit on the CPU",
    "sdpa kernels",
    "processor",
    "memory",
    "disk here",
    "hub",
    "W&B",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server answers, and neither the user's cache nor the user's keys are looked at."""
    monkeypatch.setattr(doctor, "_unreachable", lambda address: "not reachable (no network in tests)")
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_the_table_answers_every_subject(sweeptune: Command) -> None:
    done = sweeptune("doctor")
    assert done.status == 0
    assert not [subject for subject in SUBJECTS if subject not in done.out]
    assert "sweeptune fetch smollm2_135m_q4" in done.out, "what to do about a model that is not fetched"


def test_json_is_all_of_stdout(sweeptune: Command) -> None:
    checks = {check["name"]: check for check in json.loads(sweeptune("doctor", "--json").out)}
    assert set(checks) >= SUBJECTS
    assert {check["state"] for check in checks.values()} <= {"ok", "warn", "no"}
    assert checks["4-bit on the CPU"]["state"] == "ok"
    assert checks["smollm2_135m_q4"]["state"] == "no"
    assert not [check for check in checks.values() if "please report" in check["advice"]], "no probe broke"


def test_a_key_is_never_shown(sweeptune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "made-up-for-this-test")
    done = sweeptune("doctor")
    assert "made-up-for-this-test" not in done.out + done.err
