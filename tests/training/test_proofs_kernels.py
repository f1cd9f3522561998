"""The proof of the fused kernels: it passes where they are right, and each planted fault ends the run."""

from __future__ import annotations

import pytest
import torch

from sweeptune.kernels import fuse as fusing
from sweeptune.kernels import head, ops
from sweeptune.kernels.fuse import fuse, fused
from sweeptune.kernels.linear import Group
from sweeptune.tracking.record import read_record
from sweeptune.training import run
from sweeptune.training.loop import prove_kernels_in
from sweeptune.training.proofs import ProofFailed
from sweeptune.training.session import Session, open_session

PLAIN = {name: getattr(ops, name) for name in ("rope_", "rms_norm", "rms_norm_backward", "swiglu", "cross_entropy_")}


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels here, too, in whatever precision: their plain versions are right on any device."""
    monkeypatch.setattr(fusing, "_no_kernels", lambda device: None)
    monkeypatch.setattr(fusing, "plain_reason", lambda model, wanted, compute: None if wanted == "auto" else wanted)


def session_of(settings, folder, *overrides: str) -> Session:
    session = open_session(settings("method=lora", *overrides), folder)
    fuse(session.model, session.placement.compute)
    return session


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "rslora", "pissa"])
def test_right_kernels_pass_and_nothing_is_left_changed(settings, tmp_path, method, precision):
    session = session_of(settings, tmp_path, f"method={method}", f"hardware.precision={precision}")
    fast = fused(session.model)
    assert fast is not None
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    generator = torch.get_rng_state()
    session.model.eval()
    prove_kernels_in(session)
    found = session.kernel_proof
    assert found is not None and found["tokens"] <= 256 and found["block"] == 1
    assert found["relative_error"] < (1e-4 if precision == "fp32" else 0.04), found
    assert found["loss_difference"] < 1e-3
    assert not session.model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert all(p.grad is None for p in session.model.parameters())
    for to, of, scale in fast.casts:
        assert torch.equal(to, (of * scale).to(to.dtype)), "copies of what adapters are now"


def turned_the_wrong_way(q, k, cos, sin, *, backward=False):
    PLAIN["rope_"](q, k, cos, sin)


def gradient_of_the_residual_is_lost(dy, x, weight, rstd, residual=None, want_weight=False):
    return PLAIN["rms_norm_backward"](dy, x, weight, rstd, None, want_weight)


def residual_is_lost(x, weight, eps, residual=None):
    y, rstd, total = PLAIN["rms_norm"](x, weight, eps, residual)
    return y, rstd, x if residual is not None else total


def not_a_number(gate, up, gate_low=None, up_low=None):
    return PLAIN["swiglu"](gate, up, gate_low, up_low) * float("nan")


def adapters_of_up_are_lost(gate, up, gate_low=None, up_low=None):
    return PLAIN["swiglu"](gate, up, gate_low, None)


def twice_the_gradient(logits, targets, *, gradient):
    nll = PLAIN["cross_entropy_"](logits, targets, gradient=gradient)
    logits.mul_(2)
    return nll


FAULTS = {
    "rope_": [turned_the_wrong_way],
    "rms_norm_backward": [gradient_of_the_residual_is_lost],
    "rms_norm": [residual_is_lost],
    "swiglu": [not_a_number, adapters_of_up_are_lost],
    "cross_entropy_": [twice_the_gradient],
}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, found in FAULTS.items() for fault in found])
def test_a_fault_in_a_kernel_is_stopped(settings, tmp_path, monkeypatch, name, fault):
    session = session_of(settings, tmp_path)
    prove_kernels_in(session)
    monkeypatch.setattr(ops, name, fault)
    with pytest.raises(ProofFailed, match=r"hardware\.kernels=auto: the fused .* use hardware\.kernels=plain"):
        prove_kernels_in(session)


def test_a_scale_that_adapters_miss_is_stopped(settings, tmp_path, monkeypatch):
    real = Group.casts
    monkeypatch.setattr(Group, "casts", lambda group: ((to, of, 1.0) for to, of, _ in real(group)))
    with pytest.raises(ProofFailed, match="lora"):
        prove_kernels_in(session_of(settings, tmp_path))


@pytest.mark.parametrize("fault", ["last one is left out", "places of another one", "targets of another one"])
def test_a_wrong_chunk_of_the_loss_is_stopped(settings, tmp_path, monkeypatch, fault):
    session = session_of(settings, tmp_path)
    real = head._chunks

    def chunks(places, targets, rows):
        found = real(places, targets, rows)
        assert len(found) > 1, "of one chunk nothing would be proven"
        if fault == "last one is left out":
            return found[:-1]
        (first, wanted), (second, other), *rest = found
        if fault == "places of another one":
            return [(second, wanted), (first, other), *rest]
        return [(first, wanted.roll(1)), (second, other), *rest]

    monkeypatch.setattr(head, "_chunks", chunks)
    with pytest.raises(ProofFailed, match="loss"):
        prove_kernels_in(session)


def test_a_gradient_of_one_tensor_that_is_not_a_number_is_stopped(settings, tmp_path, monkeypatch):
    real = Group.into_trained

    def broken(self, *args):
        return [g * float("nan") if i == 1 else g for i, g in enumerate(real(self, *args))]

    monkeypatch.setattr(Group, "into_trained", broken)
    with pytest.raises(ProofFailed, match="differs from the plain code's by nan"):
        prove_kernels_in(session_of(settings, tmp_path))


@pytest.mark.usefixtures("_on_the_cpu")
@pytest.mark.parametrize("checkpointing", ["false", "true", "offload"])
def test_a_run_with_fused_kernels_is_proven_and_learns_the_same(settings, tmp_path, checkpointing):
    common = ("method=lora", "hardware.micro_batch=3")
    plain = run(settings(*common, "hardware.kernels=plain"), tmp_path / "plain")
    found = run(settings(*common, f"hardware.gradient_checkpointing={checkpointing}"), tmp_path / "fused")
    assert plain["status"] == found["status"] == "completed", found["reason"]
    assert plain["proofs"]["kernels"] is None and found["proofs"]["kernels"]["relative_error"] < 1e-4
    costs = [record["fingerprint"]["cost"]["kernels"] for record in (plain, found)]
    assert costs == ["plain", "fused"]
    assert found["eval"]["loss"] == pytest.approx(plain["eval"]["loss"], abs=1e-4)
    log = (tmp_path / "fused" / "train.log").read_text()
    assert "kernels: fused" in log and "kernels proven:" in log


@pytest.mark.usefixtures("_on_the_cpu")
def test_a_run_whose_kernels_are_wrong_is_invalid(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "rope_", turned_the_wrong_way)
    run(settings("method=lora"), tmp_path)
    record = read_record(tmp_path)
    assert record["status"] == "invalid_run" and "use hardware.kernels=plain" in record["reason"]
    assert record["train"]["steps"] == 0
