"""LoRA and the variants that differ only in how its adapters start or scale.

- LoRA: y = Wx + (alpha / r) B A x, with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685).
- DoRA: direction and magnitude of W + BA learned apart (Liu et al. 2024, arXiv 2402.09353).
- rsLoRA: scale alpha / sqrt(r), so that a higher rank keeps learning (Kalajdzievski 2023, arXiv 2312.03732).
- PiSSA: the same layers, another start; see ``pissa.py``.
"""

from __future__ import annotations

from typing import Any

import peft
from transformers import PreTrainedModel

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import LoraConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {},
    "lora_int8": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {},
}


def attach(model: PreTrainedModel, method: LoraConfig) -> peft.PeftModel:
    """Freeze ``model`` and add adapters to the modules that the settings name.

    Raises:
        ConfigError: No module of the model has such a name.
    """
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        **VARIANTS[method.name],
    )
    linears = sorted(
        {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "in_features")}
    )
    if isinstance(method.target_modules, list):
        unknown = [name for name in method.target_modules if name.rsplit(".", 1)[-1] not in linears]
        if unknown:
            raise ConfigError(
                f"method.target_modules={method.target_modules}: this model has no {', '.join(unknown)}. "
                f"Its linear layers are: {', '.join(linears)}"
            )
    elif method.target_modules != "all-linear":
        raise ConfigError(
            f"method.target_modules={method.target_modules}: use all-linear or a list out of [{', '.join(linears)}]"
        )
    return peft.get_peft_model(model, config)
