"""The proof of the fused kernels: it passes where they are right, and each planted fault ends the run."""

from __future__ import annotations

import pytest
import torch

from sweeptune.data import collate_packs
from sweeptune.kernels import fuse as fusing
from sweeptune.kernels import head, ops
from sweeptune.kernels.attention import prepare
from sweeptune.kernels.fuse import fuse, fused
from sweeptune.kernels.linear import Group, Operand
from sweeptune.tracking.record import read_record
from sweeptune.training import run
from sweeptune.training.loop import prove_kernels_in
from sweeptune.training.proofs import ProofFailed
from sweeptune.training.proofs_adapters import adapter_slopes
from sweeptune.training.proofs_kernels import _inputs
from sweeptune.training.session import Session, open_session

PLAIN = {name: getattr(ops, name) for name in ("rope_", "rms_norm", "rms_norm_backward", "swiglu", "cross_entropy_")}


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels here, too, in whatever precision: their plain versions are right on any device."""
    monkeypatch.setattr(fusing, "machine_lacks", lambda device: None)
    monkeypatch.setattr(fusing, "plain_reason", lambda model, wanted, compute: None if wanted == "auto" else wanted)


def session_of(settings, folder, *overrides: str) -> Session:
    session = open_session(settings("method=lora", *overrides), folder)
    fuse(session.model, session.placement.compute)
    return session


def slopes_of(session: Session) -> dict[str, float]:
    """What the proof finds of each adapter of the second block."""
    fast = fused(session.model)
    assert fast is not None
    batch = collate_packs([(row,) for row in session.proof_rows(2)], session.pad_id, session.device)
    hidden, options, _ = _inputs(fast, 1, prepare(batch, session.model.config).inputs, session.autocast)
    return {name: found.slope for name, found in adapter_slopes(fast, 1, hidden, options, session.autocast).items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "rslora", "pissa", "lora_fp8"])
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
    assert found["tolerance"] == (0.2 if method == "lora_fp8" else 0.05)
    assert found["loss_difference"] < 1e-3
    if method == "full":
        assert found["adapters"] is None and found["adapters_of"] is None
    else:
        assert abs(found["adapters"] - 1) < (1e-3 if precision == "fp32" else 0.025), found
        assert "lora_B" in found["adapters_of"]
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


def added_to_a_sum_that_is_rounded(group, x, into=None, *, add=True):
    """What it was: with the residual, the sum is rounded before the adapter comes to it."""
    lows = None if group.a is None else torch.mm(x, group.a.t())
    outputs, operand = [], Operand(x)
    for p, slot, b in zip(group.projections, group.slots, group.b, strict=True):
        y = p.times(operand) if into is None else p.times(operand).add_(into)
        if add and b is not None and lows is not None:
            y.addmm_(lows[:, slot], b.t())
        outputs.append(y)
    return outputs, lows


def test_a_block_that_adds_nothing_yet_is_proven_as_far_as_it_can_be(settings, tmp_path):
    session = session_of(settings, tmp_path, "method=lora", "hardware.precision=bf16")
    layer = fused(session.model).decoder.layers[1]
    for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
        part.base_layer.weight.data.zero_()  # as of blocks that were put in as the identity
    session.model.eval()
    prove_kernels_in(session)
    measured, adapters = session.kernel_proof["adapters_measured"]
    assert adapters == 7 and measured < 7


@pytest.mark.parametrize("method", ["lora", "qlora", "lora_fp8"])
def test_an_adapter_that_is_rounded_away_is_stopped(settings, tmp_path, monkeypatch, method):
    session = session_of(settings, tmp_path, f"method={method}", "hardware.precision=bf16")
    monkeypatch.setattr(Group, "forward", added_to_a_sum_that_is_rounded)
    with pytest.raises(ProofFailed, match=r"has [2-7]\d\.\d% of what mlp\.down_proj\.lora_B"):
        prove_kernels_in(session)


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("lost", "rank"),
    [*((name, 8) for name in LINEARS), ("gate_proj", 80), ("up_proj", 80)],  # 80: by products of their own
)
def test_an_adapter_that_the_output_lacks_is_stopped(settings, tmp_path, monkeypatch, lost, rank):
    session = session_of(settings, tmp_path, "hardware.precision=bf16", f"method.rank={rank}")
    fast = fused(session.model)
    assert fast is not None
    *_, of = (p for name, p in session.model.named_parameters() if f"{lost}.lora_B" in name)  # of the last block
    group = next(g for g in fast.blocks[-1].groups if any(p.b is of for p in g.projections))
    index = [p.b is of for p in group.projections].index(True)
    real = Group.forward, Group.low

    def forward(self, *args, **options):
        if self is not group:
            return real[0](self, *args, **options)
        kept = list(self.b)
        self.b[index] = None
        try:
            return real[0](self, *args, **options)
        finally:
            self.b = kept

    monkeypatch.setattr(Group, "forward", forward)
    monkeypatch.setattr(
        Group, "low", lambda self, i, lows: None if (self, i) == (group, index) else real[1](self, i, lows)
    )
    slopes = slopes_of(session)
    assert abs(slopes.pop(next(name for name in slopes if lost in name))) < 0.1
    assert all(abs(slope - 1) < 0.04 for slope in slopes.values()), slopes
    with pytest.raises(ProofFailed):
        prove_kernels_in(session)


@pytest.mark.parametrize(("method", "factor"), [("lora", 1.1), ("qlora", 0.9), ("rslora", 1.1), ("lora_fp8", 1.1)])
def test_a_scale_that_is_ten_percent_off_is_stopped(settings, tmp_path, monkeypatch, method, factor):
    session = session_of(settings, tmp_path, f"method={method}", "hardware.precision=bf16")
    real = Group.casts

    def casts(group):  # A's copy, every other one, is what the scale is in
        return [(to, of, scale * (1 if i % 2 else factor)) for i, (to, of, scale) in enumerate(real(group))]

    monkeypatch.setattr(Group, "casts", casts)
    slopes = slopes_of(session)
    assert all(slope == pytest.approx(factor, abs=0.035) for slope in slopes.values()), slopes


def test_what_adapters_have_learned_is_left_as_it_was(settings, tmp_path):
    session = session_of(settings, tmp_path, "hardware.precision=bf16")
    for name, parameter in session.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    prove_kernels_in(session)
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert session.kernel_proof is not None and abs(session.kernel_proof["adapters"] - 1) < 0.025


@pytest.mark.parametrize("seed", range(4))
def test_adapters_that_are_right_are_never_far_from_one(settings, tmp_path, seed):
    session = session_of(
        settings, tmp_path, "hardware.precision=bf16", f"seed={seed}", "method.target_modules=[v_proj,down_proj]"
    )
    torch.manual_seed(seed)
    slopes = slopes_of(session)
    assert len(slopes) == 2 and all(abs(slope - 1) < 0.02 for slope in slopes.values()), slopes


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
