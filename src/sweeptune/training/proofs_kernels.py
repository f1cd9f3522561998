"""The proof that the fused kernels compute what the plain code does, run on the real model before every training that
uses them (DESIGN section 4, *A proven run*): one decoder block, forward and backward, what its adapters add, and the
loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from sweeptune.data import Batch
from sweeptune.kernels.attention import prepare
from sweeptune.kernels.fp8 import Fp8Linear
from sweeptune.kernels.fuse import Fused, fused
from sweeptune.kernels.head import summed_loss
from sweeptune.kernels.linear import refresh
from sweeptune.training.loss import loss_tokens
from sweeptune.training.proofs import DRAWN_STD, ProofFailed, deterministic_training
from sweeptune.training.proofs_adapters import adapter_slopes

Autocast = Callable[[], AbstractContextManager[None]]

TOLERANCE = 0.05
"""Relative, by norm: two computations in bf16 are 1 to 2 % apart, and a wrong one by tens of percent."""
FP8_TOLERANCE = 0.20
"""With frozen weights in 8 bits: products round their inputs to 3 bits, and where a last bit of bf16 differs, the step
that an input is rounded to does. Both computations are 11 to 17 % from fp32 in the gradients of queries and keys
(bench/RESULTS.md), 7 to 8 % from each other; what an adapter adds is held to 5 % here, too."""
LOSS_TOLERANCE = 1e-3
CHUNKS = 3
"""Of the loss, whose tokens here would fit into one."""


def prove_kernels(model: Any, batch: Batch, autocast: Autocast, seed: int = 0) -> dict[str, Any]:
    """Compare the fused kernels with the plain code on one block and on the loss; all is left as it was.

    Args:
        model: With fused kernels in it.
        batch: A short input, at most 256 tokens.
        autocast: Opens the context that training computes its loss in.
        seed: Of what is drawn: a gradient of the block's output, and LoRA's B where it is zero, as it is at the start.

    Returns:
        ``{"block", "tokens", "relative_error", "of", "tolerance", "adapters", "adapters_of", "adapters_measured",
        "adapters_tolerance", "loss_difference", "loss_tolerance", "seconds"}``: the largest relative error of an output
        or a gradient and whose it is; how much of an adapter's contribution reaches the output, 1 being all, where that
        is farthest off, whose it is (null without adapters), and how many of the adapters could be measured; the
        losses' difference, relative.

    Raises:
        ProofFailed: They differ by more than the tolerance, or are not finite.
    """
    begin = time.perf_counter()
    fast = fused(model)
    assert fast is not None, "the model has fused kernels"
    ready = prepare(batch, model.config)
    number = len(fast.blocks) // 2
    with deterministic_training(model, seed):
        hidden, options, last = _inputs(fast, number, ready.inputs, autocast)
        errors = _block_errors(fast, number, hidden, options, autocast)
        places, targets = loss_tokens(ready, batch.input_ids.device)
        difference, of_loss = _loss_errors(fast, last, places, targets, autocast)
        # What is wrong altogether is told first.
        worst, allowed = _worst_of(fast, number, errors, of_loss)
        slopes = adapter_slopes(fast, number, hidden, options, autocast)
    adapters = sum(p.b is not None for group in fast.blocks[number].groups for p in group.projections)
    lost = _worst({name: abs(found.slope - 1) / found.tolerance for name, found in slopes.items()}) if slopes else None
    adapter = slopes[lost] if lost is not None else None
    if adapter is not None and not abs(adapter.slope - 1) <= adapter.tolerance:
        raise ProofFailed(
            f"hardware.kernels=auto: the fused output of block {number} has {adapter.slope:.1%} of what {lost} adds to "
            f"the plain one (allowed 100 +- {100 * adapter.tolerance:.0f} %); use hardware.kernels=plain"
        )
    if not difference <= LOSS_TOLERANCE:
        raise ProofFailed(
            f"hardware.kernels=auto: the fused loss differs from the plain one by {difference:.2g} of it (allowed "
            f"{LOSS_TOLERANCE:.0e}); use hardware.kernels=plain"
        )
    return {
        "block": number,
        "tokens": batch.tokens,
        "relative_error": (errors | of_loss)[worst],
        "of": worst,
        "tolerance": allowed,
        "adapters": adapter.slope if adapter is not None else None,
        "adapters_of": lost,
        "adapters_measured": [len(slopes), adapters],
        "adapters_tolerance": adapter.tolerance if adapter is not None else None,
        "loss_difference": difference,
        "loss_tolerance": LOSS_TOLERANCE,
        "seconds": time.perf_counter() - begin,
    }


def _worst_of(fast: Fused, number: int, block: dict[str, float], loss: dict[str, float]) -> tuple[str, float]:
    """Whose error is the largest, and what is allowed.

    Raises:
        ProofFailed: It is larger than that.
    """
    fp8 = any(isinstance(p.base, Fp8Linear) for group in fast.blocks[number].groups for p in group.projections)
    for errors, allowed in ((loss, TOLERANCE), (block, FP8_TOLERANCE if fp8 else TOLERANCE)):
        worst = _worst(errors)
        if not errors[worst] <= allowed:  # written so that NaN fails too
            raise ProofFailed(
                f"hardware.kernels=auto: the fused kernels' {worst} of block {number} differs from the plain code's by "
                f"{errors[worst]:.1%} (allowed {allowed:.0%}); use hardware.kernels=plain"
            )
    return (_worst(block | loss), FP8_TOLERANCE if fp8 else TOLERANCE)


@torch.no_grad()
def _inputs(
    fast: Fused, number: int, inputs: dict[str, Any], autocast: Autocast
) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    """What a block gets in a forward pass, and the final hidden states [n, d]."""
    seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def keep(_: torch.nn.Module, arguments: Any, options: Any) -> None:
        seen.append((arguments[0], dict(options)))

    handle = fast.decoder.layers[number].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with autocast():
            last = fast.hidden(inputs)
    finally:
        handle.remove()
    return *seen[0], last


def _block_errors(
    fast: Fused, number: int, hidden: torch.Tensor, options: dict[str, Any], autocast: Autocast
) -> dict[str, float]:
    """Relative differences between fused and plain: of the output, and of every gradient."""
    layer, block = fast.decoder.layers[number], fast.blocks[number]
    names = {id(p): name for name, p in layer.named_parameters()}
    generator = torch.Generator(hidden.device).manual_seed(number)
    cotangent = torch.randn(hidden.shape, generator=generator, device=hidden.device).to(fast.compute)

    def run(forward: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        x = hidden.to(fast.compute).detach().requires_grad_()
        with autocast():
            y = forward(x, **options)
        return [y.detach(), *torch.autograd.grad(y, [x, *block.trained], cotangent.to(y.dtype))]

    with _drawn(fast, number):
        ours = run(layer.forward)
        plain = run(lambda x, **kwargs: type(layer).forward(layer, x, **kwargs))
    of = ["output", "input gradient", *(f"gradient of {names[id(p)]}" for p in block.trained)]
    return {name: _off(a, b) for name, a, b in zip(of, ours, plain, strict=True)}


def _loss_errors(
    fast: Fused, hidden: torch.Tensor, places: torch.Tensor, targets: torch.Tensor, autocast: Autocast
) -> tuple[float, dict[str, float]]:
    """How far the fused loss is from the plain one, relative, and its gradients likewise."""
    weight = fast.head.weight

    def run(loss: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        x = hidden.detach().requires_grad_()
        with autocast():
            total = loss(x)
        trained = [x, weight] if weight.requires_grad else [x]
        return total.item(), list(torch.autograd.grad(total, trained))

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(fast.head(x[places]).float(), targets, reduction="sum")

    chunk = -(-len(places) // CHUNKS) or 1
    a, ours = run(lambda x: summed_loss(x, fast.head, places, targets, fast.compute, chunk))
    b, theirs = run(plain)
    names = ["loss's gradient of the hidden states", "loss's gradient of the head"]
    errors = {name: _off(x, y) for name, x, y in zip(names, ours, theirs, strict=False)}
    return abs(a - b) / abs(b) if b else float("nan"), errors


def _worst(errors: dict[str, float]) -> str:
    """Whose error is the largest; NaN is."""
    return max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@contextmanager
def _drawn(fast: Fused, number: int) -> Iterator[None]:
    """Adapters whose B is zero get another one meanwhile: it would hide half of their arithmetic."""
    zero = [p for p in fast.blocks[number].trained if p.ndim == 2 and not p.detach().any()]
    try:
        for p in zero:
            p.data.normal_(std=DRAWN_STD)
        refresh(fast.casts)
        yield
    finally:
        for p in zero:
            p.data.zero_()
        refresh(fast.casts)
