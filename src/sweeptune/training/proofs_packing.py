"""The proof that samples which share a row do not see each other, run on the real model before every training on packed
rows (DESIGN section 4, *A proven run*).

Contamination lowers the loss, so it looks like success; no curve shows it. What shows it: tokens of the first sample
are changed, and nothing may move in the others; the loss of the last sample is differentiated, and nothing may reach
the others; and the loss of the row is that of its samples alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import accumulate, cycle, islice, pairwise
from typing import Any

import torch

from sweeptune.data import IGNORED, Batch, Row, Step, collate, collate_packs, samples
from sweeptune.kernels.attention import backend_of, model_inputs
from sweeptune.training.loss import summed_nll
from sweeptune.training.proofs import ProofFailed, deterministic_training, proof_row

# How far the packed loss may be from the unpacked one: relative to it, and in nats a token where it is below one.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
TOKENS = {"cpu": 256, "cuda": 2048}
SAMPLES = 3
AT_MOST = 8  # each is also run by itself, which takes QLoRA 0.1 s on a GPU

Autocast = Callable[[], AbstractContextManager[None]]


def packed_sample(rows: Sequence[Row], steps: Sequence[Step], device: torch.device) -> tuple[Row, ...]:
    """A packed row of the training: that of the first steps with the most samples, short enough for the device.

    Where fewer than three samples share a row (they are long, or few), more of the training rows stand behind them,
    all cut to what fits.
    """
    packs = [pack for step in steps[:4] for pack in step.packs]
    shared = [row for row in samples(rows, [max(packs, key=len)])[0] if row.loss_tokens]
    limit = TOKENS.get(device.type, TOKENS["cpu"])
    sizes = accumulate(row.length for row in shared)
    fitting = tuple(row for row, size in zip(shared, sizes, strict=True) if size <= limit)
    if len(fitting) >= SAMPLES:
        return fitting[:AT_MOST]
    first = (rows[i] for i in range(min(len(rows), 256)))
    others = [row for row in first if row.loss_tokens]
    return tuple(proof_row(row, limit // SAMPLES) for row in islice([*shared, *cycle_of(others)], SAMPLES))


def cycle_of(rows: Sequence[Row]) -> list[Row]:
    """The first rows, over and over where there are too few."""
    return list(islice(cycle(rows), SAMPLES))


def prove_packing(
    model: Any, packed: Sequence[Row], compute: torch.dtype, autocast: Autocast, pad_id: int, seed: int = 0
) -> dict[str, Any]:
    """Prove a model's attention back-end on one packed row; weights, gradients and generators stay as they are.

    Args:
        model: The model that will be trained, in any mode; it is proven in training mode, without dropout.
        packed: The samples of the row, at least two; each has a loss token.
        compute: The compute precision; it decides the tolerance of the loss.
        autocast: Opens the context that training computes its loss in.
        pad_id: Token that fills short rows.
        seed: Of whatever the model draws.

    Returns:
        ``{"backend", "samples", "tokens", "packed_loss", "unpacked_loss", "relative_difference", "tolerance",
        "seconds"}``, losses in nats per loss token.

    Raises:
        ProofFailed: A sample sees another, or its loss depends on the row that it is in.
    """
    begin = time.perf_counter()
    backend = backend_of(model.config)
    batch = collate_packs([packed], pad_id, _device(model))
    ends = [0, *accumulate(row.length for row in packed)]
    places = [slice(a, b) for a, b in pairwise(ends)]
    with deterministic_training(model, seed):
        _nothing_moves(model, batch, places, autocast, backend)
        _nothing_reaches(model, batch, places, autocast, backend)
        found = _same_loss(model, packed, TOLERANCE[compute], autocast, pad_id, backend)
    return {
        "backend": backend,
        "samples": len(packed),
        "tokens": batch.tokens,
        **found,
        "seconds": time.perf_counter() - begin,
    }


def _nothing_moves(model: Any, batch: Batch, places: list[slice], autocast: Autocast, backend: str) -> None:
    """Changing the first sample's tokens leaves the hidden states of all later ones equal to the last bit."""
    ids = batch.input_ids.clone()
    ids[:, places[0]] = (ids[:, places[0]] + 1) % model.get_input_embeddings().num_embeddings
    before, after = (_hidden(model, each, autocast) for each in (batch, replace(batch, input_ids=ids)))
    moved = [float((after[here] - before[here]).abs().max()) for here in places]
    if not moved[0] > 0:  # written so that NaN fails too
        raise ProofFailed(
            f"model.attention={backend}: changing a sample's tokens does not change its own hidden states"
        )
    leaks = {number: size for number, size in enumerate(moved) if number and size != 0}
    if leaks:
        worst = max(leaks, key=lambda number: leaks[number])
        raise _leak(
            backend,
            f"Other tokens in sample 1 of {len(places)} move the hidden states of {len(leaks)} later ones, those of "
            f"sample {worst + 1} by up to {leaks[worst]:.3g}",
        )


