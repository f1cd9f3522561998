"""The proof that gradients are right, run on the real model in every training (DESIGN section 4, *A proven run*).

Norms prove nothing: bitsandbytes' known CPU fault leaves gradients finite, non-zero and wrong. What cannot be faked is
the definition: along a small step v of all trainable tensors, L(w + v) - L(w - v) = <gradient, 2v>.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from sweeptune.data import Batch, Row
from sweeptune.training.loss import summed_nll

# Allowed relative error per compute precision.
TOLERANCE = {torch.float32: 0.05, torch.bfloat16: 0.20, torch.float16: 0.20}


class Attempt(NamedTuple):
    """So many rows and the loss changes aimed at, in nats per token: until one agrees and the next confirms it."""

    rows: int
    changes: tuple[float, ...]


# Loss changes are large against rounding (bf16 adds about 0.01 nats of noise to any change over 16 rows) and small
# against curvature: a model that has learned nothing yet, or too fast, curves a lot. Where the first attempt fails,
# more rows average rounding out; its shortest steps are for random weights, which curve most and round least. A wrong
# gradient is wrong on any rows and at every length but one: where the loss curves, there is one at which halved or
# doubled gradients agree. Hence the confirmation, which is all that the last length is for.
_ROUNDED = (Attempt(16, (0.1, 0.05, 0.03, 0.02)), Attempt(64, (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.0025, 0.00125)))
ATTEMPTS = {
    torch.float32: (Attempt(1, (0.02, 0.005, 0.001, 0.0002, 0.0001)),),
    torch.bfloat16: _ROUNDED,
    torch.float16: _ROUNDED,
}
# How many random directions are tried at a length, and at one that only confirms.
DIRECTIONS = {torch.float32: 2, torch.bfloat16: 4, torch.float16: 4}
CONFIRMING_DIRECTIONS = 2
# What a confirmation may be off by, in tolerances: rounding weighs more at the shorter length.
CONFIRMING = 1.25
# How much longer the part of a step along the gradient is than the random part. It only keeps the prediction away from
# zero: what finds a wrong gradient is the random part, since a wrong gradient can be right along itself.
ALIGNED = 3.0
DRAWN_STD = 0.01
PROOF_TOKENS = 128


class ProofFailed(RuntimeError):
    """A run must not go on: what it would measure or learn is wrong."""


class GradientMissing(ProofFailed):
    """No other rows or steps would find it."""


def proof_row(row: Row, tokens: int = PROOF_TOKENS) -> Row:
    """Cut a row to so many tokens, a quarter of them before its first loss token where there are that many."""
    first = row.loss_mask.index(True)
    end = min(row.length, first + tokens * 3 // 4)
    begin = max(0, end - tokens)
    return Row(row.id, row.input_ids[begin:end], [False, *row.loss_mask[begin + 1 : end]], 0)


def prove_gradients(
    model: torch.nn.Module,
    batches: Sequence[Batch],
    compute: torch.dtype,
    autocast: Callable[[], AbstractContextManager[None]],
    changes: Sequence[float],
    seed: int = 0,
) -> dict[str, float]:
    """Compare the gradient with the loss change that it predicts, then leave everything as it was.

    The step is random in every tensor, scaled to the tensor's own size, plus a part along the gradient so that the
    prediction is never near zero. Tensors that are all zero (LoRA's B at the start, which makes every gradient of A
    zero) are drawn non-zero first and restored at the end.

    Args:
        model: The trainable model, in any mode; it is proven in training mode, without dropout.
        batches: A short input, in parts that fit; with at least one loss token.
        compute: The precision of the arithmetic; it decides the tolerance.
        autocast: Opens the context that training computes its loss in.
        changes: Loss changes in nats per token, at least two, as an `Attempt` has them.
        seed: Of the random step.

    Returns:
        ``{"predicted": nats, "measured": nats, "relative_error": share, "tolerance": share}``

    Raises:
        ProofFailed: The two differ by more than the tolerance, or are not finite.
        GradientMissing: A weight that the loss depends on has no gradient at all.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors = list(named.values())
    loss_tokens = sum(batch.loss_tokens for batch in batches)

    def loss(*, backward: bool = False) -> float:
        total = 0.0
        for batch in batches:
            with autocast(), torch.set_grad_enabled(backward):
                part = summed_nll(model, batch) / loss_tokens
            if backward:
                torch.autograd.backward(part)
            total += part.item()
        return total

    def along(change: float, directions: int) -> list[tuple[float, float]]:
        return [_measure(loss, tensors, origin, change, seed * 101 + k, compute) for k in range(directions)]

    with deterministic_training(model, seed):
        drawn = [p for p in tensors if not p.detach().any()]
        start: list[torch.Tensor] = []
        try:
            for p in drawn:
                p.data.normal_(std=DRAWN_STD)
            start = _copies(tensors)
            for p in tensors:
                p.data.copy_(p.to(compute))
            origin = _copies(tensors)
            loss(backward=True)
            _check_none_is_missing(loss, named)
            for change, shorter in pairwise(changes):
                pairs = along(change, DIRECTIONS[compute])
                error = _relative_error(pairs)
                if error <= TOLERANCE[compute]:
                    again = along(shorter, CONFIRMING_DIRECTIONS)
                    off = _relative_error(again)
                    if off <= CONFIRMING * TOLERANCE[compute]:
                        break
                    pairs, error = again, off
        finally:
            _restore(tensors, start)
            for p in drawn:
                p.data.zero_()
            for p in tensors:
                p.grad = None
    predicted, measured = pairs[0]
    if not error <= TOLERANCE[compute]:  # written so that NaN fails too
        curved = "; if the loss curves too much for steps that rounding does not hide, lower optim.lr"
        raise ProofFailed(
            f"the gradients are wrong: a small step of all trainable weights changes the loss by {measured:.6f} nats, "
            f"but the gradient predicts {predicted:.6f}; over {len(pairs)} such steps it is off by {error:.1%} "
            f"(allowed {TOLERANCE[compute]:.0%}){curved if compute != torch.float32 else ''}"
        )
    return {
        "predicted": predicted,
        "measured": measured,
        "relative_error": error,
        "tolerance": TOLERANCE[compute],
    }


