"""What a piece of training allocates and frees, operation by operation, without computing anything.

The real code runs on fake tensors: they have shapes and dtypes, and no content. `Trace` watches every operation, notes
the memory behind each result when it appears and when its last tensor is gone, and so ends with what a GPU's allocator
would have been asked for. What CUDA kernels take for themselves inside an operation is added from `INSIDE`.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, QUANTIZED, ADAPTERS, GRADIENTS, OPTIMIZER = "weights", "quantized", "adapters", "gradients", "optimizer"
CASTS, ACTIVATIONS, LOGITS, TEMPORARY, WORKSPACE = "casts", "activations", "logits", "temporary", "workspace"

Section = tuple[str, int] | None
"""A layer's part of a pass, ("forward" or "backward", number of the layer); None outside of layers."""


@dataclass
class Segment:
    """What happened during a stretch.

    Attributes:
        events: A block's number where it is allocated, minus the number where it is freed; from 1.
        sizes: Bytes of every block, from number 1 at index 1.
        tags: What each block holds.
        marks: Where sections begin: index of the first event, and the section.
    """

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    tags: list[str] = field(default_factory=lambda: [""])
    marks: list[tuple[int, Section]] = field(default_factory=list)


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes allocations while it is active.

    Attributes:
        tag: What blocks hold that appear now.
        parameters: Storages of weights and of adapters, so that their casts are told apart.

    Example:
        >>> with FakeTensorMode(), record(Trace()) as segment:
        ...     x = torch.empty(1024)
        >>> segment.sizes[segment.events[0]]
        4096
    """

    def __init__(self, parameters: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tag = TEMPORARY
        self.found = Segment()
        self.parameters = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overlook memory that is there already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = 0, weakref.ref(storage)

    def retag(self, tensors: Iterable[torch.Tensor], tag: str) -> None:
        """Correct what blocks hold, where that is known only now."""
        for tensor in tensors:
            self.found.tags[self._known[tensor.untyped_storage()._cdata][0]] = tag

    def mark(self, section: Section) -> None:
        """Begin a section."""
        self.found.marks.append((len(self.found.events), section))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it allocated."""
        inside = INSIDE.get(func.name())
        hidden = [self._add(size, TEMPORARY) for size in inside(args)] if inside is not None else []
        out = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.parameters
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._see(value, CASTS if cast else self.tag)
        for number in hidden:
            self.found.events.append(-number)
        return out

    def _see(self, tensor: torch.Tensor, tag: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        number = self._add(storage.nbytes(), tag)

        def gone(_: Any, key: int = key, number: int = number) -> None:
            self._known.pop(key, None)
            self.found.events.append(-number)

        self._known[key] = number, weakref.ref(storage, gone)

    def _add(self, size: int, tag: str) -> int:
        found = self.found
        found.sizes.append(size)
        found.tags.append(tag)
        found.events.append(len(found.sizes) - 1)
        return len(found.sizes) - 1


@contextmanager
def record(trace: Trace) -> Iterator[Segment]:
    """Let a trace watch. Nothing is freed at the whim of the garbage collector meanwhile: traces must be repeatable."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with trace:
            yield trace.found
    finally:
        if collecting:
            gc.enable()


def _int8_product(args: Any) -> list[int]:
    size = args[0].numel() // args[0].shape[-1] * args[1].shape[0]
    return [4 * size, 2 * size]  # the int32 sums, and fp16 before bf16


def _nf4_product(args: Any) -> list[int]:
    size = args[2][0] * args[2][1]
    return [2 * size, size // 16]  # the weight in bf16, for more rows than a fused kernel takes; constants in fp32


INSIDE: dict[str, Callable[[Any], list[int]]] = {
    "bitsandbytes::int8_scaled_mm": _int8_product,
    "bitsandbytes::gemm_4bit": _nf4_product,
}
"""Operation -> bytes of what its CUDA kernel allocates for itself (bitsandbytes 0.50, backends/cuda/ops.py)."""