def _nothing_reaches(model: Any, batch: Batch, places: list[slice], autocast: Autocast, backend: str) -> None:
    """The gradient of the last sample's loss is exactly zero at every other sample's input embeddings."""
    labels = torch.full_like(batch.labels, IGNORED)
    labels[:, places[-1]] = batch.labels[:, places[-1]]
    with _embeddings(model) as leaves, autocast():
        loss = summed_nll(model, replace(batch, labels=labels))
        [gradient] = torch.autograd.grad(loss, leaves)
    sizes = [float(gradient[0, here].abs().max()) for here in places]
    if not sizes[-1] > 0:
        raise ProofFailed(f"model.attention={backend}: no gradient of a sample's loss reaches its own input embeddings")
    leaks = {number: size for number, size in enumerate(sizes[:-1]) if size != 0}
    if leaks:
        worst = max(leaks, key=lambda number: leaks[number])
        raise _leak(
            backend,
            f"The loss of the last of {len(places)} samples has a gradient at the input embeddings of {len(leaks)} "
            f"others, up to {leaks[worst]:.3g} at sample {worst + 1} against {sizes[-1]:.3g} at its own",
        )


def _leak(backend: str, seen: str) -> ProofFailed:
    return ProofFailed(
        f"model.attention={backend}: samples that share a row see each other. {seen} (must be exactly 0); use another "
        "model.attention or data.packing=none"
    )


def _same_loss(
    model: Any,
    packed: Sequence[Row],
    tolerance: float,
    autocast: Autocast,
    pad_id: int,
    backend: str,
) -> dict[str, float]:
    """The loss of rows side by side is that of their samples, each in a row of its own.

    A second, shorter row of the same samples in another order stands below the first: the boundaries of one must not
    be used for the other, and padding must not count.
    """
    both = collate_packs([packed, packed[:0:-1]], pad_id, _device(model))
    with torch.no_grad(), autocast():
        together = summed_nll(model, both).item()
        each = [summed_nll(model, collate([row], pad_id, _device(model))).item() for row in packed]
    together, alone = together / both.loss_tokens, (2 * sum(each) - each[0]) / both.loss_tokens
    difference = abs(together - alone) / max(1.0, abs(alone))
    if not difference <= tolerance:
        raise ProofFailed(
            f"model.attention={backend}: the loss of a packed row is {together:.6f} nats a token, that of its "
            f"{len(packed)} samples alone {alone:.6f}: off by {difference:.2g} (allowed {tolerance:.0e}), as when "
            "position ids do not restart; use another model.attention or data.packing=none"
        )
    return {
        "packed_loss": together,
        "unpacked_loss": alone,
        "relative_difference": difference,
        "tolerance": tolerance,
    }


@torch.no_grad()
def _hidden(model: Any, batch: Batch, autocast: Autocast) -> torch.Tensor:
    """The last layer's hidden states of a batch of one row: [t, width]."""
    found: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, arguments: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = model.get_decoder().register_forward_hook(keep)
    try:
        with autocast():
            model(**model_inputs(batch, model.config), logits_to_keep=1)
    finally:
        handle.remove()
    return found[0][0].float()


def _device(model: Any) -> torch.device:
    """Where the model computes: its embedding may be in host memory."""
    device: torch.device = model.get_output_embeddings().weight.device
    return device


@contextmanager
def _embeddings(model: Any) -> Iterator[list[torch.Tensor]]:
    """Make the input embeddings of the next forward a leaf of its own, in the list, whatever trains."""
    leaves: list[torch.Tensor] = []

    def cut(_: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()
