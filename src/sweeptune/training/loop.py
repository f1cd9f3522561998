"""The training loop, top to bottom: prove, evaluate, step, log, evaluate, save.

The values of a step travel to the host on their own and are read one step later, when the next one has been issued, so
that neither waits for the other.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from sweeptune.data import Step, collate_packs, lengths_of, micro_batches
from sweeptune.kernels.fuse import fused
from sweeptune.tracking.console import bar, spinner
from sweeptune.training.checkpoint import prune_checkpoints, save_checkpoint
from sweeptune.training.oom import any_rank
from sweeptune.training.optimizer import learning_rate
from sweeptune.training.proofs import ATTEMPTS, PROOF_TOKENS, Attempt, GradientMissing, ProofFailed, prove_gradients
from sweeptune.training.proofs_kernels import prove_kernels
from sweeptune.training.proofs_packing import packed_sample, prove_packing
from sweeptune.training.scoring import evaluate_split
from sweeptune.training.session import Session
from sweeptune.training.shared import first_evaluation
from sweeptune.training.step import train_step
from sweeptune.training.stop import Diverged, Stop, is_pruned, stop_if_pruned
from sweeptune.training.values import Arriving, send_back

log = logging.getLogger("sweeptune")

SKIPS_ALLOWED = 20


@dataclass
class Issued:
    """A step whose values are still on their way from the device."""

    line: dict[str, Any]
    values: Arriving
    """The summed loss, and the gradient's norm."""
    skipped: bool


def train(session: Session, stop: Stop) -> bool:
    """Run all steps that are left; return whether the end was reached.

    Raises:
        Diverged: Loss or gradient is not finite.
        ProofFailed: The gradients are wrong, samples that share a row see each other, or the gradient is exactly zero.
        Pruned: The study that the run belongs to has ended it.
    """
    progress, meter = session.progress, session.meter
    begin = time.perf_counter() - progress.seconds
    if progress.initial_eval is None:
        progress.initial_eval = progress.last_eval = first_evaluation(session)
    elif progress.last_eval_step != progress.step and eval_is_due(session):
        progress.last_eval = evaluate_split(session, f"evaluating at step {progress.step}")  # a signal had prevented it
    stop_if_pruned(session)  # also where an earlier attempt was killed before it could say so
    prove_kernels_in(session)
    prove(session)
    if session.config.data.packing != "none":
        prove_that_samples_are_apart(session)
    issued: Issued | None = None
    skips = 0
    meter.enter("first_step", release=True)
    session.model.train()
    with bar("training", len(session.steps), completed=progress.step) as advance:
        for step in session.steps[progress.step :]:
            lr = learning_rate(session.config.optim, progress.step, len(session.steps))
            loss, norm, skipped = train_step(session, step)
            count(session, step)
            session.watch.step_done(step.tokens, step.loss_tokens)
            previous, issued = issued, Issued(step_line(session, step, lr), send_back(loss, norm), skipped)
            note = settle(session, previous)
            skips = skips + 1 if skipped else 0
            if skips > SKIPS_ALLOWED:
                raise Diverged(f"fp16 overflowed in {skips} steps in a row; use hardware.precision=bf16 or fp32")
            if meter.current == "first_step":
                meter.enter("steady")
            stopping = any_rank(stop.requested or is_pruned(session), session.device)
            if stopping or is_due(session):
                settle(session, issued)
                issued = None
                progress.seconds = time.perf_counter() - begin
                with session.watch.paused():
                    evaluate_and_save(session, stopping=stopping)
            advance(1, note=note)
            if stopping:
                return progress.step == len(session.steps)
    settle(session, issued)
    progress.seconds = time.perf_counter() - begin
    return True


def count(session: Session, step: Step) -> None:
    """Add a step that has been made."""
    progress = session.progress
    progress.step += 1
    progress.tokens += step.tokens
    progress.loss_tokens += step.loss_tokens
    progress.epoch = step.epoch


def step_line(session: Session, step: Step, lr: float) -> dict[str, Any]:
    """What metrics.jsonl says of a step, without the values that are still on the device."""
    progress = session.progress
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "epoch": round(progress.epoch, 4),
        "lr": lr,
        "step_loss_tokens": step.loss_tokens,
        "micro_batch": progress.micro_batch,
        "time": round(time.time(), 3),
    }


def settle(session: Session, issued: Issued | None) -> str:
    """Read a step's values, check them and log them; return a note for the progress bar."""
    if issued is None:
        return ""
    loss, norm = issued.values.wait()
    loss /= issued.line["step_loss_tokens"]
    step = issued.line["step"]
    if not math.isfinite(loss) or not (math.isfinite(norm) or issued.skipped):
        raise Diverged(f"step {step}: loss {loss}, gradient norm {norm}; a smaller optim.lr usually helps")
    if norm == 0:
        raise ProofFailed(f"step {step}: the gradient of every trainable weight is exactly zero")
    session.progress.train_loss = loss
    line = {**issued.line, "loss": loss, "grad_norm": norm if math.isfinite(norm) else None}
    if issued.skipped:
        line["skipped"] = True
    if session.metrics is not None:
        session.metrics.append(line)
    return f"loss {loss:.3f}"


