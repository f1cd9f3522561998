"""AdamW in its three storages, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from sweeptune.config.schema import OptimConfig
from sweeptune.kernels.fuse import fused
from sweeptune.training.bf16_adamw import Bf16AdamW

SMALLEST_8BIT, SMALLEST_PAGE, QUANTIZATION_BLOCK = 4096, 100_000, 256
"""bitsandbytes: smaller tensors keep fp32 states; smaller ones are not paged; one fp32 constant a block."""


def build_optimizer(model: torch.nn.Module, optim: OptimConfig, seed: int = 0) -> torch.optim.Optimizer:
    """AdamW over everything that trains; weight decay on matrices only.

    ``adamw`` is torch's fused one, or our own for bf16: with fused kernels, and with ``optim.rounding=stochastic``,
    which rounds by ``seed``; ``adamw_8bit`` keeps its states in 8 bits, ``paged_adamw_8bit`` also lets them move to the
    host when the GPU is full (both of bitsandbytes).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    if optim.rounding == "stochastic":
        return Bf16AdamW(groups, seed=seed, **settings)
    if optim.name == "adamw" and fused(model) is not None and all(p.dtype is torch.bfloat16 for p in trainable):
        return Bf16AdamW(groups, **settings)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    import bitsandbytes as bnb

    # Pages of an optimiser that was dropped (a restart after out of memory) would be counted again.
    bnb.functional.GlobalPageManager.get_instance().paged_tensors.clear()
    kind = bnb.optim.AdamW8bit if optim.name == "adamw_8bit" else bnb.optim.PagedAdamW8bit
    paged_or_not: torch.optim.Optimizer = kind(groups, **settings)
    return paged_or_not


def clip_gradients(parameters: list[torch.nn.Parameter], most: float, optimizer: Any) -> torch.Tensor:
    """Bring the norm of all gradients down to ``most``, at once or, where the optimiser can, inside its next step.

    Args:
        parameters: What trains.
        most: ``optim.max_grad_norm``; 0: leave them as they are.
        optimizer: From `build_optimizer`, or Accelerate's wrapper of it.

    Returns:
        The norm before, on the device.
    """
    plain = getattr(optimizer, "optimizer", optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most and isinstance(plain, Bf16AdamW):
        plain.scale = (most / (norm.float() + 1e-6)).clamp(max=1.0)  # as torch's clip_grads_with_norm_
    elif most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Restore an optimiser's state; bitsandbytes' paged states become pages again.

    bitsandbytes 0.50 loads them as plain GPU tensors, which count for the allocator and cannot move to the host.

    Args:
        optimizer: From `build_optimizer`, or Accelerate's wrapper of it.
        state: Of the same optimiser's ``state_dict``.
    """
    plain = getattr(optimizer, "optimizer", optimizer)
    kind = {key: plain.defaults[key] for key in ("fused", "foreach") if key in plain.defaults}
    optimizer.load_state_dict(state)
    for group in plain.param_groups:
        group.update(kind)  # a checkpoint of `Bf16AdamW` has none, and torch would take more memory
    if not getattr(plain, "is_paged", False):
        return
    for parameter, values in plain.state.items():
        for key in ("state1", "state2"):
            if key in values and not getattr(values[key], "is_paged", False):
                page = plain.get_state_buffer(parameter, dtype=values[key].dtype)
                page.copy_(values[key])
                values[key] = page


def state_sizes(parameter: torch.nn.Parameter, name: str, rounding: str = "nearest") -> Iterator[tuple[int, bool]]:
    """What an optimiser of `build_optimizer` keeps for one parameter.

    Args:
        parameter: What trains.
        name: ``optim.name``.
        rounding: ``optim.rounding``; the counter of steps is a plain number with ``stochastic``.

    Returns:
        Bytes of each tensor, and whether it is in pages (managed memory).
    """
    count = parameter.numel()
    if name == "adamw":
        moment = count * parameter.element_size()
        yield from ((moment, False), (moment, False))
        if rounding == "nearest":
            yield 4, False
        return
    paged = name == "paged_adamw_8bit" and count >= SMALLEST_PAGE
    if count < SMALLEST_8BIT:
        yield from ((4 * count, False), (4 * count, False))
        return
    scales = 4 * -(-count // QUANTIZATION_BLOCK)
    yield from ((count, paged), (count, paged), (scales, False), (scales, False))


def learning_rate(optim: OptimConfig, step: int, total: int) -> float:
    """The learning rate of a step.

    Args:
        optim: Peak, schedule and warm-up share.
        step: Number of the step, from 0.
        total: Steps of the whole run.

    Returns:
        Rising linearly over the warm-up (never zero), then along the schedule towards zero at ``total``.

    Example:
        >>> [round(learning_rate(optim, s, 10), 2) for s in (0, 5, 9)]  # lr 1, linear, no warm-up
        [1.0, 0.5, 0.1]
    """
    warmup = math.ceil(optim.warmup * total)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * done))
    return optim.lr * (1 - done) if optim.schedule == "linear" else optim.lr
