"""Full fine-tuning: every weight trains."""

from __future__ import annotations

from transformers import PreTrainedModel

from sweeptune.config.schema import FullConfig


def attach(model: PreTrainedModel, method: FullConfig) -> PreTrainedModel:
    """Make every weight of ``model`` trainable."""
    return model.requires_grad_(True)