def _check_none_is_missing(loss: Callable[[], float], named: dict[str, torch.nn.Parameter]) -> None:
    """Weights without a gradient are fine only where the loss does not depend on them (an expert nobody chose)."""
    missing = {name: p for name, p in named.items() if p.grad is None}
    if not missing or not _depends(loss, list(missing.values())):
        return
    first = next((name for name, p in missing.items() if _depends(loss, [p])), next(iter(missing)))
    raise GradientMissing(
        f"the gradients are wrong: {first} has none, although the loss depends on it ({len(missing)} of {len(named)} "
        "trainable weights have none)"
    )


def _depends(loss: Callable[[], float], weights: list[torch.nn.Parameter]) -> bool:
    """Whether doubling the weights changes the loss; halving them again is exact."""
    before = loss()
    with torch.no_grad():
        for weight in weights:
            weight.mul_(2)
        after = loss()
        for weight in weights:
            weight.div_(2)
    return after != before


def _measure(
    loss: Callable[[], float],
    tensors: list[torch.nn.Parameter],
    origin: list[torch.Tensor],
    change: float,
    seed: int,
    compute: torch.dtype,
) -> tuple[float, float]:
    """Predicted and measured loss change between origin - step and origin + step; the tensors end at the origin."""
    with torch.no_grad():
        predicted = _step(tensors, change, seed, compute)
        up = loss()
        predicted += _mirror(tensors, origin, compute)
        measured = up - loss()
        _restore(tensors, origin)
    return predicted, measured


def _relative_error(pairs: list[tuple[float, float]]) -> float:
    """Root mean square of what was not predicted, relative to what was."""
    predicted = sum(p * p for p, _ in pairs)
    return math.sqrt(sum((m - p) ** 2 for p, m in pairs) / predicted) if predicted else math.inf


def _copies(tensors: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Copies to go back to, beside the weights where they leave half of the free memory, else in the host's.

    They travel several times in a proof: from the host, 40 s of it for full fine-tuning of 1.8 billion weights.
    """
    device = tensors[0].device
    room = math.inf
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        capped = torch.cuda.get_per_process_memory_fraction(device) * total
        room = (min(free + held, capped) - torch.cuda.memory_allocated(device)) / 2
    beside = sum(p.nbytes for p in tensors) <= room
    return [p.detach().to(device if beside else "cpu", copy=True) for p in tensors]


def _restore(tensors: list[torch.nn.Parameter], start: list[torch.Tensor]) -> None:
    for p, value in zip(tensors, start, strict=False):  # start is empty when drawing failed
        p.data.copy_(value)


def _step(tensors: list[torch.nn.Parameter], change: float, seed: int, compute: torch.dtype) -> float:
    """Move every tensor one step; return <gradient, step>.

    Autocast rounds fp32 weights to the compute precision, where a small step is mostly rounding. So every tensor is
    moved to what that precision can hold, and the step that counts is the one that was really made.
    """
    sizes = [p.float().square().mean().sqrt() for p in tensors]
    scaled = [s * p.grad.float() for s, p in zip(sizes, tensors, strict=True) if p.grad is not None]
    norm = torch.stack([g.norm() for g in scaled]).norm()
    length = change / (2 * ALIGNED * norm)
    predicted = 0.0
    for i, (p, size) in enumerate(zip(tensors, sizes, strict=True)):
        generator = torch.Generator(p.device).manual_seed(seed * 1_000_003 + i)
        step = torch.randn(p.shape, generator=generator, device=p.device)
        if p.grad is not None:
            step += ALIGNED * size * p.grad.float() / norm
        before = p.detach().clone()
        p.copy_((p + step * (length * size)).to(compute))
        predicted += _along_gradient(p, p.float() - before.float())
    return predicted


def _mirror(tensors: list[torch.nn.Parameter], origin: list[torch.Tensor], compute: torch.dtype) -> float:
    """Move every tensor from origin + step to origin - step; return <gradient, step> of this second half."""
    predicted = 0.0
    for p, value in zip(tensors, origin, strict=True):
        center = value.to(p.device).float()
        p.copy_((2 * center - p.float()).to(compute))
        predicted += _along_gradient(p, center - p.float())
    return predicted


def _along_gradient(p: torch.nn.Parameter, step: torch.Tensor) -> float:
    return 0.0 if p.grad is None else torch.sum(p.grad.float() * step, dtype=torch.float64).item()


@contextmanager
def deterministic_training(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Training mode without dropout; generators and mode are restored, so that the training sees nothing of it."""
    was_training = model.training
    dropouts: dict[Any, float] = {m: m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    # Attention modules of transformers hold theirs as a number, which they hand to the back-end.
    attention: dict[Any, float] = {
        m: rate for m in model.modules() if isinstance(rate := getattr(m, "attention_dropout", None), float)
    }
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            model.train()
            for module in dropouts:
                module.p = 0.0
            for module in attention:
                module.attention_dropout = 0.0
            yield
        finally:
            for module, p in dropouts.items():
                module.p = p
            for module, rate in attention.items():
                module.attention_dropout = rate
            model.train(was_training)
