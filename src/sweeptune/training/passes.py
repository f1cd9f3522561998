"""The passes of a run, traced: what a pass of training, a later one of the same step, and one of evaluation allocate.

The model is the run's own with `DEPTH` layers, or all of them where they are not alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sweeptune.config.schema import Config, OptimConfig
from sweeptune.data.collate import Batch
from sweeptune.kernels import head, ops
from sweeptune.kernels.attention import IMPLEMENTATIONS, prepare
from sweeptune.kernels.fuse import Fused, fused, install_unless, plain_reason
from sweeptune.methods import METHODS
from sweeptune.methods.quantized import nf4
from sweeptune.models import load_config
from sweeptune.models.tables import HostEmbedding, keep_embedding_on_host
from sweeptune.training import trace as tags
from sweeptune.training.loss import nll_at
from sweeptune.training.optimizer import state_sizes
from sweeptune.training.patterns import DEPTH, LAST, NotAlike, Pattern, Split, deepen, pattern
from sweeptune.training.placement import Placement, place
from sweeptune.training.shapes import FLAT, Shape, Shapes, backend
from sweeptune.training.stand_ins import constants, cuda_kernels, nf4_layer, quantize
from sweeptune.training.trace import Segment, Trace, record

CUBLAS_WORKSPACE = 32 * 2**20
"""What cuBLAS takes on a Hopper GPU for each of the threads that compute, forward and backward (8 MiB on others)."""
FLEX_BLOCK = 128
SMALL, LARGE = (3, 256, 94, 593), (5, 384, 157, 1447)
"""Rows, length, positions and tokens of the two micro-batches that are traced; no two figures of them are alike."""

Resident = tuple[str, int]
"""What a block holds that stays, and its bytes."""


@dataclass
class Passes:
    """All that a run allocates.

    Attributes:
        resident: Weights, and the workspace of cuBLAS.
        states: The optimiser's states outside of pages.
        paged: Bytes of its pages.
        evaluation: A batch of evaluation.
        flat: Whether all samples stand behind each other, so that nothing is padded.
        kernels: fused or plain.
        offloaded: Bytes that wait in the host's memory between forward and backward, for each token.
        in_backward: Whether a gradient is dropped as soon as it is whole.
    """

    resident: list[Resident]
    states: list[Resident]
    paged: int
    evaluation: Pattern
    flat: bool
    kernels: str
    offloaded: int
    in_backward: bool
    _make: Callable[[bool, bool, bool, bool], Pattern]
    _made: dict[tuple[bool, bool, bool, bool], Pattern] = field(default_factory=dict)

    def train(self, shape: Shape, *, later: bool, alone: bool = False) -> Pattern:
        """A pass of training.

        Args:
            shape: Its micro-batch.
            later: There are gradients already. With ``optim.in_backward`` they are taken to stay until the end of the
                step, which changes no peak: where backward begins, all of them are there.
            alone: It is the only one of its step.
        """
        key = (later, shape.padded and not self.flat, shape.packed, alone and self.in_backward)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]


def trace_passes(config: Config, shapes: Shapes) -> Passes:
    """Trace the passes of a run on one GPU.

    Raises:
        ConfigError: The model's shape is not known, or the method does not fit it.
    """
    layers = load_config(config.model).get_text_config().num_hidden_layers
    if layers > DEPTH and alike(load_config(config.model)):
        try:
            return _trace(config, shapes, layers, shallow=True)
        except NotAlike:
            pass
    return _trace(config, shapes, layers, shallow=False)


def alike(config: PreTrainedConfig) -> bool:
    """Whether all layers are of one kind."""
    text = config.get_text_config()
    kinds = (getattr(text, "layer_types", None), getattr(text, "no_rope_layers", None))
    return all(kind is None or len(set(kind)) == 1 for kind in kinds)


def _trace(config: Config, shapes: Shapes, layers: int, *, shallow: bool) -> Passes:
    placement = place(config)
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # one for all: tensors of another one would be copied
    with mode, cuda_kernels():
        model = build(config, placement, DEPTH if shallow else None)
    fast = fused(model)
    split = None if fast is None else Split(head.chunk_rows(fast.head.out_features), backend(config) in FLAT)

    def make(run: Callable[[Shape, Trace], None], padded: bool, packed: bool) -> Pattern:
        found = []
        for rows, length, positions, tokens in (SMALL, LARGE):
            shape = Shape(rows, length, positions, tokens, padded, packed)
            with mode, cuda_kernels():
                trace = Trace(model.parameters())
                trace.ignore(tensor for _, _, tensor in persistent(model))
                with sectioned(model, trace), record(trace) as segment:
                    run(shape, trace)
                settle(segment)
            found.append((shape, segment))
        return pattern(found[0], found[1], layers if shallow else None, split)

    def train(later: bool, padded: bool, packed: bool, drop: bool) -> Pattern:
        return make(
            lambda shape, trace: train_pass(config, placement, model, shape, trace, later, drop), padded, packed
        )

    def evaluate(shape: Shape, trace: Trace) -> None:
        model.eval()
        trace.tag = tags.ACTIVATIONS
        with torch.no_grad(), autocast(placement):
            forward(model, shape, config, trace)

    stays = [(layer, (tag, tensor.untyped_storage().nbytes())) for layer, tag, tensor in persistent(model)]
    states = list(optimizer_states(model, config.optim))
    depth = layers if shallow else DEPTH
    kept = deepen(stays, depth) + [(tags.WORKSPACE, CUBLAS_WORKSPACE)] * 2
    spread = deepen(states, depth)
    return Passes(
        resident=kept,
        states=[(tags.OPTIMIZER, size) for size, paged in spread if not paged],
        paged=sum(size for size, paged in spread if paged),
        evaluation=make(evaluate, shapes.eval.padded, False),
        flat=backend(config) in FLAT,
        kernels="plain" if fast is None else "fused",
        offloaded=0 if fast is None or fast.stash is None else layers * fast.head.in_features * fast.compute.itemsize,
        in_backward=config.optim.in_backward,
        _make=train,
    )


def settle(segment: Segment) -> None:
    """Sort what is freed at one moment, which Python may do in any order."""
    begin = 0
    events = segment.events
    cuts = {at for at, _ in segment.marks}
    for at in range(len(events) + 1):
        if at == len(events) or events[at] > 0 or at in cuts:
            events[begin:at] = sorted(events[begin:at])
            begin = at + 1 if at < len(events) and events[at] > 0 else at


def build(config: Config, placement: Placement, depth: int | None) -> PreTrainedModel:
    """The trainable model, of fake tensors: what `sweeptune.training.session.build_model` makes of real ones."""
    shape = load_config(config.model)
    text = shape.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if rope and rope.get("rope_type") == "dynamic":
        rope["rope_type"] = "default"  # dynamic NTK looks at the length of what it gets; in memory they are alike
    if depth is not None:
        text.num_hidden_layers = depth
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:depth]
    chosen = backend(config)
    implementation = IMPLEMENTATIONS["varlen" if chosen in FLAT else "sdpa" if chosen == "flex" else chosen]
    model = AutoModelForCausalLM.from_config(shape, dtype=placement.weights, attn_implementation=implementation)
    method = METHODS[config.method.name]
    if method.quantization is not None:
        quantize(model, "nf4" if method.quantization is nf4 else "int8", placement.compute)
    if config.model.head == "nf4":
        model.set_output_embeddings(nf4_layer(model.get_output_embeddings(), placement.compute))
    if config.model.embedding == "cpu":
        keep_embedding_on_host(model, torch.device("cpu"))
    trainable = method.attach(model, config.method)
    hardware, reason = config.hardware, plain_reason(trainable, config.hardware.kernels, placement.compute)
    # Generators have no content here that could be kept for dropout.
    kept = {"preserve_rng_state": False}
    install_unless(reason, trainable, placement.compute, hardware.gradient_checkpointing, **kept)
    return trainable


def persistent(model: PreTrainedModel) -> Iterator[tuple[int | None, str, torch.Tensor]]:
    """What stays in device memory during a run, once each: its layer, tag and tensor."""
    adapted, seen = hasattr(model, "peft_config"), set()
    for name, module in model.named_modules():
        if isinstance(module, HostEmbedding):
            continue
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False), *constants(module)]
        for tensor in own:
            if (key := tensor.untyped_storage()._cdata) in seen:
                continue
            seen.add(key)
            tag = tags.WEIGHTS
            if tensor.requires_grad and adapted:
                tag = tags.ADAPTERS
            elif tensor.dtype in (torch.uint8, torch.int8) or not isinstance(tensor, torch.nn.Parameter):
                tag = tags.QUANTIZED if hasattr(module, "weight") else tags.WEIGHTS
            yield layer_of(name), tag, tensor
    fast = fused(model)
    for number, block in enumerate(fast.blocks if fast is not None else ()):
        for group in block.groups:
            for copy in (group.a, *group.b):
                if copy is not None:
                    yield number, tags.CASTS, copy


def layer_of(name: str) -> int | None:
    """The number of the layer that a module or a parameter belongs to."""
    found = re.search(r"\.layers\.(\d+)(\.|$)", f".{name}")
    return int(found.group(1)) if found else None


@contextmanager
def sectioned(model: PreTrainedModel, trace: Trace) -> Iterator[None]:
    """Mark where layers begin and end, forward and backward."""
    layers = {layer_of(name): m for name, m in model.named_modules() if re.search(r"(^|\.)layers\.\d+$", name)}
    handles, fast = [], fused(model)

    def before(number: int) -> Callable[..., None]:
        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            if trace.tag != tags.ACTIVATIONS:
                return None  # recomputing, in the backward pass
            inputs, *others = args or (kwargs["hidden_states"],)
            if fast is not None:
                inputs = inputs.to(fast.compute)  # the first layer would: a block that no other layer has
            trace.mark(("forward", number))
            if number == 0 and inputs.requires_grad:
                inputs.register_hook(lambda _: trace.mark(None))
            return ((inputs, *others), kwargs) if args else ((), kwargs | {"hidden_states": inputs})

        return enter

    def after(number: int) -> Callable[..., None]:
        def leave(module: Any, args: Any, output: Any) -> None:
            if trace.tag != tags.ACTIVATIONS:
                return
            if number == LAST:
                trace.mark(None)  # what is freed between two layers belongs to the first
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: trace.mark(("backward", number)))

        return leave

    for number, layer in layers.items():
        if number is not None and number <= LAST:
            handles.append(layer.register_forward_pre_hook(before(number), with_kwargs=True))
            handles.append(layer.register_forward_hook(after(number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train_pass(
    config: Config,
    placement: Placement,
    model: PreTrainedModel,
    shape: Shape,
    trace: Trace,
    later: bool,
    drop: bool = False,
) -> None:
    """Forward and backward of a micro-batch; its gradients stay, or are dropped one by one."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter) if later else None
    begin = len(trace.found.events)
    trace.tag = tags.ACTIVATIONS
    with autocast(placement):
        loss = forward(model, shape, config, trace).sum()
    trace.tag = tags.TEMPORARY

    def drop_gradient(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        trace.retag([parameter.grad], tags.GRADIENTS)
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(drop_gradient) for p in trained] if drop else []
    (loss / shape.tokens).backward()  # type: ignore[no-untyped-call]
    del loss
    for handle in handles:
        handle.remove()
    if later:
        # They were there before: the first micro-batch's pattern has them.
        own = set(trace.found.events[:begin])
        trace.found.events[:] = [event for event in trace.found.events if abs(event) not in own]
        trace.found.marks[:] = [(at - begin, section) for at, section in trace.found.marks]
    else:
        trace.retag((p.grad for p in trained if p.grad is not None), tags.GRADIENTS)
    events, marks = len(trace.found.events), len(trace.found.marks)
    for parameter in trained:
        parameter.grad = None
    del trace.found.events[events:], trace.found.marks[marks:]


