"""A trained run as a folder that other tools load: one merged model, or an adapter for the original base."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sweeptune.config.errors import ConfigError
from sweeptune.data import stop_ids
from sweeptune.methods import METHODS
from sweeptune.methods.pissa import ADAPTER
from sweeptune.models.internlm2 import MODEL_TYPE, readable_by_all, to_llama
from sweeptune.models.internlm2_tokenizer import make_portable
from sweeptune.models.load import load_config, pieces_file
from sweeptune.training.merge import merged
from sweeptune.training.restore import Trained, load_trained, newest

LAYOUTS = ("original", "llama")


def export(folder: Path, out: Path, *, merge: bool, dtype: torch.dtype, layout: str = "original") -> Trained:
    """Write a run's model where ``from_pretrained`` finds it.

    Args:
        folder: The run folder.
        out: The folder to write; must be missing or empty.
        merge: One plain model, its base dequantised and its adapters added in; else a PEFT adapter for the original
            base (full fine-tuning has no adapter: its model is written either way).
        dtype: Of the merged weights; adding is done in fp32.
        layout: ``original`` names and stores the weights as the base does (InternLM2's fused ``wqkv``); ``llama``
            writes an InternLM2 as a plain Llama, for tools that know no other.

    Returns:
        The run's model, settings and tokenizer. After a merge its model is used up.

    Raises:
        ConfigError: ``out`` is not empty, the run has no checkpoint, or its model cannot take the layout.

    Example:
        >>> export(Path("outputs/run"), Path("plain"), merge=True, dtype=torch.bfloat16, layout="llama")
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; choose another folder")
    _check_layout(folder, layout, merge)
    trained = load_trained(folder)
    if merge or not isinstance(trained.model, PeftModel):
        save_plain(merged(trained.model, dtype), out, layout, stop_ids(trained.tokenizer))
    else:
        save_adapter(trained, folder, out)
    trained.tokenizer.save_pretrained(out)
    make_portable(trained.tokenizer, out, pieces_file(trained.config.model))
    return trained


def _check_layout(folder: Path, layout: str, merge: bool) -> None:
    """Refuse before anything is loaded."""
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: use {' or '.join(LAYOUTS)}")
    if layout == "original":
        return
    config, _ = newest(folder)
    kind = load_config(config.model).model_type
    if kind not in ("llama", MODEL_TYPE):
        raise ConfigError(f"--layout llama: model={config.model.name} is a {kind} and no Llama; use --layout original")
    if config.method.name != "full" and not merge:
        raise ConfigError("--layout llama: an adapter has no layout of its own; add --merge")


def save_plain(model: PreTrainedModel, out: Path, layout: str, stops: list[int]) -> None:
    """Write a plain model for use: with a cache, and so that an answer stops at the tokens ``stops``."""
    model.config.use_cache = model.generation_config.use_cache = True  # off in training, and slow when it stays off
    if stops:
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    plain = to_llama(model) if layout == "llama" else model
    plain.save_pretrained(out)
    if layout == "original" and model.config.model_type != MODEL_TYPE:
        return
    file = out / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values = readable_by_all(values) if layout == "llama" else values
    values["torch_dtype"] = values["dtype"]  # its name before transformers 4.56
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_adapter(trained: Trained, folder: Path, out: Path) -> None:
    """Write a PEFT adapter folder for the original base.

    PiSSA moved part of the base into the adapter's start (B0 A0), so relative to the original base its update is
    B A - B0 A0: an adapter of twice the rank and twice alpha, which keeps the scale.
    """
    config = trained.model.peft_config[ADAPTER]
    config.base_model_name_or_path = trained.config.model.path or str(trained.model.get_base_model().name_or_path)
    if METHODS[trained.config.method.name].start is None:
        trained.model.save_pretrained(out)
        return
    start = load_file(folder / "checkpoints" / "start.safetensors")
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    wide = {}
    for name, layer in trained.model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A[ADAPTER].weight.detach().cpu(), layer.lora_B[ADAPTER].weight.detach().cpu()
            wide[f"{name}.lora_A.weight"] = torch.cat([a, start[f"{name}.A"]])
            wide[f"{name}.lora_B.weight"] = torch.cat([b, -start[f"{name}.B"]], dim=1)
    trained.model.save_pretrained(out, state_dict=wide)
