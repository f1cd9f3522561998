"""PiSSA: adapters that start as the principal singular directions of each weight (Meng et al. 2024, arXiv 2404.02948).

With W = U S V^T, B = U_r sqrt(S_r / s) and A = sqrt(S_r / s) V_r^T, s the adapter's scale; what is left,
W - s B A, is frozen. The model's output is the same at the start, but what trains matters most.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

ADAPTER = "default"


def start(model: PreTrainedModel, file: Path) -> None:
    """Set every adapter to its weight's principal directions and leave the rest in the base.

    Args:
        model: A model with LoRA adapters, as `sweeptune.methods.lora.attach` returns it.
        file: Holds the start of every adapter. Missing, it is computed and written, so that a resumed run or another
            machine uses the same one: singular vectors are not the same everywhere.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if file.is_file():
        saved = load_file(file)
    else:
        saved = {key: value for name, layer in layers.items() for key, value in _principal(name, layer).items()}
        if os.environ.get("RANK", "0") == "0":
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            save_file(saved, part)
            part.replace(file)
    for name, layer in layers.items():
        base = _weight(layer)
        a, b = (saved[f"{name}.{half}"].to(base.device) for half in ("A", "B"))
        layer.lora_A[ADAPTER].weight.data.copy_(a)
        layer.lora_B[ADAPTER].weight.data.copy_(b)
        base.copy_(base.float() - layer.scaling[ADAPTER] * b @ a)


def _weight(layer: LoraLayer) -> torch.Tensor:
    """The base's weight, [out, in]: a view where it is stored transposed (GPT-2's Conv1D)."""
    weight: torch.Tensor = layer.get_base_layer().weight.data
    return weight.T if layer.fan_in_fan_out else weight


def _principal(name: str, layer: LoraLayer) -> dict[str, torch.Tensor]:
    rank = layer.r[ADAPTER]
    u, s, vh = torch.linalg.svd(_weight(layer).float(), full_matrices=False)
    root = torch.sqrt(s[:rank] / layer.scaling[ADAPTER])
    halves = {f"{name}.A": root[:, None] * vh[:rank], f"{name}.B": u[:, :rank] * root}
    return {key: value.cpu().contiguous() for key, value in halves.items()}
