"""Putting the fast paths into a model, and taking them out again.

Only ``forward`` of decoder layers, of the last norm and of the rotary embedding is replaced, on the instances: modules,
parameters, names and shapes in a state dict stay as they are, and whatever the fast path does not do (generation with a
cache) falls through to transformers' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer

from sweeptune.config.errors import ConfigError
from sweeptune.kernels import ops
from sweeptune.kernels.block import Block, BlockFunction, Call
from sweeptune.kernels.fp8 import Fp8Linear
from sweeptune.kernels.head import summed_loss, token_losses
from sweeptune.kernels.linear import Group, Projection, refresh
from sweeptune.kernels.offload import Stash

FUSED = "_sweeptune_fused"
LAYERS = ("LlamaDecoderLayer", "Qwen3DecoderLayer", "MistralDecoderLayer")
"""Decoder layers that compute what `sweeptune.kernels.block` computes; InternLM2, SmolLM2 and Llama are the first."""
ROTARY = ("default", "linear", "llama3", "dynamic")
"""Rotary embeddings whose frequencies do not depend on the batch; dynamic NTK's only beyond the trained length, which
`sweeptune.training.session.check_positions` refuses."""
ADAPTER = "default"


@dataclass(eq=False)
class Fused:
    """The fast paths of a model.

    Attributes:
        decoder: The model without its head.
        head: The output embedding.
        blocks: One for each layer.
        compute: What is computed in.
        stash: Where blocks' inputs wait in the host's memory.
    """

    decoder: Any
    head: Any
    blocks: list[Block]
    compute: torch.dtype
    stash: Stash | None = None
    cached: bool = False
    """Whether the present forward pass goes on from a cache, which is transformers' own affair."""
    casts: list[tuple[torch.Tensor, torch.Tensor, float]] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Final hidden states [b * t, d] for what the model's forward would get."""
        found: torch.Tensor = self.decoder(**inputs).last_hidden_state
        return found.reshape(-1, found.shape[-1])

    def summed(self, inputs: dict[str, Any], places: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the negative log-likelihood of ``targets`` [k] at ``places`` [k] of the b * t positions."""
        return summed_loss(self.hidden(inputs), self.head, places, targets, self.compute)

    def each(self, inputs: dict[str, Any], places: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As `summed`, of each token, without gradients: fp32 [k]."""
        return token_losses(self.hidden(inputs), self.head, places, targets, self.compute)


def fused(model: torch.nn.Module) -> Fused | None:
    """The fast paths that `fuse` put into a model, None where there are none."""
    found: Fused | None = model.__dict__.get(FUSED)
    return found


class Choice(NamedTuple):
    """Which kernels a run uses: ``fused`` or ``plain``, and why."""

    name: str
    reason: str


def install(model: Any, wanted: str, device: torch.device, compute: torch.dtype, checkpointing: bool | str) -> Choice:
    """Choose a run's kernels, and put them into its model.

    Args:
        model: With its adapters on.
        wanted: ``hardware.kernels``.
        device: Where the model is.
        compute: What is computed in.
        checkpointing: ``hardware.gradient_checkpointing``.

    Raises:
        ConfigError: Only fused kernels can do what ``checkpointing`` asks for, and they cannot be used.
    """
    reason = None if wanted == "plain" else machine_lacks(device)
    return install_unless(reason or plain_reason(model, wanted, compute), model, compute, checkpointing)


def install_unless(
    reason: str | None, model: Any, compute: torch.dtype, checkpointing: bool | str, **recomputing: Any
) -> Choice:
    """`install`, where it is known already what speaks against fused kernels.

    ``recomputing``: further options of torch's checkpointing, which plain code recomputes with.
    """
    if reason is None:
        fuse(model, compute, recompute=bool(checkpointing), offload=checkpointing == "offload")
        return Choice("fused", "a model and a GPU that they are made for")
    if checkpointing == "offload":
        raise ConfigError(
            f"hardware.gradient_checkpointing=offload: needs the fused kernels, and {reason}. Use "
            "hardware.gradient_checkpointing=true"
        )
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.17 has the older name only
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False, **recomputing})
    return Choice("plain", reason)


