"""From a run in progress to its record: the figures, and the fingerprint that says what they may be compared with."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sweeptune.data import hash_plan, hash_rows, lengths_of, loss_counts_of
from sweeptune.kernels import backend_of
from sweeptune.kernels.fuse import fused
from sweeptune.models import architecture_digest, weights_digest
from sweeptune.tracking.record import MERGED, cpu_name
from sweeptune.training.flops import count_parameters, flops_per_token, measure_matmul_rate, vendor_peak
from sweeptune.training.session import Session


def measured(session: Session) -> dict[str, Any]:
    """The parts of result.json that a run which has trained can fill in."""
    progress = session.progress
    return {
        "eval": eval_part(session),
        "memory": session.meter.summary(),
        "speed": speed_part(session),
        "train": {
            "steps": progress.step,
            "tokens": progress.tokens,
            "loss_tokens": progress.loss_tokens,
            "final_loss": progress.train_loss,
            "seconds": progress.seconds,
            "planned_steps": len(session.steps),
            "replans": progress.replans,
            "data": {**session.splits.stats, "ledger": session.splits.ledger.as_dict()},
        },
        "params": count_parameters(session.model),
        "proofs": {"gradients": proof_part(session), "packing": session.packing_proof, "kernels": session.kernel_proof},
        "fingerprint": {"quality": quality_fingerprint(session), "cost": cost_fingerprint(session)},
    }


def eval_part(session: Session) -> dict[str, Any]:
    """Eval figures at the last step, with the first and the best beside them; a run that ended early has no last."""
    progress = session.progress
    last = progress.last_eval if progress.last_eval_step == progress.step else None
    initial = progress.initial_eval or {}
    return {
        **(last or dict.fromkeys(("loss", "perplexity", "bits_per_byte", "loss_tokens", "samples"))),
        "best_loss": progress.best_loss,
        "initial_loss": initial.get("loss"),
        "initial_bits_per_byte": initial.get("bits_per_byte"),
        "initial_shared": progress.initial_shared,
        "tasks": {},
        **dict.fromkeys(MERGED),  # measured last of all, where eval.merged asks for it
    }


def speed_part(session: Session) -> dict[str, Any]:
    """Throughput, and its share of what the vendor promises and of what this machine really multiplies."""
    device, compute = session.device, session.placement.compute
    frozen = session.config.method.name != "full"
    flops = flops_per_token(session.model, segment_lengths(session), loss_share(session), frozen_base=frozen)
    figures: dict[str, Any] = {**session.watch.summary(), "flops_per_token": flops, "mfu": None}
    figures["matmul_efficiency"] = None
    if figures["tokens_per_s"]:
        reached = flops * figures["tokens_per_s"] / session.accelerator.num_processes
        peak = vendor_peak(device, compute)
        figures["mfu"] = reached / peak if peak else None
        figures["matmul_efficiency"] = reached / measure_matmul_rate(device, compute)
    return figures


def segment_lengths(session: Session) -> NDArray[np.int64]:
    """Tokens of the samples that attention sees, cut where ``split`` cuts them."""
    if session.config.data.packing == "split":
        pieces: NDArray[np.int64] = np.concatenate([step.packs.pieces for step in session.steps])
        return np.subtract(pieces[:, 2], pieces[:, 1])
    return lengths_of(session.splits.train)


def loss_share(session: Session) -> float:
    """Share of the training tokens that bears loss."""
    if session.config.data.packing == "split":
        return sum(step.loss_tokens for step in session.steps) / sum(step.tokens for step in session.steps)
    rows = session.splits.train
    return float(loss_counts_of(rows).sum() / lengths_of(rows).sum())


def proof_part(session: Session) -> dict[str, Any] | None:
    """The gradient proofs: how many ran, and the worst of them."""
    proofs = session.progress.gradient_proofs
    if not proofs:
        return None
    return {"passed": len(proofs), "worst": max(proofs, key=lambda proof: proof["relative_error"])}


def quality_fingerprint(session: Session) -> dict[str, Any]:
    """What must agree before losses may be ranked."""
    config, placement = session.config, session.placement
    rows = session.splits.train
    weights = weights_digest(config.model, dtype=placement.weights, device=placement.device, seed=config.seed)
    template = str(getattr(session.tokenizer, "chat_template", ""))
    return {
        "weights": weights,
        "data_order": hash_plan(rows, session.steps),
        "loss_mask": hash_rows(rows),
        "ledger": session.splits.ledger.digest,
        **({"head": config.model.head} if config.model.head != "plain" else {}),
        "tokens_per_step": config.train.tokens_per_step,
        "budget_tokens": sum(step.tokens for step in session.steps),
        "template": f"{config.template.name}-{hashlib.sha256(template.encode()).hexdigest()[:12]}",
        "eval_split": hash_rows(session.eval_rows),
        "test_split": hash_rows(session.splits.test),
    }


def cost_fingerprint(session: Session) -> dict[str, Any]:
    """What must agree before memory and speed may be ranked; the method's own effect is left out."""
    config, device = session.config, session.device
    packages = {name: ".".join(version(name).split(".")[:2]) for name in ("transformers", "peft", "bitsandbytes")}
    return {
        "model": architecture_digest(session.model.config),
        "data": hash_rows(session.splits.train),
        "eval": hash_rows(session.splits.eval),  # eval.longest leaves rows out, and the peak as it is
        "tokens_per_step": config.train.tokens_per_step,
        "threads": torch.get_num_threads(),
        "replanned": bool(session.progress.replans),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "ranks": session.accelerator.num_processes,
        "micro_batch": session.progress.micro_batch,
        "eval_batch": session.progress.eval_batch,
        "eval_tokens": config.eval.batch_tokens,
        "max_length": config.data.max_length,
        "attention": backend_of(session.model.config),
        "packing": config.data.packing,
        "kernels": "plain" if fused(session.model) is None else "fused",
        "gradient_checkpointing": config.hardware.gradient_checkpointing,
        "precision": session.placement.precision,
        "weights_dtype": config.model.dtype,
        "embedding": config.model.embedding,
        "head": config.model.head,
        "optimiser": config.optim.name,
        "rounding": config.optim.rounding,
        "in_backward": config.optim.in_backward,
        "memory_cap_gib": config.hardware.memory_cap_gib,
        "allocator": segments(device),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        **packages,
    }


def segments(device: torch.device) -> str | None:
    """How the allocator really reserves: ``expandable`` or ``fixed`` segments; None on a CPU."""
    if device.type != "cuda":
        return None
    parts: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return "expandable" if any(part["is_expandable"] for part in parts) else "fixed"
