"""Methods: how a loaded model becomes a trainable one.

A method is what is attached to a loaded base, and where it needs that, how the base is stored while it is loaded.
To add one, write its functions in a file here, add a line to `METHODS` and to ``METHOD_SCHEMAS`` in the schema, and a
YAML.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from sweeptune.methods import fp8, full, lora, pissa, quantized


class Method(NamedTuple):
    """How a base is stored and made trainable."""

    attach: Callable[[PreTrainedModel, Any], PreTrainedModel]
    quantization: Callable[[torch.dtype], BitsAndBytesConfig] | None = None
    start: Callable[[PreTrainedModel, Path], None] | None = None
    """Sets a start that depends on the weights, from the file or, where there is none yet, into it."""


METHODS: dict[str, Method] = {
    "full": Method(full.attach),
    "lora": Method(lora.attach),
    "dora": Method(lora.attach),
    "rslora": Method(lora.attach),
    "pissa": Method(lora.attach, start=pissa.start),
    "qlora": Method(quantized.attach, quantized.nf4),
    "lora_int8": Method(quantized.attach, quantized.int8),
    "lora_fp8": Method(fp8.attach),
}

__all__ = ["METHODS", "Method"]
