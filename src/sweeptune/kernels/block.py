"""A decoder block of the Llama family as one differentiable operation, its backward pass by hand.

    a = norm(x);  h = x + out(attend(rope(query(a)), rope(key(a)), value(a)))
    b = norm(h);  y = h + down(silu(gate(b)) * up(b))

Kept for the backward pass, in elements per token: x, h, query, key, value, the attention's output, gate and up. That is
all that needs a large product to be made again; both normalised inputs and silu(gate) * up are recomputed, which costs
a pass over memory each. With ``recompute`` only x is kept, with ``offload`` in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sweeptune.kernels import ops
from sweeptune.kernels.linear import Group
from sweeptune.kernels.offload import Stash

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention of query, key and value, [b, heads, t, width] each, to [b, t, heads, width]."""


class Call(NamedTuple):
    """What a block is told of a pass."""

    cos: torch.Tensor  # [positions, width]
    sin: torch.Tensor
    attend: Attend


@dataclass(eq=False)
class Saved:
    """What a block keeps between its passes; see the module's docstring."""

    x: torch.Tensor
    h: torch.Tensor
    attended: torch.Tensor
    """[b, t, heads * width], with the graph of the attention behind it."""
    leaves: tuple[torch.Tensor, ...]
    """Query, key and value, [b, heads, t, width]."""
    raw: tuple[torch.Tensor, torch.Tensor] | None
    """Query and key before their own norms (Qwen 3)."""
    gate: torch.Tensor
    up: torch.Tensor
    rstds: list[torch.Tensor]
    lows: list[torch.Tensor | None]
    """x A^T of each group, where it has adapters."""


