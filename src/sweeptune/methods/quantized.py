"""Frozen bases that bitsandbytes stores in fewer bits: NF4 for QLoRA, int8 for LoRA on an 8-bit base.

QLoRA is the recipe of Dettmers et al. 2023 (arXiv 2305.14314): NF4, quantised constants, adapters on every linear
layer. Embeddings, norms and head stay in the compute precision: the upcast to fp32 that
``peft.prepare_model_for_kbit_training`` does costs gigabytes and a third of the speed and is left out.
"""

from __future__ import annotations

import bitsandbytes as bnb
import peft
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from sweeptune.config.schema import LoraConfig
from sweeptune.methods import lora


def nf4(compute: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, computing in ``compute``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def int8(compute: torch.dtype) -> BitsAndBytesConfig:
    """LLM.int8 without outlier columns: with the default threshold of 6.0 batch neighbours change a sample's logits."""
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def attach(model: PreTrainedModel, method: LoraConfig) -> peft.PeftModel:
    """Add adapters to a quantised base, and keep its 4-bit layers usable for training on a CPU."""
    keep_trainable_on_cpu(model)
    return lora.attach(model, method)


def keep_trainable_on_cpu(model: torch.nn.Module) -> None:
    """Switch off the CPU's inference layout of 4-bit weights.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a Linear4bit at its first forward in eval mode. From then on
    training forwards read the packed bytes as if they were not packed, and gradients are finite, non-zero and wrong.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