def plain_reason(model: Any, wanted: str, compute: torch.dtype) -> str | None:
    """Why a run does without fused kernels whatever its device; None where nothing speaks against them."""
    if wanted == "plain":
        return "hardware.kernels=plain"
    return "they are made for hardware.precision=bf16" if compute is not torch.bfloat16 else obstacle(model)


def machine_lacks(device: torch.device) -> str | None:
    """What a machine lacks for fused kernels; None where it has all."""
    if device.type != "cuda":
        return "they need a CUDA GPU"
    return None if ops.has_triton() else "the package triton is not installed"


def obstacle(model: Any) -> str | None:
    """Why a model cannot take the fast paths; None where it can."""
    base, layers = _parts(model)
    if not layers:
        return f"the layers of a {type(base).__name__} are not known to it"
    scaling: Any = None
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            scaling = scaling or module.scaling
            if any(isinstance(rate, torch.nn.Dropout) and rate.p for rate in module.lora_dropout.values()):
                return "method.dropout is above 0"
            if any(getattr(module, "use_dora", {}).values()):
                return "DoRA scales each row of the weight anew"
            if module.fan_in_fan_out or list(module.lora_A) != [ADAPTER] or module.scaling != scaling:
                return f"the adapter of {name} is not a plain one"
    for layer in layers:
        if type(layer).__name__ not in LAYERS:
            return f"a {type(layer).__name__} is not known to it"
        if layer.mlp.config.hidden_act not in ("silu", "swish"):
            return f"the activation {layer.mlp.config.hidden_act} is not SwiGLU's"
        for linear in _linears(layer):
            weight = _base(linear)
            if type(weight) not in (torch.nn.Linear, Fp8Linear) and not _is_nf4(weight):
                return f"a weight is stored as {type(weight).__name__}"
            if weight.bias is not None:
                return "its linear layers have biases"
    config = base.config.get_text_config()
    if getattr(config, "attention_dropout", 0.0):
        return "its attention has dropout"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ROTARY:
        return f"the rotary embedding {rope.get('rope_type')} depends on the batch"
    head = base.get_output_embeddings()
    if not (type(head) is torch.nn.Linear or _is_nf4(head)) or head.bias is not None:
        return "its head is not a plain linear layer"
    return None


