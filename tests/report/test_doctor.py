"""The doctor answers, whatever is missing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from sweeptune.kernels import ops
from sweeptune.report import doctor
from sweeptune.report.doctor import Check


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers every HEAD request with an error page."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def test_all_subjects_are_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_unreachable", lambda address: "not reachable (no network in tests)")
    checks = doctor.doctor()
    found = {check.name: check for check in checks}
    assert {"Python", "torch", "bf16", "4-bit on the CPU", "sdpa kernels", "memory", "disk here", "hub"} <= set(found)
    assert found["4-bit on the CPU"].state == "ok"
    assert "plain" in found["sdpa kernels"].value
    assert (found["fused kernels"].state == "ok") is (torch.cuda.is_available() and ops.has_triton())
    assert not [check for check in checks if "please report" in check.advice], "no probe broke"
    json.dumps([vars(check) for check in checks])
    doctor.render(checks)
    out = capsys.readouterr().out
    assert all(check.name in out for check in checks)


def test_a_probe_that_breaks_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        raise RuntimeError("driver too old\nand more")

    assert doctor._tried("GPU", broken)[0].value == "RuntimeError: driver too old"


def test_a_wrong_four_bit_kernel_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes as bnb

    right = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: right(self, x) * 1.5)
    assert doctor._nf4_error("cpu") > 0.4


def test_reachable_means_that_anything_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert doctor._unreachable(server) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "not reachable" in (doctor._unreachable(address) or "")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        assert "not reachable" in (doctor._unreachable(f"http://127.0.0.1:{mute.getsockname()[1]}") or "")


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPTUNE_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor, "ENOUGH_GIB", 10**9)
    checks = list(doctor.disk())
    assert [check.state for check in checks] == ["warn", "warn"]
    assert "SWEEPTUNE_CACHE" in checks[1].advice


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_gpu_is_a_normal_answer() -> None:
    assert [check.name for check in doctor.torch_and_devices() if check.state == "no"] == ["GPU"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp8_can_be_tried_without_hardware_for_it() -> None:
    found = next(check for check in doctor.dtypes() if check.name == "fp8")
    assert found.state == "no" and found.value.startswith("not in hardware, ")
    assert found.advice.startswith("method=lora_fp8 runs here, too, for trying it: ")
