"""Attention back-ends, and what each has to be told so that samples which share a row never see each other.

A back-end is chosen once (`resolve`), under the name by which transformers finds it (`Backend.implementation`); the
model's config remembers it. `prepare` then turns a batch into the arguments of the model's forward for it:

    sdpa   one boolean mask [b, 1, t, t]: the same sample, and not later. The reference, and the CPU's.
    eager  the same mask as numbers to add, which is what transformers' plain attention takes.
    flex   the same rule as a BlockMask, so that blocks which nothing crosses are never computed (GPU).
    varlen, flash_attention_2/3/4   all rows behind each other without padding, and where each sample begins (GPU).

A 2-D mask never goes along with packed rows: transformers would then no longer look at the boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from sweeptune.config.errors import ConfigError
from sweeptune.config.rules import FLASH_PACKAGES, flash_installed
from sweeptune.kernels.interfaces import FLEX, VARLEN, varlen_kernel

IMPLEMENTATIONS = {"sdpa": "sdpa", "eager": "eager", "flex": FLEX, "varlen": VARLEN} | {n: n for n in FLASH_PACKAGES}
HALVES = (torch.bfloat16, torch.float16)
IGNORED = -100
BLOCK = 128
"""Flex attention works in blocks of so many positions; rows are filled up to whole ones, so that it compiles once."""
PLAIN_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Backend:
    """A chosen back-end.

    Attributes:
        name: The word of ``model.attention``.
        implementation: The name by which transformers knows it.
        reason: Why it was chosen, for the log.
    """

    name: str
    implementation: str
    reason: str


class Prepared(NamedTuple):
    """A batch as a back-end wants it.

    ``inputs`` is all that the model's forward gets; ``labels`` are in the shape of ``inputs["input_ids"]``, and in the
    host's memory; ``place`` holds the position in the flattened batch of every token that was kept, None where the
    batch keeps its shape.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    place: NDArray[np.int64] | None = None


class BatchLike(Protocol):
    """What is needed of `sweeptune.data.Batch`."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def attention_mask(self) -> torch.Tensor | None: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor | None: ...
    @property
    def segments(self) -> torch.Tensor | None: ...
    @property
    def lengths(self) -> Sequence[Sequence[int]]: ...


def resolve(attention: str, shape: Any, device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose the attention back-end of a run.

    Args:
        attention: ``model.attention``.
        shape: The model's config, which knows what its attention needs; None: nothing special.
        device: Where the model is.
        dtype: What is computed in.

    Returns:
        For ``auto`` the fastest that is present and correct here: varlen where the GPU and the model can, because it
        computes no padding, packed or not; else sdpa.

    Raises:
        ConfigError: The back-end that was asked for cannot train here.

    Example:
        >>> resolve("auto", None, torch.device("cpu"), torch.float32).name
        'sdpa'
    """
    if attention == "auto":
        obstacle = _no_varlen(device, dtype) or special(shape)
        if obstacle is None:
            return Backend("varlen", VARLEN, "the fastest on this GPU, without padding")
        return Backend("sdpa", "sdpa", f"not varlen: {obstacle}")
    obstacle = None
    if attention == "varlen":
        obstacle = _no_varlen(device, dtype)
    elif attention == "flex" and device.type == "cpu":
        obstacle = "flex attention has no backward pass on a CPU"
    elif attention in FLASH_PACKAGES:
        obstacle = None if flash_installed(attention) else f"the package {FLASH_PACKAGES[attention]} is not installed"
        obstacle = obstacle or _no_flash(device, dtype)
    if obstacle:
        raise ConfigError(f"model.attention={attention}: {obstacle}; use model.attention=auto or model.attention=sdpa")
    untested = ", which nobody has tested here yet" if attention in FLASH_PACKAGES else ""
    return Backend(attention, IMPLEMENTATIONS[attention], f"model.attention={attention}{untested}")


def _no_varlen(device: torch.device, dtype: torch.dtype) -> str | None:
    return _no_flash(device, dtype) or (None if varlen_kernel() else "this torch has no torch.nn.attention.varlen")