def _parts(model: Any) -> tuple[Any, Sequence[Any]]:
    """The model without PEFT's wrapping, and its decoder layers where they look like Llama's."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(base.get_decoder(), "layers", ())
    known = all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in layers)
    return base, list(layers) if known else ()


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(getattr(attention, f"{name}_proj") for name in "qkvo"),
        *(getattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")),
    ]


def _base(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _is_nf4(module: Any) -> bool:
    return isinstance(module, bnb.nn.Linear4bit) and module.weight.quant_type == "nf4"


def _projection(module: Any) -> Projection:
    if not isinstance(module, LoraLayer):
        return Projection(module)
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    return Projection(module.get_base_layer(), a, b, module.scaling[ADAPTER])


def fuse(model: Any, compute: torch.dtype, *, recompute: bool = False, offload: bool = False) -> Fused:
    """Give a model the fast paths.

    Args:
        model: A model that `obstacle` has nothing against, with its adapters on.
        compute: What is computed in.
        recompute: Keep only each block's input, and compute the rest again going backward.
        offload: Keep that in the host's memory.

    Returns:
        What `fused` finds from now on.

    Example:
        >>> fuse(model, torch.bfloat16).summed(inputs, places, targets).backward()
    """
    base, layers = _parts(model)
    decoder = base.get_decoder()
    stash = Stash() if offload else None
    found = Fused(decoder, base.get_output_embeddings(), [], compute, stash)
    for layer in layers:
        q, k, v, out, gate, up, down = map(_projection, _linears(layer))
        qkv, last, gate_up, end = (Group(parts, compute) for parts in ([q, k, v], [out], [gate, up], [down]))
        block = Block(layer, qkv, last, gate_up, end, compute)
        block.recompute, block.stash = recompute or offload, stash
        found.blocks.append(block)
        found.casts += [cast for group in block.groups for cast in group.casts()]
        _replace(found, layer, partial(_layer_forward, layer, block, type(layer).forward))
    _replace(found, decoder.norm, partial(_norm_forward, decoder.norm, compute))
    if hasattr(decoder, "rotary_emb"):
        rotary = decoder.rotary_emb
        _replace(found, rotary, partial(_rotary_forward, found, rotary, type(rotary).forward))
    handle = decoder.register_forward_pre_hook(partial(_begin, found), with_kwargs=True)
    found.undo.append(handle.remove)
    if stash is not None:
        found.undo.append(stash.clear)
    model.__dict__[FUSED] = found
    return found


def unfuse(model: Any) -> None:
    """Take the fast paths out again: before adapters are merged, or layers replaced."""
    found: Fused | None = model.__dict__.pop(FUSED, None)
    for undo in found.undo if found is not None else ():
        undo()


def _replace(found: Fused, module: Any, forward: Callable[..., Any]) -> None:
    module.forward = forward
    found.undo.append(lambda: module.__dict__.pop("forward", None))


def _begin(found: Fused, _: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> None:
    found.cached = options.get("past_key_values") is not None or bool(options.get("use_cache"))
    refresh(found.casts)
    if found.stash is not None:
        found.stash.clear()


def _layer_forward(
    layer: Any,
    block: Block,
    plain: Callable[..., torch.Tensor],
    hidden_states: torch.Tensor,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """A decoder layer's forward."""
    if past_key_values is not None or position_embeddings is None:
        return plain(
            layer,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    cos, sin = (t.reshape(-1, t.shape[-1]) for t in position_embeddings)
    call = Call(cos, sin, partial(_attend, layer.self_attn, attention_mask, kwargs))
    hidden = hidden_states.to(block.compute)
    if torch.is_grad_enabled():
        y: torch.Tensor = BlockFunction.apply(hidden, block, call, *block.trained)  # type: ignore[no-untyped-call]
        return y
    with torch.autocast(hidden.device.type, enabled=False):
        return block.forward(hidden, call, keep=False)[0]


def _attend(
    module: Any, mask: Any, kwargs: dict[str, Any], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """The model's own attention back-end, as transformers' attention modules call it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    interface: Any = ALL_ATTENTION_FUNCTIONS
    attend = interface.get_interface(module.config._attn_implementation, _eager(module))
    # Qwen 3's modules know their window, which not every layer has; Mistral's look it up
    known = module if hasattr(module, "sliding_window") else module.config
    window = getattr(known, "sliding_window", None)
    options = kwargs | ({"sliding_window": window} if window is not None else {})
    found: torch.Tensor = attend(module, query, key, value, mask, dropout=0.0, scaling=module.scaling, **options)[0]
    return found


def _eager(module: Any) -> Any:
    """transformers' plain attention for this kind of model."""
    import sys

    return sys.modules[type(module).__module__].eager_attention_forward


def _norm_forward(norm: Any, compute: torch.dtype, hidden: torch.Tensor) -> torch.Tensor:
    """The last norm's forward."""
    found: torch.Tensor = NormFunction.apply(hidden.to(compute), norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return found


class NormFunction(torch.autograd.Function):
    """`sweeptune.kernels.ops.rms_norm` for autograd: ``apply(x, weight, eps)``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalise x [..., d]."""
        rows = x.detach().reshape(-1, x.shape[-1])
        y, rstd, _ = ops.rms_norm(rows, weight.detach(), eps)
        ctx.save_for_backward(rows, weight, rstd)
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Gradients of x and of the weight."""
        rows, weight, rstd = ctx.saved_tensors
        dy = grad.reshape(rows.shape).clone()  # it is overwritten, and may be somebody else's
        dx, dweight = ops.rms_norm_backward(dy, rows, weight.detach(), rstd, None, ctx.needs_input_grad[1])
        return dx.view_as(grad), dweight, None


@torch.no_grad()
def _rotary_forward(
    found: Fused, rotary: Any, plain: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor
) -> Any:
    """The rotary embedding's forward, without the look at the longest position that waits for the device."""
    if found.cached:
        return plain(rotary, x, position_ids)
    angles = position_ids[..., None].float() * rotary.inv_freq.to(device=x.device, dtype=torch.float)
    both = torch.cat((angles, angles), dim=-1)
    cos, sin = both.cos() * rotary.attention_scaling, both.sin() * rotary.attention_scaling
    return cos.to(x.dtype), sin.to(x.dtype)
