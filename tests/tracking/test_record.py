"""result.json: every key of the contract, always; and errors that say what is wrong with one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.tracking.record import (
    GIT,
    STATUSES,
    code_version,
    cpu_name,
    empty_record,
    environment,
    find_records,
    natural,
    read_record,
    write_record,
)

CONTRACT: dict[str, Any] = {
    "": "schema status reason attempts method model data seed eval test memory speed train params proofs fingerprint "
    "environment command",
    "eval": "loss best_loss initial_loss perplexity bits_per_byte loss_tokens samples tasks "
    "initial_shared as_trained merged_bf16 merged_requantized",
    "memory": "peak_memory_gib peak_allocated_gib peak_reserved_gib paged_gib device_gib host_peak_gib phases",
    "speed": "tokens_per_s loss_tokens_per_s step_ms flops_per_token mfu matmul_efficiency excluded_s exclusive",
    "train": "steps tokens loss_tokens final_loss seconds",
    "params": "total trainable",
    "proofs": "gradients packing kernels",
    "fingerprint": "quality cost",
    "environment": "git dirty packages device driver",
}


@pytest.fixture
def record(settings) -> dict[str, Any]:
    return empty_record(settings("method=qlora", "seed=3"))


def missing(record: dict[str, Any]) -> list[str]:
    places = {part: record if not part else record[part] for part in CONTRACT}
    return [f"{part}.{key}" for part, keys in CONTRACT.items() for key in keys.split() if key not in places[part]]


def test_an_empty_record_has_every_key_of_the_contract(record):
    assert missing(record) == []
    assert (record["method"], record["model"], record["data"], record["seed"]) == ("qlora", "tiny", "jsonl", 3)
    assert (record["schema"], record["status"], record["test"]) == (1, "crashed", None)
    assert record["fingerprint"] == {"quality": {}, "cost": {}}


def test_two_records_share_nothing(settings):
    first, second = empty_record(settings()), empty_record(settings())
    first["fingerprint"]["quality"]["weights"] = "x"
    first["eval"]["tasks"]["y"] = 1
    assert second["fingerprint"]["quality"] == second["eval"]["tasks"] == {}


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    record |= {"status": "completed", "command": "python train.py method=qlora", "reason": None}
    record["eval"] |= {"loss": 2.5, "samples": 12}
    record["environment"] = {"git": "abc", "dirty": False, "packages": {"torch": "2"}, "device": "x", "driver": None}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == read_record(tmp_path / "result.json") == record
    assert os.listdir(tmp_path) == ["result.json"]


def test_numbers_that_json_does_not_know_become_null(record, tmp_path):
    record["eval"] |= {"loss": float("nan"), "perplexity": float("inf")}
    record["memory"]["phases"] = {"steady": {"gib": float("-inf"), "steps": (1, float("nan"))}}
    write_record(tmp_path, record)
    text = (tmp_path / "result.json").read_text()
    assert not re.search("nan|infinity", text, re.IGNORECASE)
    back = read_record(tmp_path)
    assert (back["eval"]["loss"], back["eval"]["perplexity"]) == (None, None)
    assert back["memory"]["phases"] == {"steady": {"gib": None, "steps": [1, None]}}


def test_a_record_with_parts_missing_is_completed(record, tmp_path):
    del record["speed"], record["command"]
    record["train"] = {"steps": 4}
    record["proofs"] = None
    write_record(tmp_path, record)
    back = read_record(tmp_path)
    assert missing(back) == []
    assert (back["train"]["steps"], back["train"]["seconds"]) == (4, None)


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_of_the_contract_is_legal(record, tmp_path, status):
    write_record(tmp_path, record | {"status": status})
    assert read_record(tmp_path)["status"] == status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "done"}, "status is 'done', allowed: completed, oom, diverged"),
        ({"schema": 2}, "schema is 2, this version reads 1"),
        ({"reason": 7}, "reason must be text or null, not 7"),
        ({"eval": [1]}, "eval must be an object with loss"),
        ({"memory": {"phases": 3}}, "memory.phases must be an object"),
    ],
)
def test_a_record_that_contradicts_the_contract_is_neither_written_nor_read(record, tmp_path, change, reason):
    write_record(tmp_path, record)
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(ConfigError, match=re.escape(reason)):
        write_record(tmp_path, record | change)
    assert (tmp_path / "result.json").read_text() == before
    (tmp_path / "result.json").write_text(json.dumps(record | change))
    with pytest.raises(ConfigError, match=f"result.json: is not a record of this version .*{re.escape(reason)}"):
        read_record(tmp_path)


def test_all_contradictions_at_once(record, tmp_path):
    with pytest.raises(ConfigError) as error:
        write_record(tmp_path, record | {"status": "done", "eval": 3, "command": 4})
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"7", b"null", b"\xff\xfe", b"{}"])
def test_a_file_that_is_no_record(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"result\.json: (cannot be read as a record|is not a record)"):
        read_record(tmp_path)


@pytest.mark.parametrize("place", ["", "nowhere", "nowhere/result.json"])
def test_a_folder_without_a_record(tmp_path, place):
    with pytest.raises(ConfigError, match=r"has no result\.json, so no run has ended there"):
        read_record(tmp_path / place)


def test_every_record_below_a_folder_in_natural_order(record, tmp_path, caplog):
    for name in ("0", "1", "2", "10", "study/b", "study/a"):
        (tmp_path / name).mkdir(parents=True)
        write_record(tmp_path / name, record)
    (tmp_path / "1" / "result.json").write_text("{")
    (tmp_path / "running").mkdir()
    (tmp_path / "2" / "again").symlink_to(tmp_path)  # a loop
    found = find_records(tmp_path)
    assert [str(folder.relative_to(tmp_path)) for folder, _ in found] == ["0", "1", "2", "10", "study/a", "study/b"]
    broken = found[1][1]
    assert (broken["status"], missing(broken)) == ("invalid_run", [])
    assert "1/result.json: cannot be read" in broken["reason"]
    assert find_records(tmp_path / "0")[0][0] == tmp_path / "0"
    assert find_records(tmp_path / "running") == find_records(tmp_path / "nowhere") == []


def test_natural_order():
    names = ["10", "9", "a10b2", "a10b10", "a9", "a", "٣", "²"]
    assert sorted(map(Path, names[:6]), key=natural) == [
        Path(name) for name in ("9", "10", "a", "a9", "a10b2", "a10b10")
    ]
    assert len(sorted(map(Path, names), key=natural)) == 8  # digits of other scripts are no trouble


def test_the_environment_names_what_it_ran_on():
    found = environment()
    assert set(CONTRACT["environment"].split()) <= set(found)
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} <= set(found["packages"])
    assert all(found["packages"].values())
    assert found["git"] is None or re.fullmatch("[0-9a-f]{40}", found["git"])
    assert (found["git"] is None) == (found["dirty"] is None)
    json.dumps(found, allow_nan=False)
    assert re.fullmatch(r".+ \(\d+ cores\)", cpu_name())


@pytest.mark.parametrize(("given", "expected"), [("abc12 clean", ("abc12", False)), ("abc12 dirty", ("abc12", True))])
def test_a_worker_is_told_which_code_it_is_a_copy_of(monkeypatch, given, expected):
    monkeypatch.setenv(GIT, given)
    assert code_version() == expected
    environment.cache_clear()
    try:
        assert (environment()["git"], environment()["dirty"]) == expected
    finally:
        environment.cache_clear()


def test_without_being_told_git_is_asked(monkeypatch):
    answers = {"ls-files": "", "rev-parse": "abc", "status": " M x"}
    monkeypatch.setattr("sweeptune.tracking.record._git", lambda *arguments: answers[arguments[0]])
    for unset in (monkeypatch.delenv, lambda name, **_: monkeypatch.setenv(name, "")):
        unset(GIT, raising=False)
        assert code_version() == ("abc", True)
    monkeypatch.setattr("sweeptune.tracking.record._git", lambda *a: None)
    assert code_version() == (None, None)


@pytest.mark.parametrize("given", ["abc12", "abc12 Clean", "clean"])
def test_a_code_version_that_says_nothing_is_refused(monkeypatch, given):
    monkeypatch.setenv(GIT, given)
    with pytest.raises(ConfigError, match="must be <sha> clean or <sha> dirty"):
        code_version()