def forward(model: PreTrainedModel, shape: Shape, config: Config, trace: Trace) -> torch.Tensor:
    """The loss of a micro-batch: what `sweeptune.training.loss` does."""
    inputs, targets = batch(shape, config, model.config)
    if (fast := fused(model)) is not None:
        return fused_loss(fast, inputs, Split(None, backend(config) in FLAT), shape, trace)
    positions = torch.zeros(shape.positions, dtype=torch.long)

    def at_head(*_: Any) -> None:
        trace.tag = tags.LOGITS

    handle = model.get_output_embeddings().register_forward_pre_hook(at_head)
    try:
        return nll_at(model, inputs, targets[:, positions], positions)
    finally:
        handle.remove()


def fused_loss(fast: Fused, inputs: dict[str, Any], split: Split, shape: Shape, trace: Trace) -> torch.Tensor:
    """The loss of a micro-batch with fused kernels, whose logits are made in two chunks (see `Split`)."""
    places = torch.zeros(split.places(shape), dtype=torch.long)
    stand_in = ops.cross_entropy_

    def noted(logits: torch.Tensor, targets: torch.Tensor, *, gradient: bool) -> torch.Tensor:
        trace.retag([logits], tags.LOGITS)
        return stand_in(logits, targets, gradient=gradient)

    with patch.object(head, "chunk_rows", lambda _: split.chunk(shape)), patch.object(ops, "cross_entropy_", noted):
        run = fast.summed if torch.is_grad_enabled() else fast.each
        return run(inputs, places, torch.zeros_like(places))


