"""LoRA on a base in 8-bit floating point: half of bf16's bytes, and products at up to twice its rate.

The base is loaded as usual and rounded afterwards, layer by layer; embeddings, norms and head stay as they are. What
the rounding of weights, activations and gradients costs is seen in the loss, beside the speed.
"""

from __future__ import annotations

import peft
import torch
from transformers import PreTrainedModel

from sweeptune.config.schema import LoraConfig
from sweeptune.kernels.fp8 import Fp8Linear
from sweeptune.methods import lora


def attach(model: PreTrainedModel, method: LoraConfig) -> peft.PeftModel:
    """Add adapters, then round every linear layer of the decoder, adapted or not."""
    made = lora.attach(model, method)
    decoder = model.get_decoder()
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and not (isinstance(parent, torch.nn.ModuleDict)):
                setattr(parent, name, Fp8Linear.of(child))
    return made
