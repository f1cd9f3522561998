"""The one definition of loss: negative log-likelihood of the loss tokens, in fp32, summed; whoever calls it divides.

Rows whose positions carry no loss never reach the head: ``logits_to_keep`` picks the positions where any row of the
batch has a loss token, so the logits that a long prompt would cost are never made.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sweeptune.data import Batch

IGNORED = -100


def token_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of every loss token.

    Args:
        model: A causal language model.
        batch: Rows of shape [b, t].

    Returns:
        fp32 tensor [b, k] in nats, k <= t - 1 the positions that carry loss in any row; 0 where a row has none there.
    """
    targets = batch.labels[:, 1:]  # position i predicts token i + 1
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=positions, use_cache=False
    ).logits
    kept = targets[:, positions]
    nll = F.cross_entropy(logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view(kept.shape)