def batch(shape: Shape, config: Config, model_config: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs of a micro-batch as the attention back-end wants them, and the targets."""
    chosen = backend(config)
    if chosen in FLAT:
        ids = torch.zeros(1, shape.tokens, dtype=torch.long)
        ends = torch.zeros(shape.rows + 1, dtype=torch.int32)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": ids.clone(), "use_cache": False}
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "attention_mask": torch.empty(1, 1, 0, 0)}
        return inputs | {"max_length_q": shape.length, "max_length_k": shape.length}, ids[:, 1:]
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    places = torch.zeros_like(ids) if shape.packed else None
    if chosen == "flex":
        return {"input_ids": ids, "position_ids": places, "use_cache": False}, ids[:, 1:]
    made = Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if shape.padded else None,
        labels=ids,
        tokens=shape.tokens,
        loss_tokens=shape.tokens,
        lengths=(),
        position_ids=places,
        segments=torch.zeros(ids.shape, dtype=torch.int32) if shape.packed else None,
    )
    return prepare(made, model_config).inputs, ids[:, 1:]


def autocast(placement: Placement) -> AbstractContextManager[Any]:
    """Accelerate's autocast, on the CPU that fake tensors pretend to be on."""
    return nullcontext() if placement.compute is torch.float32 else torch.autocast("cpu", dtype=placement.compute)


def optimizer_states(model: PreTrainedModel, optim: OptimConfig) -> Iterator[tuple[int | None, tuple[int, bool]]]:
    """The optimiser's tensors: layer, bytes, and whether they are in pages."""
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            for state in state_sizes(parameter, optim.name, optim.rounding):
                yield layer_of(key), state