def is_due(session: Session) -> bool:
    """Whether an evaluation or a checkpoint follows the step that was just made."""
    every, step = session.config.train.checkpoint_every, session.progress.step
    if step == len(session.steps):
        return False  # the end evaluates and saves by itself
    return eval_is_due(session) or bool(every and step % every == 0)


def eval_is_due(session: Session) -> bool:
    """Whether the settings ask for an evaluation after the step that was just made."""
    every, step = session.config.train.eval_every, session.progress.step
    return step in session.eval_steps or bool(every and step and step % every == 0)


def evaluate_and_save(session: Session, *, stopping: bool) -> None:
    """What is due after a step: evaluate, prove again, write a checkpoint.

    Raises:
        Pruned: There is a verdict of the study; no checkpoint is written, since nobody will go on from it.
    """
    train, step, progress = session.config.train, session.progress.step, session.progress
    if stopping:
        stop_if_pruned(session)
    improved = False
    if not stopping and eval_is_due(session):
        progress.last_eval = evaluate_split(session, f"evaluating at step {step}")
        improved = progress.best_step == step
        stop_if_pruned(session)
        prove(session)
    due = train.checkpoint_every and step % train.checkpoint_every == 0
    if stopping or due or (improved and train.keep_best):
        save(session)


def save(session: Session, *, weights_only: bool = False) -> None:
    """Write a checkpoint and remove those that are no longer kept."""
    optimizer, scaler = (None, None) if weights_only else (session.optimizer, session.accelerator.scaler)
    if session.metrics is not None:
        session.progress.metrics_offset = session.metrics.offset
    with session.meter.interlude("save"):
        save_checkpoint(session.folder, session.model, session.state(), session.device, optimizer, scaler)
        if session.main:
            best = session.progress.best_step if session.config.train.keep_best else None
            prune_checkpoints(session.folder, session.config.train.keep_checkpoints, best)


def prove(session: Session) -> None:
    """Prove the gradients in a phase of its own, after which what it cached is given back."""
    with session.meter.interlude("proof", release=True), spinner("proving the gradients"):
        first, *more = ATTEMPTS[session.arithmetic]
        try:
            found = _prove(session, first)
        except ProofFailed as failed:
            if not more or isinstance(failed, GradientMissing):
                raise
            log.debug("%s", failed)
            said = "gradients do not agree with the loss over %d rows; once more with up to %d and shorter steps"
            log.info(said, first.rows, more[0].rows)
            found = _prove(session, more[0])
            log.info("they agree over more: off by %.1f %%", 100 * found["relative_error"])
    session.progress.gradient_proofs.append({"step": session.progress.step, **found})


def _prove(session: Session, attempt: Attempt) -> dict[str, float]:
    found = session.proof_rows(attempt.rows)
    at_once = max(1, _proof_tokens_at_once(session) // max(row.length for row in found))
    parts = micro_batches([(row,) for row in found], at_once)
    batches = [collate_packs(part, session.pad_id, session.device) for part in parts]
    return prove_gradients(
        session.model, batches, session.arithmetic, session.autocast, attempt.changes, seed=session.progress.step
    )


def _proof_tokens_at_once(session: Session) -> int:
    """Positions of a pass of the proof: at most those of a micro-batch of training on one rank, and no more than its
    first rows fill. (Rows one by one would take longer than a short training: 7B in NF4 is dequantised every time.)"""
    config, ranks = session.config, int(session.accelerator.num_processes)
    packed = config.data.packing != "none"
    longest = config.data.max_length if packed else int(lengths_of(session.splits.train).max())
    tokens = min(session.progress.micro_batch * longest, config.train.tokens_per_step // ranks)
    return min(tokens, ATTEMPTS[session.arithmetic][0].rows * PROOF_TOKENS)


def prove_kernels_in(session: Session) -> None:
    """Prove the fused kernels, once in every process that trains with them."""
    if fused(session.model) is None:
        return
    with session.meter.interlude("proof", release=True):
        batch = collate_packs([(row,) for row in session.proof_rows(2)], session.pad_id, session.device)
        session.kernel_proof = prove_kernels(session.model, batch, session.autocast, session.config.seed)
    log.info("kernels proven: %(tokens)d tokens, worst gradient off by %(relative_error).1e", session.kernel_proof)


def prove_that_samples_are_apart(session: Session) -> None:
    """Prove the attention back-end on a packed row, once in every process that trains on such rows."""
    with session.meter.interlude("proof", release=True):
        row = packed_sample(session.splits.train, session.steps, session.device)
        session.packing_proof = prove_packing(
            session.model, row, session.placement.compute, session.autocast, session.pad_id
        )
    log.info(
        "packing proven with %s attention: %d samples of a row do not see each other (%.1f s)",
        session.packing_proof["backend"],
        session.packing_proof["samples"],
        session.packing_proof["seconds"],
    )