def heads_of(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads, and the width of a head.

    Args:
        config: A model's config; one without a number of key heads (GPT-2) has as many as query heads.
    """
    text = config.get_text_config()
    heads: int = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads, getattr(text, "num_key_value_heads", None) or heads, width


def special(shape: Any) -> str | None:
    """What a model's attention needs that varlen does not have."""
    text = shape.get_text_config() if shape is not None else None
    if odd := set(getattr(text, "layer_types", None) or ()) - PLAIN_KINDS:
        return f"this model has layers of kind {min(odd)}"
    if getattr(text, "attn_logit_softcapping", None):
        return "this model caps its attention's scores"
    return None


def _no_flash(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Flash Attention cannot run; None where it can."""
    if device.type != "cuda":
        return "Flash Attention needs a CUDA GPU"
    if dtype not in HALVES:
        return "Flash Attention computes in bf16 or fp16 only (hardware.precision)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "Flash Attention needs a GPU of compute capability 8.0 or newer"
    return None


def backend_of(config: Any) -> str:
    """The back-end's name of a loaded model, from its config; transformers' own names for those that we do not use."""
    used = str(config._attn_implementation)
    return next((name for name, known in IMPLEMENTATIONS.items() if known == used), used)


def present() -> dict[str, str | None]:
    """Every back-end, and what keeps it from training on this machine's device in bf16; None where nothing does."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, str | None] = {}
    for name in IMPLEMENTATIONS:
        try:
            resolve(name, None, device, torch.bfloat16)
            found[name] = None
        except ConfigError as error:
            found[name] = str(error).partition(": ")[2].partition(";")[0]
    return found


def model_inputs(batch: BatchLike, config: Any) -> dict[str, Any]:
    """Exactly what the model's forward gets for a batch, but for ``logits_to_keep``.

    Args:
        batch: Rows of shape [b, t].
        config: The model's config, which knows the back-end and the layers' windows.

    Raises:
        ConfigError: Rows are packed, and the model has layers with masks that are not plainly causal.

    Example:
        >>> model(**model_inputs(batch, model.config)).logits
    """
    return prepare(batch, config).inputs


def prepare(batch: BatchLike, config: Any) -> Prepared:
    """`model_inputs`, with labels of the same shape."""
    return INPUTS.get(backend_of(config), _masked)(batch, config)


def _masked(batch: BatchLike, config: Any, numbers: bool = False) -> Prepared:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments is None:
        return Prepared(inputs | {"attention_mask": batch.attention_mask}, batch.labels)
    segments = batch.segments

    def mask(window: int | None) -> torch.Tensor:
        seen = may_see(segments, window)
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min) if numbers else seen

    inputs |= {"attention_mask": masks_by_layer(config, mask), "position_ids": batch.position_ids}
    return Prepared(inputs, batch.labels)


def _eager(batch: BatchLike, config: Any) -> Prepared:
    # transformers' eager attention adds the mask to the scores: True would be a 1 there and hide nothing.
    return _masked(batch, config, numbers=True)


def may_see(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Which position (third axis) sees which (fourth): its own sample's, not later ones, within the window.

    Padding is a sample of its own (-1) and sees itself, so that no position sees nothing at all.

    Args:
        segments: int32 [b, t].
        window: How many positions a sliding layer sees, its own included.

    Returns:
        bool [b, 1, t, t]
    """
    order = torch.arange(segments.shape[1], device=segments.device)
    distance = order[:, None] - order[None, :]
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return (segments[:, None, :, None] == segments[:, None, None, :]) & near


def masks_by_layer(config: Any, make: Callable[[int | None], Any]) -> Any:
    """One mask, or one for each kind of layer where a model has several (Gemma 3, Qwen 3 with windows).

    Args:
        config: The model's config.
        make: Makes a mask from a window (None: no window).

    Raises:
        ConfigError: A kind of layer that is neither plainly causal nor a sliding window.
    """
    text = config.get_text_config()
    kinds, window = set(getattr(text, "layer_types", None) or ()), getattr(text, "sliding_window", None)
    if odd := sorted(kinds - PLAIN_KINDS):
        raise ConfigError(
            f"data.packing: this model ({text.model_type}) has layers of kind {', '.join(odd)}, and how to keep the "
            "samples of a row apart in them is not known; use data.packing=none"
        )
    if "sliding_attention" in kinds:
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: make(windows[kind]) for kind in sorted(kinds)}
    return make(None if kinds else window)


def _flex(batch: BatchLike, config: Any) -> Prepared:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = batch.input_ids.shape
    segments = batch.segments
    if segments is None:
        own = batch.attention_mask if batch.attention_mask is not None else torch.ones_like(batch.input_ids)
        segments = (own - 1).to(torch.int32)
    filled = (0, -width % BLOCK)
    segments = F.pad(segments, filled, value=-1)
    size, device = segments.shape[1], segments.device

    def mask(window: int | None) -> Any:
        def rule(row: torch.Tensor, _: torch.Tensor, of: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            near = of >= at if window is None else (of >= at) & (of - at < window)
            return (segments[row, of] == segments[row, at]) & near

        return create_block_mask(rule, rows, None, size, size, device=str(device))

    inputs = {"input_ids": F.pad(batch.input_ids, filled), "attention_mask": masks_by_layer(config, mask)}
    if batch.position_ids is not None:
        inputs["position_ids"] = F.pad(batch.position_ids, filled)
    return Prepared(inputs | {"use_cache": False}, F.pad(batch.labels, filled, value=IGNORED))


def _flat(batch: BatchLike, config: Any) -> Prepared:
    """All samples behind each other, without padding, as one row."""
    rows, width = batch.input_ids.shape
    device = batch.input_ids.device
    lengths = np.array([length for row in batch.lengths for length in row], dtype=np.int64)
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    ids, labels, kept = batch.input_ids.reshape(1, -1), batch.labels.reshape(1, -1), None
    if total < rows * width:
        filled = np.array([sum(row) for row in batch.lengths])
        kept = np.flatnonzero(np.arange(width) < filled[:, None])
        place = torch.from_numpy(kept)
        ids, labels = ids[:, send(place, device)], labels[:, place]
    positions = np.arange(total) - np.repeat(ends - lengths, lengths)
    bounds = send(torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)), device)
    longest = int(lengths.max())
    inputs = {
        "input_ids": ids,
        "position_ids": send(torch.from_numpy(positions)[None], device),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }
    if backend_of(config) == "varlen":
        # Which masks nothing. Without a mask, transformers would look for samples that share a row in the positions,
        # and wait for the device to see them; whatever has four dimensions is handed on as it is.
        inputs["attention_mask"] = torch.empty(1, 1, 0, 0, device=device)
    return Prepared(inputs, labels, kept)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host without waiting: only pinned memory travels while the device computes."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


INPUTS: dict[str, Callable[[BatchLike, Any], Prepared]] = {
    "sdpa": _masked,
    "eager": _eager,
    "flex": _flex,
    "varlen": _flat,
} | dict.fromkeys(FLASH_PACKAGES, _flat)
