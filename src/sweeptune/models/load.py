"""From a model's settings to a loaded model and its tokenizer: a folder, the hub, the cache, or random weights.

Everything ends as a local folder first (the hub's files are downloaded to its cache), so there is one way to load and
one content to hash. Remote code is never run.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
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
from sweeptune.models.internlm2 import MODEL_TYPE
from sweeptune.models.internlm2_tokenizer import from_folder, internlm2_tokenizer, misread
from sweeptune.models.tables import check_untied, keep_embedding_on_host, quantize_head
from sweeptune.models.tiny import tiny_tokenizer

transformers_logging.disable_progress_bar()  # our own bars show the loading

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHT_FILES = ["*.safetensors", "*.bin"]
HUB_FILES = ["*.json", "*.model", "*.jinja", "*.txt", *WEIGHT_FILES]


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
    return _download(model.path, "model.path", HUB_FILES)


def _download(name: str, what: str, files: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{what}={name}: neither a local folder nor to be had from the hub. Download it where there is a network "
            f"(hf download {name}), give its folder as {what}=, measure memory and speed with "
            "model.weights=random, or train the embedded model: model=smollm2_135m_q4. "
            f"The hub said {type(error).__name__}: {_brief(error)}"
        ) from error


def as_settings(model: ModelConfig | str | Path) -> ModelConfig:
    """Settings for a folder or a hub id: its pretrained weights, its own tokenizer, and nothing special."""
    if isinstance(model, ModelConfig):
        return model
    return ModelConfig(
        name=Path(model).name,
        path=str(model),
        weights="pretrained",
        dtype="auto",
        tokenizer=None,
        attention="auto",
        architecture=None,
    )


def load_tokenizer(model: ModelConfig | str | Path, *, image_token: str | None = None) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; where random weights come without one, a byte-level tokenizer stands in.

    Args:
        model: A folder, a hub id, InternLM2's ``tokenizer.model``, or the model's settings, whose ``tokenizer`` (one
            of these three) replaces the one that comes with the weights.
        image_token: Text that becomes one token, in an unused slot of InternLM2's vocabulary: ``<image>``.

    Raises:
        ConfigError: There is no such folder, or no tokenizer in it that can be read.

    Example:
        >>> load_tokenizer("internlm/internlm2-1_8b", image_token="<image>").encode("<image>\\nWhat is this?")
        [92537, 364, 3993, 505, 550, 345]
    """
    if not isinstance(model, ModelConfig):
        model = replace(as_settings(model), tokenizer=str(model))  # which needs no config.json and no weights
    what = "model.tokenizer" if model.tokenizer else "model.path"
    place = _tokenizer_place(model)
    if place is None:
        tokenizer = tiny_tokenizer()
    elif place.is_file():
        return internlm2_tokenizer(place, image_token=image_token)
    elif _only_pieces(place):
        return from_folder(place, image_token=image_token)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{what}={place}: no tokenizer that transformers can read ({_brief(error)})") from error
        if misread(tokenizer):
            if (place / "tokenizer.model").is_file():
                return from_folder(place, image_token=image_token)
            raise ConfigError(
                f"{what}={place}: its tokenizer.json gives other ids than InternLM2's tokenizer (converted by a tool "
                "that reads it wrongly). Give model.tokenizer=<InternLM2's tokenizer.model>"
            )
    if image_token is not None and tokenizer.convert_tokens_to_ids(image_token) in (None, tokenizer.unk_token_id):
        raise ConfigError(
            f"image_token={image_token}: this tokenizer has no such token. Only InternLM2's, read from its "
            "tokenizer.model, has an unused slot for it: give model.tokenizer=<tokenizer.model>"
        )
    return tokenizer


def _tokenizer_place(model: ModelConfig) -> Path | None:
    """The folder or file that holds the tokenizer; None where nothing does."""
    if model.tokenizer is None:
        return locate(model)
    place = Path(model.tokenizer).expanduser()
    if place.exists():
        return place
    if place.is_absolute() or model.tokenizer.startswith((".", "~")) or place.suffix == ".model":
        raise ConfigError(
            f"model.tokenizer={model.tokenizer}: no such file or folder. Give a folder with a tokenizer, a hub id or "
            "a tokenizer.model"
        )
    return _download(model.tokenizer, "model.tokenizer", [name for name in HUB_FILES if name not in WEIGHT_FILES])


def pieces_file(model: ModelConfig) -> Path | None:
    """The ``tokenizer.model`` that a model's tokenizer comes from, or None where it has none."""
    place = _tokenizer_place(model)
    file = place / "tokenizer.model" if place is not None and place.is_dir() else place
    return file if file is not None and file.is_file() else None


