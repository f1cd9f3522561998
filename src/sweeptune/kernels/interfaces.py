"""Our attention functions under the names by which transformers finds them.

``sweeptune_varlen`` is torch's own Flash Attention 2 for samples behind each other (torch.nn.attention.varlen), which
takes where each begins instead of a mask. ``sweeptune_flex`` is transformers' flex attention, made to work under
autocast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from sweeptune.config.errors import ConfigError

VARLEN, FLEX = "sweeptune_varlen", "sweeptune_flex"
order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels for rows of one length, the fastest first: an H100's, until `sweeptune.kernels.fastest` has measured here."""


@cache
def varlen_kernel() -> Callable[..., torch.Tensor] | None:
    """torch's Flash Attention for rows of many lengths, where this torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Any = varlen_attn
    return kernel  # type: ignore[no-any-return]


def varlen_options(kernel: Callable[..., Any], window: int | None, grouped: bool) -> dict[str, Any]:
    """How a version of ``varlen_attn`` is asked to be causal, and for fewer key heads than query heads.

    torch 2.11 and later take ``window_size=(left, right)``, where (-1, 0) is causal; before, there was ``is_causal``.
    ``enable_gqa`` came later too; kernels without it take fewer key heads as they are.

    Raises:
        ConfigError: This version can do neither.
    """
    known = inspect.signature(kernel).parameters
    options: dict[str, Any] = {"enable_gqa": True} if grouped and "enable_gqa" in known else {}
    if "window_size" in known:
        return options | {"window_size": (-1 if window is None else window - 1, 0)}
    if "is_causal" in known and window is None:
        return options | {"is_causal": True}
    raise ConfigError(
        "model.attention=varlen: this torch's varlen_attn knows no "
        f"{'causal mask' if window is None else 'sliding window'}; use model.attention=sdpa"
    )


def varlen_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each sample, for transformers: query, key and value [1, heads, n, d] to [1, n, heads, d].

    Without boundaries (a chat generates) this is sdpa.

    Raises:
        ConfigError: The model needs something that the kernel does not do.
    """
    bounds, kernel = kwargs.get("cu_seq_lens_q"), varlen_kernel()
    if bounds is None or kernel is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    asked = {"dropout": dropout or None, "softcap": kwargs.get("softcap"), "s_aux": kwargs.get("s_aux")}
    if lacking := [what for what, value in asked.items() if value is not None]:
        raise ConfigError(f"model.attention=varlen: this model's attention has {lacking[0]}; use model.attention=eager")
    query, key, value = _alike(query, key, value)
    longest, samples = kwargs["max_length_q"], len(bounds) - 1
    if samples * longest == query.shape[2] and sliding_window is None and query.is_cuda:
        return _rows(query, key, value, samples, scaling), None
    options = varlen_options(kernel, sliding_window, query.shape[1] != key.shape[1])
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return kernel(q, k, v, bounds, bounds, longest, longest, scale=scaling, **options).unsqueeze(0), None


def _rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, samples: int, scaling: float | None
) -> torch.Tensor:
    """Samples of one length are plain rows, for which there are faster kernels: [1, n, heads, d].

    Only views lie between the arguments and the kernel, forward and backward: the gradient of ``t[0]`` would be zeros
    and a copy into them (squeeze's is a view), which cost 10 of an H100's 280 ms a step (bench/RESULTS.md).
    """
    width = query.shape[-1]
    q, k, v = (
        t.squeeze(0).transpose(0, 1).view(samples, -1, *t.shape[1::2]).transpose(1, 2) for t in (query, key, value)
    )
    with sdpa_kernel(order, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).reshape(1, -1, query.shape[1], width)


def flex_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' flex attention, on tensors of one dtype."""
    found: tuple[torch.Tensor, torch.Tensor | None] = flex_attention_forward(
        module, *_alike(query, key, value), attention_mask, **kwargs
    )
    return found


def _alike(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bring query, key and value to one dtype: under autocast rotary embeddings leave the first two in fp32."""
    kind = tensors[-1].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensors[-1].dtype
    return tuple(tensor.to(dtype) for tensor in tensors)


def varlen_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask: the boundaries are all. Only who brings a 2-D mask and no boundaries (a chat) gets sdpa's."""
    if attention_mask is None:
        return None
    found: torch.Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    return found


AttentionInterface.register(VARLEN, varlen_forward)
AttentionInterface.register(FLEX, flex_forward)
AttentionMaskInterface.register(VARLEN, varlen_mask)
AttentionMaskInterface.register(FLEX, flex_attention_mask)
