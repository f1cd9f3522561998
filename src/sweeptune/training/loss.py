"""The one definition of loss: negative log-likelihood of the loss tokens, in fp32, summed; whoever calls it divides.

Positions without loss never reach the head: ``logits_to_keep`` picks those where any row of the batch has a loss
token, so the logits that a long prompt would cost are never made. Where the back-end puts all samples behind each
other, these are exactly the loss tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sweeptune.data import Batch
from sweeptune.kernels.attention import Prepared, prepare, send
from sweeptune.kernels.fuse import fused

IGNORED = -100


def summed_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood summed over all loss tokens of a batch: fp32, in nats; what training differentiates.

    Args:
        model: A causal language model; its config names the attention back-end.
        batch: Rows of shape [b, t].
    """
    fast = fused(model)
    if fast is None:
        return token_nll(model, batch).sum()
    ready = prepare(batch, model.config)
    places, targets = loss_tokens(ready, batch.input_ids.device)
    return fast.summed(ready.inputs, places, targets)


def token_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of every loss token.

    Args:
        model: A causal language model; its config names the attention back-end.
        batch: Rows of shape [b, t].

    Returns:
        fp32 tensor [b, k] in nats, k <= t positions, those that carry loss in any row among them; 0 where a row has
        none there.
    """
    ready = prepare(batch, model.config)
    (rows, width), device = batch.input_ids.shape, batch.input_ids.device
    fast = fused(model)
    if fast is not None and not torch.is_grad_enabled():
        places, targets = loss_tokens(ready, device)
        nll = fast.each(ready.inputs, places, targets)
        return _into_rows(nll, places, ready, rows, width)
    targets = ready.labels[:, 1:]  # position i predicts token i + 1; the first token of a sample is no target
    positions = torch.from_numpy(np.flatnonzero((targets != IGNORED).any(dim=0).numpy()))
    sent = send(positions, device)
    nll = nll_at(model, ready.inputs, send(targets[:, positions], device), sent)
    if len(targets) == rows:
        return nll.view(rows, len(positions))
    return _into_rows(nll, sent, ready, rows, width)


def loss_tokens(ready: Prepared, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where loss tokens are predicted among all positions [k], and which tokens they are [k]; found on the host."""
    labels = ready.labels.numpy()
    targets = np.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    places = np.flatnonzero(targets != IGNORED)
    return send(torch.from_numpy(places), device), send(torch.from_numpy(targets.reshape(-1)[places]), device)


def _into_rows(nll: torch.Tensor, places: torch.Tensor, ready: Prepared, rows: int, width: int) -> torch.Tensor:
    """Put every value back into the row that it belongs to, where samples stood behind each other or were filled up."""
    length = ready.labels.shape[1]
    if ready.place is not None:
        places = send(torch.from_numpy(ready.place), nll.device)[places]
    elif len(ready.labels) == rows and length != width:
        places = places // length * width + places % length
    return torch.zeros(rows * width, device=nll.device).index_copy(0, places, nll).view(rows, width)


def nll_at(
    model: torch.nn.Module, inputs: dict[str, Any], targets: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood of ``targets`` at ``positions``: here alone are logits made.

    Args:
        model: A causal language model.
        inputs: What its forward gets.
        targets: int64 [b, k], the next token at each of the positions, -100 where none is learned.
        positions: int64 [k], where any row has loss.

    Returns:
        fp32 tensor [b * k] in nats.
    """
    logits = model(**inputs, logits_to_keep=positions).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