@dataclass(eq=False)
class Norm:
    """Weight and epsilon of a root-mean-square norm."""

    module: Any

    @property
    def weight(self) -> torch.nn.Parameter:
        found: torch.nn.Parameter = self.module.weight
        return found

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        """See `sweeptune.kernels.ops.rms_norm`."""
        return ops.rms_norm(x, self.weight.detach(), self.module.variance_epsilon, residual)

    def again(self, x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
        """The normalised x, a second time."""
        return ops.rms_apply(x, self.weight.detach(), rstd)

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, rstd: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `sweeptune.kernels.ops.rms_norm_backward`."""
        trains = self.weight.requires_grad
        return ops.rms_norm_backward(dy, x, self.weight.detach(), rstd, residual, trains)


class Block:
    """The parts of a decoder layer, and its two passes.

    Args:
        layer: A decoder layer of transformers whose parts have Llama's names; query and key may have their own norms.
        qkv: Query, key and value.
        out: The projection behind the attention.
        gate_up: Gate and up.
        down: The projection that ends the block.
        compute: What is computed in.
    """

    def __init__(self, layer: Any, qkv: Group, out: Group, gate_up: Group, down: Group, compute: torch.dtype) -> None:
        attention = layer.self_attn
        self.width = attention.head_dim
        self.compute = compute
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down
        self.first, self.second = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.heads = [Norm(getattr(attention, f"{x}_norm")) for x in "qk" if hasattr(attention, f"{x}_norm")]
        self.late = max(gate_up.widest, down.widest) <= ops.LATE_RANK
        self.recompute = False
        self.stash: Stash | None = None
        norms = [norm.weight for norm in (self.first, self.second, *self.heads)]
        self.trained: list[torch.nn.Parameter] = [
            *qkv.trained,
            *out.trained,
            *gate_up.trained,
            *down.trained,
            *(weight for weight in norms if weight.requires_grad),
        ]

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        """All linear layers."""
        return self.qkv, self.out, self.gate_up, self.down

    def forward(
        self, hidden: torch.Tensor, call: Call, *, keep: bool, result: bool = True
    ) -> tuple[torch.Tensor, Saved | None]:
        """The block's output [b, t, d] for its input, and what the backward pass needs.

        Args:
            hidden: [b, t, d].
            call: Positions and attention.
            keep: Whether a backward pass follows.
            result: Whether the output is wanted; without it the last product is not made.
        """
        rows, length, size = hidden.shape
        x = hidden.reshape(-1, size).contiguous()
        a, rstd_x, _ = self.first.forward(x)
        (query, key, value), low_qkv = self.qkv.forward(a)
        del a
        raw, rstds = None, [rstd_x]
        if self.heads:
            raw = query.view(-1, self.width), key.view(-1, self.width)
            normed = [norm.forward(part) for norm, part in zip(self.heads, raw, strict=True)]
            query, key = (found[0].view(len(x), -1) for found in normed)
            rstds += [found[1] for found in normed]
        ops.rope_(self._heads(query), self._heads(key), call.cos, call.sin)
        parts = [t.view(rows, length, -1, self.width).transpose(1, 2) for t in (query, key, value)]
        del query, key, value
        if keep:
            with torch.enable_grad():
                leaves = [part.detach().requires_grad_() for part in parts]
                attended = call.attend(*leaves).reshape(rows, length, -1)
        else:
            leaves, attended = parts, call.attend(*parts).reshape(rows, length, -1)
        del parts
        (mixed,), low_out = self.out.forward(attended.detach().view(len(x), -1))
        b, rstd_h, h = self.second.forward(mixed, x)
        del mixed
        (gate, up), low_gate_up = self.gate_up.forward(b, add=not self.late)
        del b
        y, low_down = h, None  # the backward pass makes the latter where it is missing
        if result:
            (y,), low_down = self.down.forward(ops.swiglu(gate, up, *self._late(low_gate_up)), into=h)
        saved = None
        if keep:
            lows = [low_qkv, low_out, low_gate_up, low_down]
            saved = Saved(x, h, attended, (*leaves,), raw, gate, up, [*rstds, rstd_h], lows)
        return y.view(rows, length, size), saved

    def _late(self, lows: torch.Tensor | None) -> tuple[ops.Low | None, ops.Low | None]:
        """What the adapters of gate and up add, where that is left to the kernel behind them."""
        return (self.gate_up.low(0, lows), self.gate_up.low(1, lows)) if self.late else (None, None)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1, self.width)

    def backward(
        self, grad: torch.Tensor, saved: Saved, call: Call, want_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradients of the input, where wanted, and of what trains, in the order of ``trained``; ends ``saved``."""
        dy = grad.reshape(-1, grad.shape[-1]).contiguous()
        dh, low_grads, norm_h = self._backward_mlp(dy, saved)
        dattended, into_low = self.out.into_input([dh])
        out_grads = self.out.into_trained([dh], saved.attended.detach().view(len(dh), -1), saved.lows[1], into_low)
        with torch.enable_grad():
            parts = torch.autograd.grad(saved.attended, saved.leaves, dattended.view_as(saved.attended))
        del dattended
        dq, dk, dv = (part.transpose(1, 2).reshape(len(dh), -1).contiguous() for part in parts)
        ops.rope_(self._heads(dq), self._heads(dk), call.cos, call.sin, backward=True)
        norm_heads: list[torch.Tensor | None] = []
        if saved.raw is not None:
            found = [
                norm.backward(part.view(-1, self.width), raw, rstd)
                for norm, part, raw, rstd in zip(self.heads, (dq, dk), saved.raw, saved.rstds[1:3], strict=True)
            ]
            dq, dk = (dx.view(len(dh), -1) for dx, _ in found)
            norm_heads = [weight for _, weight in found]
        a = self.first.again(saved.x, saved.rstds[0])
        grads = [dq, dk, dv]
        dx, norm_x, into_low = None, None, None
        if want_input or self.first.weight.requires_grad:
            da, into_low = self.qkv.into_input(grads)
            dx, norm_x = self.first.backward(da, saved.x, saved.rstds[0], dh)
        else:
            into_low = self.qkv.into_low(grads)
        qkv_grads = self.qkv.into_trained(grads, a, saved.lows[0], into_low)
        norms = [g for g in (norm_x, norm_h, *norm_heads) if g is not None]
        return (dx.view_as(grad) if dx is not None else None), [*qkv_grads, *out_grads, *low_grads, *norms]

    def _backward_mlp(
        self, dy: torch.Tensor, saved: Saved
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """Gradient of h, and those of gate, up and down, and of the norm in front of them."""
        act, into_low = self.down.into_input([dy], add=not self.late)
        late = None if into_low is None or self.down.a is None or not self.late else (into_low, self.down.a.t())
        ops.swiglu_backward_(act, saved.gate, saved.up, late, *self._late(saved.lows[2]))
        # act was its gradient, and is now what down has read
        down_grads = self.down.into_trained([dy], act, saved.lows[3], into_low)
        del act
        grads = [saved.gate, saved.up]
        b = self.second.again(saved.h, saved.rstds[-1])
        db, into_low = self.gate_up.into_input(grads)
        gate_up_grads = self.gate_up.into_trained(grads, b, saved.lows[2], into_low)
        del b, grads
        saved.gate = saved.up = dy  # no longer needed
        dh, norm = self.second.backward(db, saved.h, saved.rstds[-1], dy)
        return dh, [*gate_up_grads, *down_grads], norm


class BlockFunction(torch.autograd.Function):
    """`Block` for autograd: ``apply(hidden, block, call, *block.trained)``."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, block: Block, call: Call, *trained: torch.Tensor) -> torch.Tensor:
        """Run the block; keep what it needs, or its input alone."""
        with torch.autocast(hidden.device.type, enabled=False):
            y, saved = block.forward(hidden.detach(), call, keep=not block.recompute)
        ctx.block, ctx.call, ctx.saved = block, call, saved
        ctx.input = None if saved is not None else block.stash.put(hidden) if block.stash else hidden.detach()
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Run the block's backward pass; what it kept is given back on the way."""
        block, call, saved = ctx.block, ctx.call, ctx.saved
        ctx.saved = None
        with torch.autocast(grad.device.type, enabled=False), torch.no_grad():
            if saved is None:
                hidden = block.stash.get(ctx.input) if block.stash else ctx.input
                ctx.input = None
                if hidden is None:
                    raise RuntimeError("a fused block's backward pass runs once; hardware.kernels=plain can repeat it")
                saved = block.forward(hidden, call, keep=True, result=False)[1]
            dx, grads = block.backward(grad, saved, call, ctx.needs_input_grad[0])
        return dx, None, None, *grads
