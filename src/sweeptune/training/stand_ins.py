"""What stands in for CUDA where training is traced on fake tensors (`sweeptune.training.trace`).

Most operations allocate the same on every device, and there the real code is what is traced. What differs is here:
attention kernels, which keep and need other memory than the CPU's; dropout, whose mask is of bytes on a GPU; and
weights that bitsandbytes has quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from bitsandbytes.functional import QuantState
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional as F
from transformers import PreTrainedModel

from sweeptune.kernels import interfaces
from sweeptune.training.stand_ins_kernels import fused_kernels

NF4_BLOCK, CONSTANTS_BLOCK = 64, 256


class FusedAttention(torch.autograd.Function):
    """The memory of one fused attention: flash, memory-efficient or cuDNN.

    Kept for backward: query, key, value, bias, output, and the logarithm of each softmax's sum in fp32. Backward takes
    a workspace for the query's gradient in fp32, one number per query, and, where key heads are shared, key and value
    gradients of every query head before they are added up.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any) -> Any:
        """Attend: [..., heads, n, d] each; heads of the key may be fewer."""
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of query, key and value."""
        query, key, value, _, _, sums = ctx.saved_tensors
        workspace = [torch.empty_like(query, dtype=torch.float32), torch.empty_like(sums)]
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
        if key.shape[-3] != query.shape[-3]:
            workspace += [torch.empty_like(query), torch.empty_like(query)]
        del workspace
        return found


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` as its CUDA kernels do it: [b, heads, n, d] each.

    A boolean mask becomes numbers to add, once for every layer and kept until its backward, filled up to whole
    eights.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    bias = None
    if attn_mask is not None:
        hidden = attn_mask.logical_not()
        bias = query.new_empty((*attn_mask.shape[:-1], -(-attn_mask.shape[-1] // 8) * 8))
        del hidden
    out: torch.Tensor = FusedAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    return out


def attend_varlen(query: Any, key: Any, value: Any, *bounds: Any, window_size: Any = None, **options: Any) -> Any:
    """``varlen_attn``: [n, heads, d] each."""
    heads_first = (tensor.transpose(0, 1) for tensor in (query, key, value))
    return FusedAttention.apply(*heads_first, None).transpose(0, 1)  # type: ignore[no-untyped-call]


def drop(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """``dropout``, with a mask of bytes."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Put the kernels of this file in the place of the CPU's.

    Modules do not move to another device or dtype meanwhile, which fake parameters cannot. PEFT moves new adapters to
    the base's dtype and then makes them fp32 again, as which they are made.
    """
    on_cpu = torch.is_autocast_enabled
    with (
        patch.object(F, "scaled_dot_product_attention", attend),
        patch.object(F, "dropout", drop),
        patch.object(interfaces, "varlen_kernel", lambda: attend_varlen),
        patch.object(torch, "is_autocast_enabled", lambda *_: on_cpu("cpu")),  # asked without a device, it means CUDA
        patch.object(torch.nn.Module, "to", lambda module, *_, **__: module),
        fused_kernels(),
        patch.object(
            bnb, "matmul", lambda x, w, bias=None, state=None, **_: MatMul8bitLt.apply(x, w, None, bias, state)
        ),
    ):
        yield


def quantize(model: PreTrainedModel, kind: str, compute: torch.dtype) -> None:
    """Store linear layers as bitsandbytes would; the head stays as it is, as with transformers' quantiser.

    Args:
        model: Of fake tensors.
        kind: ``nf4`` or ``int8``.
        compute: What products are computed in.
    """
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            parent, _, attribute = name.rpartition(".")
            made = nf4_layer(layer, compute) if kind == "nf4" else int8_layer(layer)
            setattr(model.get_submodule(parent), attribute, made)
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)


def nf4_layer(layer: torch.nn.Linear, compute: torch.dtype) -> torch.nn.Module:
    """A ``Linear4bit``: half a byte a weight, a byte for each 64, and 4 bytes for each 64 * 256 of them."""
    size = layer.weight.numel()
    blocks = -(-size // NF4_BLOCK)
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=layer.weight.shape,
        dtype=compute,
        blocksize=NF4_BLOCK,
        code=torch.empty(16),
        quant_type="nf4",
        offset=torch.empty(()),
        state2=QuantState(
            absmax=torch.empty(-(-blocks // CONSTANTS_BLOCK)),
            blocksize=CONSTANTS_BLOCK,
            code=torch.empty(256),
            dtype=torch.float32,
        ),
    )
    with unset_fake_temporarily():
        made: torch.nn.Module = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, False, compute, True, "nf4", device="meta"
        )
    packed = torch.nn.Parameter(torch.empty((size + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
    for key, value in {"quant_state": state, "compress_statistics": True, "quant_type": "nf4"}.items():
        setattr(packed, key, value)
    made.weight, made.bias = packed, layer.bias
    return made


def int8_layer(layer: torch.nn.Linear) -> Any:
    """A ``Linear8bitLt``: a byte a weight and 4 bytes a row."""
    with unset_fake_temporarily():
        made: Any = bnb.nn.Linear8bitLt(
            layer.in_features, layer.out_features, False, has_fp16_weights=False, device="meta"
        )
    stored = torch.nn.Parameter(torch.empty(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    for key in ("CB", "SCB"):
        setattr(stored, key, None)
    made.weight, made.bias = stored, layer.bias
    made.state.CB, made.state.SCB = stored.data, torch.empty(layer.out_features)
    return made


def constants(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What a quantised layer holds beside its weight."""
    if isinstance(module, bnb.nn.Linear4bit):
        state = module.weight.quant_state
        yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    elif isinstance(module, bnb.nn.Linear8bitLt):
        yield from (module.state.CB, module.state.SCB)
