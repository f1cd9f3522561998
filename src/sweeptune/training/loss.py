"""The one definition of loss: negative log-likelihood of the loss tokens, in fp32, summed; whoever calls it divides.

Positions without loss never reach the head: ``logits_to_keep`` picks those where any row of the batch has a loss
token, so the logits that a long prompt would cost are never made. Where the back-end puts all samples behind each
other, these are exactly the loss tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from sweeptune.data import Batch
from sweeptune.kernels.attention import prepare

IGNORED = -100


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
    targets = ready.labels[:, 1:]  # position i predicts token i + 1; the first token of a sample is no target
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    nll = nll_at(model, ready.inputs, targets, positions)
    rows, width = batch.input_ids.shape
    if len(targets) == rows:
        return nll.view(rows, len(positions))
    # The samples stood behind each other: put every value back into the row it belongs to.
    places = positions if ready.place is None else ready.place[positions]
    return torch.zeros(rows * width, device=nll.device).index_copy(0, places, nll).view(rows, width)


def nll_at(
    model: torch.nn.Module, inputs: dict[str, Any], targets: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood of ``targets`` at ``positions``: here alone are logits made.

    Args:
        model: A causal language model.
        inputs: What its forward gets.
        targets: int64 [b, t - 1], the next token at every position, -100 where none is learned.
        positions: int64 [k], where any row has loss.

    Returns:
        fp32 tensor [b * k] in nats.
    """
    logits = model(**inputs, logits_to_keep=positions).logits
    kept = targets[:, positions]
    return F.cross_entropy(logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="none")
