"""From a model's settings to a loaded model and its tokenizer: a folder, the hub, the cache, or random weights.

Everything ends as a local folder first (the hub's files are downloaded to its cache), so there is one way to load and
one content to hash. Remote code is never run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import ModelConfig
from sweeptune.kernels.attention import IMPLEMENTATIONS
from sweeptune.models.fetch import MODELS, cached_model, weights_hash
from sweeptune.models.tiny import tiny_tokenizer

transformers_logging.disable_progress_bar()  # our own bars show the loading

HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt"]


def locate(model: ModelConfig) -> Path | None:
    """Find (or download from the hub) the folder that holds a model.

    Args:
        model: The model's settings.

    Returns:
        The folder, or None when the weights are random and nothing on disk describes the model.

    Raises:
        ConfigError: There is no such folder, it is not fetched yet, or the hub cannot be reached.
    """
    if model.path is None:
        folder = cached_model(model.name)
        if folder is None and model.weights == "pretrained":
            if model.name in MODELS:
                raise ConfigError(f"model={model.name}: not fetched yet. Run: sweeptune fetch {model.name}")
            raise ConfigError(f"model={model.name}: has no weights; set model.weights=random or model.path=<folder>")
        return folder
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={model.path}: this folder has no config.json, so it is not a saved model")
        return folder
    if model.weights == "random":
        return None
    if folder.is_absolute() or model.path.startswith((".", "~")):
        raise ConfigError(f"model.path={model.path}: no such folder. Give a saved model's folder or a hub id")
    try:
        return Path(snapshot_download(model.path, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"model.path={model.path}: neither a local folder nor to be had from the hub "
            f"({type(error).__name__}: {_brief(error)}). Download it where there is a network "
            f"(hf download {model.path}), give its folder as model.path=, measure memory and speed with "
            "model.weights=random, or train the embedded model: model=smollm2_135m_q4"
        ) from error


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; where random weights come without one, a byte-level tokenizer stands in.

    Args:
        model: The model's settings.

    Raises:
        ConfigError: The folder has no readable tokenizer.
    """
    folder = locate(model)
    if folder is None:
        return tiny_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path={folder}: no tokenizer that transformers can read ({_brief(error)})") from error


def load_config(model: ModelConfig) -> PreTrainedConfig:
    """Read a model's architecture from its folder, else from ``model.architecture``.

    Raises:
        ConfigError: There is neither, or it describes no model that transformers knows.
    """
    folder = locate(model)
    values = dict(model.architecture or {})
    if folder is None and "model_type" not in values:
        raise ConfigError(
            f"model={model.name}: model.weights=random needs a local model.path, or model.architecture with model_type"
        )
    try:
        if folder is not None:
            return AutoConfig.from_pretrained(folder)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (OSError, ValueError, StrictDataclassError) as error:
        what = "model.architecture" if folder is None else f"model.path={folder}: its config.json"
        raise ConfigError(f"{what} describes no model that transformers can build ({_brief(error)})") from error


def load_model(
    model: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a causal language model onto a device.

    Args:
        model: The model's settings.
        dtype: Storage type of the weights that stay unquantised.
        device: Where it is loaded.
        quantization: How bitsandbytes stores the linear layers, or None.
        seed: Decides random weights; pretrained ones ignore it.

    Raises:
        ConfigError: The model is not there or cannot be read, or the attention back-end is not supported by it.

    Example:
        >>> model = load_model(config.model, dtype=torch.bfloat16, device=torch.device("cuda"))
    """
    options: dict[str, Any] = {"attn_implementation": IMPLEMENTATIONS.get(model.attention, "sdpa")}
    quantized = {"quantization_config": quantization, "device_map": {"": str(device)}} if quantization else {}
    try:
        if model.weights == "pretrained":
            folder = locate(model)
            placed = quantized or {"device_map": {"": str(device)}}
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options, **placed)
        else:
            torch.manual_seed(seed)
            with torch.device(device):
                loaded = AutoModelForCausalLM.from_config(load_config(model), dtype=dtype, **options)
            if quantized:
                # The same quantiser as for files on disk, fed from memory.
                options |= {"config": loaded.config, "state_dict": loaded.state_dict(), "dtype": dtype}
                loaded = type(loaded).from_pretrained(None, **options, **quantized)
    except ImportError as error:
        raise ConfigError(f"model.attention={model.attention}: {_brief(error)}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"model={model.name}: cannot be loaded ({_brief(error)})") from error
    loaded.config.use_cache = False
    return loaded


def weights_digest(model: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int) -> str:
    """Name the weights by their content: what the fingerprint compares.

    Random weights are named by what decides them: architecture, seed, and the generator's device and dtype.
    """
    folder = locate(model)
    if model.weights == "pretrained" and folder is not None:
        return weights_hash(folder)
    return f"random-{architecture_digest(load_config(model))}-{seed}-{device.type}-{str(dtype).removeprefix('torch.')}"


def architecture_digest(config: PreTrainedConfig) -> str:
    """Hash the values that decide a model's shape; names, paths and versions do not count."""
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in NOT_SHAPE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _brief(error: Exception) -> str:
    """The beginning of a message: some of them list every model that there is."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


NOT_SHAPE = {"transformers_version", "dtype", "torch_dtype", "use_cache", "quantization_config", "architectures"}
