"""One optimiser step: its gradient is the sum over the step's loss tokens divided by their number, however the rows
are dealt to micro-batches and ranks."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import torch
import torch.distributed as dist

from sweeptune.data import Row, Step, collate_packs, micro_batches, samples
from sweeptune.training.checkpoint import random_state, restore_random_state
from sweeptune.training.loss import summed_nll
from sweeptune.training.oom import OptimizerOutOfMemory, any_rank, brief, is_out_of_memory, release_memory
from sweeptune.training.optimizer import clip_gradients, learning_rate
from sweeptune.training.session import Session

log = logging.getLogger("sweeptune")


def train_step(session: Session, step: Step) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Make one step; out of memory halves the micro-batch and repeats it where ``hardware.on_oom`` says so.

    Returns:
        The sum of the negative log-likelihood over the step's loss tokens and the gradient's norm before clipping,
        both still on the device; and whether the fp16 scaler skipped the update.

    Raises:
        OptimizerOutOfMemory: The weights may be half updated.
        torch.OutOfMemoryError: There is nothing left to halve, or ``on_oom`` is ``stop``.
    """
    packs = samples(session.splits.train, step.packs)
    set_learning_rate(session)
    while True:
        generators = random_state(session.device)
        failure = None
        try:
            loss = accumulate(session, packs, step.loss_tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = brief(error)
            if session.in_backward is not None and session.in_backward.begun:
                raise OptimizerOutOfMemory(failure) from error
        if not any_rank(failure is not None, session.device):
            break
        session.optimizer.zero_grad(set_to_none=True)
        release_memory(session.device)
        halve_micro_batch(session, failure or "another rank ran out of memory")
        restore_random_state(generators, session.device)
    if session.in_backward is not None:
        return loss, session.in_backward.end(), False
    sum_over_ranks(session.model, loss)
    norm, skipped = update(session)
    return loss, norm, skipped


def accumulate(session: Session, packs: list[tuple[Row, ...]], loss_tokens: int) -> torch.Tensor:
    """Add the gradients of this rank's share of a step; return its summed negative log-likelihood.

    With ``optim.in_backward`` the last micro-batch changes the weights.
    """
    process = session.accelerator.process_index, session.accelerator.num_processes
    total = torch.zeros((), device=session.device)
    parts = micro_batches(packs, session.progress.micro_batch, *process)
    for number, part in enumerate(parts, 1):
        batch = collate_packs(part, session.pad_id, session.device)
        with session.autocast():
            nll = summed_nll(session.model, batch)
        updates = session.in_backward if number == len(parts) else None
        with updates.last_micro_batch() if updates is not None else nullcontext():
            session.accelerator.backward(nll / loss_tokens)
        total += nll.detach()
    return total


def halve_micro_batch(session: Session, reason: str) -> None:
    """Plan smaller micro-batches after running out of memory.

    Raises:
        torch.OutOfMemoryError: The micro-batch is one row already, or ``hardware.on_oom`` is ``stop``.
    """
    size = session.progress.micro_batch
    if session.config.hardware.on_oom == "stop":
        raise torch.OutOfMemoryError(f"{reason} (hardware.on_oom=stop; micro_batch {size})")
    if size == 1:
        raise torch.OutOfMemoryError(
            f"{reason}: one row does not fit. Try hardware.gradient_checkpointing=true, a smaller data.max_length, "
            "optim=paged_adamw_8bit or method=qlora"
        )
    session.progress.micro_batch = size // 2
    session.progress.replans.append({"step": session.progress.step, "micro_batch": size // 2, "reason": reason})
    log.warning("out of memory: micro-batch %d -> %d, repeating the step (%s)", size, size // 2, reason)


def sum_over_ranks(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """Add gradients and loss over all ranks; a rank without rows in this step adds nothing."""
    if not dist.is_initialized():
        return
    work = [dist.all_reduce(loss, async_op=True)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            work.append(dist.all_reduce(parameter.grad, async_op=True))
    for handle in work:
        handle.wait()


def set_learning_rate(session: Session) -> None:
    """Tell the optimiser the learning rate of the present step."""
    lr = learning_rate(session.config.optim, session.progress.step, len(session.steps))
    for group in session.optimizer.param_groups:
        group["lr"] = lr


def update(session: Session) -> tuple[torch.Tensor, bool]:
    """Clip, change the weights, drop the gradients."""
    optim, optimizer = session.config.optim, session.optimizer
    failure = None
    try:
        if session.accelerator.scaler is not None:
            session.accelerator.unscale_gradients(optimizer)
        trainable = [p for p in session.model.parameters() if p.requires_grad]
        norm = clip_gradients(trainable, optim.max_grad_norm, optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = brief(error)
    if any_rank(failure is not None, session.device):
        raise OptimizerOutOfMemory(failure or "another rank ran out of memory in the optimiser")
    return norm, bool(optimizer.step_was_skipped)
