"""Trained models for those who come after the training: chat, evaluation elsewhere, export."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweeptune.config.compose import load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.data import load_run_tokenizer
from sweeptune.kernels.fp8 import Fp8Linear
from sweeptune.methods import METHODS
from sweeptune.models import load_model
from sweeptune.tracking.record import RECORD, read_record
from sweeptune.training.checkpoint import STATE, find_checkpoints, load_trainable
from sweeptune.training.placement import Placement, place
from sweeptune.training.session import build_model


@dataclass(frozen=True)
class Trained:
    """A run's model as it was trained."""

    config: Config
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    step: int


def load_trained(folder: Path) -> Trained:
    """Load the model of a run folder with its newest weights, exactly as it was trained.

    Args:
        folder: A run folder with at least one checkpoint.

    Raises:
        ConfigError: It is no run folder, or has no checkpoint.
    """
    config, checkpoint = newest(folder)
    placement = place(config)
    model = build_model(config, placement, folder)
    load_trainable(model, checkpoint)
    step = json.loads((checkpoint / STATE).read_text())["step"]
    return Trained(config, model.eval(), load_run_tokenizer(config.model, config.template), placement, step)


def newest(folder: Path) -> tuple[Config, Path]:
    """A run's settings and its newest checkpoint.

    Raises:
        ConfigError: One of them is missing.
    """
    config = load(folder / "config.yaml")
    found = find_checkpoints(folder)
    if found:
        return config, found[-1]
    record = read_record(folder) if (folder / RECORD).exists() else None
    if record is not None and record["status"] == "completed":
        raise ConfigError(
            f"{folder}: completed, but its weights were not kept (study.keep_weights=best keeps those of each method's "
            f"best). Train it again: {record['command']}"
        )
    raise ConfigError(f"{folder}: has no checkpoint yet; let it train, or continue it with resume={folder}")


def load_base(config: Config) -> PreTrainedModel:
    """The model before training, stored as its method stores it."""
    placement = place(config)
    method = METHODS[config.method.name]
    quantization = method.quantization(placement.compute) if method.quantization else None
    model = replace(config.model, embedding="device")  # generating and merging expect it there
    return load_model(
        model, dtype=placement.weights, device=placement.device, quantization=quantization, seed=config.seed
    ).eval()


def dequantize(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Replace every quantised linear layer by a plain one that holds what it stands for.

    Merging into quantised storage would quantise again, and give another model than the trained one.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt | Fp8Linear):
                setattr(parent, name, dequantized(child, dtype))
    return model


def dequantized(layer: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Linear:
    """The plain layer that a quantised one stands for."""
    if isinstance(layer, bnb.nn.Linear4bit):
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    elif isinstance(layer, Fp8Linear):
        weight = layer.plain(dtype)
    else:
        stored: Any = layer  # before its first forward the weight holds the scales, afterwards the layer's state does
        fresh = stored.weight.SCB is not None
        values, scales = (stored.weight.data, stored.weight.SCB) if fresh else (stored.state.CB, stored.state.SCB)
        weight = bnb.functional.int8_vectorwise_dequant(values, scales)
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return plain