def _only_pieces(folder: Path) -> bool:
    """Whether a folder has a ``tokenizer.model`` and nothing that transformers would read rightly."""
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return False
    settings = folder / "config.json"
    return not settings.is_file() or json.loads(settings.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE


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
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (OSError, ValueError, StrictDataclassError) as error:
        what = "model.architecture" if folder is None else f"model.path={folder}: its config.json"
        raise ConfigError(f"{what} describes no model that transformers can build ({_brief(error)})") from error


def load_model(
    model: ModelConfig | str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "auto",
    quantization: BitsAndBytesConfig | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a causal language model onto a device.

    Args:
        model: A folder, a hub id, or the model's settings.
        dtype: Storage type of the weights that stay unquantised, such as ``torch.bfloat16`` or ``"bf16"``; ``auto`` is
            what the settings or the checkpoint say, else bf16.
        device: Where it is loaded; ``auto`` is the GPU, if there is one.
        quantization: How bitsandbytes stores the linear layers, or None.
        seed: Decides random weights; pretrained ones ignore it.

    Raises:
        ConfigError: The model is not there or cannot be read, or the attention back-end is not supported by it.

    Example:
        >>> model = load_model("internlm/internlm2-1_8b")
        >>> model = load_model("my/folder", dtype="fp32", device="cpu")
        >>> model = load_model(config.model, quantization=sweeptune.methods.quantized.nf4(torch.bfloat16))
    """
    model = as_settings(model)
    dtype = _dtype(model, dtype)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    # Published config.json files of InternLM2 ask for eager attention; what is passed here wins.
    options: dict[str, Any] = {"attn_implementation": IMPLEMENTATIONS.get(model.attention, "sdpa")}
    for key, plain in (("embedding", "device"), ("head", "plain")):
        if (chosen := getattr(model, key)) != plain:  # before gigabytes are read
            check_untied(load_config(model), f"model.{key}={chosen}", f"model.{key}={plain}")
    quantized = {"quantization_config": quantization, "device_map": {"": str(device)}} if quantization else {}
    try:
        if model.weights == "pretrained":
            options |= {"trust_remote_code": False, "weights_only": True}
            placed = quantized or {"device_map": {"": str(device)}}
            loaded = AutoModelForCausalLM.from_pretrained(locate(model), dtype=dtype, **options, **placed)
        else:
            torch.manual_seed(seed)
            with torch.device(device):
                loaded = AutoModelForCausalLM.from_config(load_config(model), dtype=dtype, **options)
            if quantization:
                loaded = quantize(loaded, quantization, dtype, device)
    except ImportError as error:
        raise ConfigError(f"model.attention={model.attention}: {_brief(error)}") from error
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(f"model={model.name}: cannot be loaded ({_brief(error)})") from error
    loaded.config.use_cache = False
    if model.head == "nf4":
        if quantization is None or not quantization.load_in_4bit:
            raise ConfigError(
                "model.head=nf4: the other layers are not in 4 bits. Use method=qlora or model.head=plain"
            )
        quantize_head(loaded, quantization, device)
    if model.embedding == "cpu":
        keep_embedding_on_host(loaded, device)
    return loaded


def quantize(
    model: PreTrainedModel, quantization: BitsAndBytesConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A copy of a plain model with its linear layers quantised: the same quantiser as for files on disk, from memory.

    Args:
        model: Holds the weights; it is left as it is.
        quantization: How the linear layers are stored.
        dtype: Storage type of all else.
        device: Where the copy is made.
    """
    quantized: PreTrainedModel = type(model).from_pretrained(
        None,
        config=copy.deepcopy(model.config),  # what is loaded notes its quantisation there
        state_dict=model.state_dict(),
        dtype=dtype,
        attn_implementation=model.config._attn_implementation,
        quantization_config=quantization,
        device_map={"": str(device)},
    )
    quantized.config.use_cache = False
    return quantized


def _dtype(model: ModelConfig, dtype: torch.dtype | str) -> torch.dtype:
    """What ``auto`` and names stand for."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = model.dtype if dtype == "auto" else dtype
    if name == "auto":
        stored = load_config(model).dtype
        return stored if isinstance(stored, torch.dtype) else torch.bfloat16
    if name not in DTYPES:
        raise ConfigError(f"dtype={name}: use auto, {', '.join(DTYPES)} or a torch.dtype")
    return DTYPES[name]


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
