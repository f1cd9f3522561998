"""The order of attention kernels: measured once, remembered, and never taken from a measurement that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from sweeptune.kernels import fastest
from sweeptune.kernels.fastest import kernel_order

GPU = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What each measurement finds, in turn."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    left: list[dict[str, float]] = []
    monkeypatch.setattr(fastest, "_measure", lambda *_: left.pop(0))
    return left


def order(file: Path, width: int = 64) -> list[SDPBackend]:
    return kernel_order(file, GPU, 8, 2, width, torch.bfloat16)


def test_the_fastest_comes_first_and_torch_s_own_last(tmp_path, measured):
    measured.append({"cudnn": 2.0, "flash": 1.0})
    found = order(tmp_path / "new" / "attention.json")
    assert found == [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


def test_it_is_measured_once_for_all_that_it_depends_on(tmp_path, measured):
    file = tmp_path / "attention.json"
    measured += [{"cudnn": 1.0, "flash": 2.0}, {"cudnn": 2.0, "flash": 1.0}]
    first, again, other = order(file), order(file), order(file, width=128)
    assert first == again != other and not measured
    assert len(json.loads(file.read_text())) == 2


def test_a_file_that_was_cut_off_is_written_anew(tmp_path, measured):
    file = tmp_path / "attention.json"
    file.write_text('{"a GPU')
    measured.append({"cudnn": 1.0})
    assert order(file)[0] == SDPBackend.CUDNN_ATTENTION
    assert len(json.loads(file.read_text())) == 1


def test_a_measurement_that_found_nothing_is_not_remembered(tmp_path, measured):
    file = tmp_path / "attention.json"
    measured += [{}, {"flash": 1.0}]
    assert order(file) == [SDPBackend.MATH]
    assert order(file)[0] == SDPBackend.FLASH_ATTENTION
