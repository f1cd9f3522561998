"""LoRA and the variants that differ only in how its adapters start or scale.

- LoRA: y = Wx + (alpha / r) B A x, with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685).
- DoRA: direction and magnitude of W + BA learned apart (Liu et al. 2024, arXiv 2402.09353).
- rsLoRA: scale alpha / sqrt(r), so that a higher rank keeps learning (Kalajdzievski 2023, arXiv 2312.03732).
- PiSSA: the same layers, another start; see ``pissa.py``.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import LoraConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {},
    "lora_int8": {},
    "lora_fp8": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {},
}


def attach(model: PreTrainedModel, method: LoraConfig) -> peft.PeftModel:
    """Freeze ``model`` and add adapters to the modules that the settings name.

    Args:
        model: The base.
        method: Rank, alpha, dropout, and which linear layers get adapters.

    Raises:
        ConfigError: The model has no linear layer of such a name.

    Example:
        >>> attach(model, config.method).print_trainable_parameters()
        trainable params: 4,884,480 || all params: 139,399,488 || trainable%: 3.5039
    """
    _check_targets(model, method.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        **VARIANTS[method.name],
    )
    return peft.get_peft_model(model, config)


def _check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    if targets == "all-linear":
        return
    # GPT-2 and its kin call a transposed linear layer Conv1D.
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
    if isinstance(targets, str) or not targets:
        raise ConfigError(f"method.target_modules={targets}: use all-linear or a list out of [{known}]")
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linears)]
    if unknown:
        raise ConfigError(
            f"method.target_modules={targets}: this model has no {', '.join(unknown)}. Its linear layers are: {known}"
        )
