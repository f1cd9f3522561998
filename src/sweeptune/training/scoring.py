"""Judging the model that is being trained on held-out rows, in a phase of its own and within the memory there is."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from sweeptune.data import Row, eval_batches
from sweeptune.data.plan import positions
from sweeptune.training.evaluate import gather, score_share, summarize, write_examples
from sweeptune.training.oom import any_rank, brief, is_out_of_memory, release_memory
from sweeptune.training.session import Session
from sweeptune.training.stop import Diverged

log = logging.getLogger("sweeptune")


def evaluate_split(session: Session, description: str) -> dict[str, Any]:
    """Judge the model on the eval split, log it and keep the examples' scores; also remember the best."""
    return note_evaluation(session, score(session, session.eval_rows, description))


def note_evaluation(session: Session, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Keep and log the scores of the eval split at the present step; return their summary."""
    progress = session.progress
    summary = keep(session, examples, "eval.jsonl")
    progress.last_eval_step = progress.step
    if progress.best_loss is None or summary["loss"] < progress.best_loss:
        progress.best_loss, progress.best_step = summary["loss"], progress.step
    if session.metrics is not None:
        session.metrics.append(
            {"step": progress.step, "tokens": progress.tokens}
            | {f"eval_{key}": summary[key] for key in ("loss", "perplexity", "bits_per_byte")}
            | ({"cost": cost_so_far(session)} if progress.step else {})
        )
    return summary


def cost_so_far(session: Session) -> dict[str, float]:
    """Memory and speed as they stand; reading them waits for nothing."""
    memory = session.meter.summary()
    seen = {key: memory[key] for key in ("peak_memory_gib", "host_peak_gib")} | {"tokens_per_s": session.watch.rate()}
    return {key: value for key, value in seen.items() if value is not None}


def keep(session: Session, examples: Sequence[dict[str, Any]], file: str) -> dict[str, Any]:
    """Write the scores of every example into the run folder; return their summary."""
    if session.main:
        write_examples(session.folder / file, examples)
    return summarize(examples)


def score(
    session: Session,
    rows: Sequence[Row],
    description: str,
    *,
    model: torch.nn.Module | None = None,
    phase: str = "eval",
) -> list[dict[str, Any]]:
    """Evaluate rows; out of memory halves the eval batch, which does not change the loss.

    Args:
        session: The run.
        rows: Held-out rows.
        description: What the progress bar says.
        model: Another model than the one that is trained.
        phase: Under which memory is counted.

    Returns:
        One dict a row, as `sweeptune.training.evaluate.evaluate` gives it.

    Raises:
        Diverged: The loss is not finite.
    """
    progress = session.progress
    while True:
        failure, scored = None, {}
        with session.meter.interlude(phase, release=True):
            try:
                scored = score_share(
                    session.model if model is None else model,
                    rows,
                    batch_size=progress.eval_batch,
                    batch_tokens=session.config.eval.batch_tokens,
                    device=session.device,
                    autocast=session.autocast,
                    pad_id=session.pad_id,
                    description=description,
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = brief(error)
        if not any_rank(failure is not None, session.device):
            break
        release_memory(session.device)
        batches = eval_batches(rows, progress.eval_batch, session.config.eval.batch_tokens)
        largest = max(batches, key=positions)
        if session.config.hardware.on_oom == "stop" or len(largest) == 1:
            size = f"{len(largest)} x {largest[0].length} tokens"
            raise torch.OutOfMemoryError(f"{failure}; during evaluation (eval.batch_size, eval.batch_tokens: {size})")
        progress.eval_batch = len(largest) // 2
        progress.replans.append({"step": progress.step, "eval_batch": progress.eval_batch, "reason": failure})
        log.warning("out of memory: eval batch -> %d (%s)", progress.eval_batch, failure)
    examples = gather(scored, rows)
    loss = summarize(examples)["loss"]
    if not math.isfinite(loss):
        raise Diverged(f"step {progress.step}: eval loss {loss}")
    return examples
