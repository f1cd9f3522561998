"""What a training step costs at the least: its matrix products, its attention, and the bytes that all else moves.

Pure arithmetic of shapes for ``bench/step_profile.py``, which measures the rates. The least is what cuBLAS's products
and an attention kernel leave to do when every pass between them reads what it needs once and writes its results once,
and nothing is computed twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sweeptune.kernels.attention import heads_of
from sweeptune.kernels.head import chunk_rows
from sweeptune.kernels.linear import ALIGNMENT
from sweeptune.kernels.ops import LATE_RANK

HALF = 2
"""Bytes of a number in bf16."""
NF4 = 0.5 + 1 / 64
"""Bytes of a weight in NF4: 4 bits, and one byte of constants for 64."""


@dataclass(frozen=True)
class Shape:
    """What a step computes on.

    Attributes:
        tokens: Of a step, in one pass.
        loss_tokens: Those that reach the head.
        rank: Of LoRA's adapters on all linear layers; 0: full fine-tuning.
        nf4: Whether the layers' weights are stored so.
        tied: Whether the head's weight is the embedding's.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    width: int
    vocabulary: int
    tokens: int
    loss_tokens: int
    rank: int = 0
    nf4: bool = False
    tied: bool = False

    @property
    def full(self) -> bool:
        """Whether every weight trains."""
        return not self.rank

    @property
    def groups(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Layers that read the same input: its width, and those of their outputs."""
        query, key = self.heads * self.width, self.key_heads * self.width
        return {
            "qkv": (self.hidden, (query, key, key)),
            "out": (query, (self.hidden,)),
            "gate, up": (self.hidden, (self.inner, self.inner)),
            "down": (self.inner, (self.hidden,)),
        }

    @property
    def block_weights(self) -> int:
        """Of the linear layers of all blocks."""
        return self.layers * sum(size * sum(outputs) for size, outputs in self.groups.values())


def shape_of(config: Any, tokens: int, loss_tokens: int, rank: int, nf4: bool) -> Shape:
    """The shape of a model's config."""
    text = config.get_text_config()
    heads, key_heads, width = heads_of(config)
    return Shape(
        hidden=text.hidden_size,
        inner=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        key_heads=key_heads,
        width=width,
        vocabulary=text.vocab_size,
        tokens=tokens,
        loss_tokens=loss_tokens,
        rank=rank,
        nf4=nf4,
        tied=bool(text.tie_word_embeddings),
    )


@dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [k, n].

    Attributes:
        layout: How a and b lie in memory: n row by row, t column by column.
        into: Whether it is added to what is there.
    """

    m: int
    n: int
    k: int
    layout: str = "nn"
    into: bool = False

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k


def products(shape: Shape) -> dict[Product, float]:
    """Every product of a step, and how often it is made.

    Forward y = x W^T, gradient of the input dy W, gradient of the weight dy^T x. What LoRA's adapters add to gate, up
    and the gradient of down's input is part of the SwiGLU kernel up to `LATE_RANK`. A frozen first block needs no
    gradient of its input.
    """
    found: defaultdict[Product, float] = defaultdict(float)
    n, layers = shape.tokens, shape.layers
    rank = -(-shape.rank // ALIGNMENT) * ALIGNMENT
    late = rank <= LATE_RANK
    for name, (size, outputs) in shape.groups.items():
        wanted = layers - 1 if name == "qkv" and not shape.full else layers
        for number, out in enumerate(outputs):
            # An adapter's product comes first, and the large one is added to it; so is down's to the residual.
            inside = late and name == "gate, up" if not shape.full else name != "down"
            found[Product(n, out, size, "nt", into=not inside)] += layers
            first = number == 0 and (shape.full or (late and name == "down"))
            found[Product(n, size, out, "nn", into=not first)] += wanted
            if shape.full:
                found[Product(out, size, n, "tn")] += layers
            else:
                if not (late and name == "gate, up"):
                    found[Product(n, out, rank, "nt")] += layers
                found[Product(n, rank, out, "nn")] += layers  # gradient of x A^T
                found[Product(out, rank, n, "tn")] += layers  # of B
        if not shape.full:
            ranks = rank * len(outputs)
            found[Product(n, ranks, size, "nt")] += layers
            found[Product(ranks, size, n, "tn")] += layers  # of A
            if not (late and name == "down"):
                found[Product(n, size, ranks, "nn")] += wanted
    rows = min(chunk_rows(shape.vocabulary), shape.loss_tokens)
    chunks = shape.loss_tokens / rows
    found[Product(rows, shape.vocabulary, shape.hidden, "nt")] += chunks
    found[Product(rows, shape.hidden, shape.vocabulary, "nn")] += chunks
    if shape.full:
        found[Product(shape.vocabulary, shape.hidden, rows, "tn", into=True)] += chunks
    return dict(found)


@dataclass(frozen=True)
class Bytes:
    """What a step has to read and write outside of products and attention."""

    norms: float
    rotary: float
    swiglu: float
    residual: float
    embedding: float
    loss: float
    dequantise: float
    optimiser: float

    @property
    def elementwise(self) -> float:
        """All but the optimiser's."""
        return float(sum(getattr(self, field.name) for field in fields(self) if field.name != "optimiser"))


def least_bytes(shape: Shape, trained: int, stored: int) -> Bytes:
    """`Bytes` of a step.

    Args:
        shape: What it computes on.
        trained: Bytes of all weights that train.
        stored: Bytes of the optimiser's states.
    """
    row, layers = HALF * shape.tokens * shape.hidden, shape.layers
    # Forward x -> a, then out, x -> h, b; backward (da, x, dh) -> dx, (db, h, dy) -> dh. The last norm: 2 and 3.
    norms = layers * row * (2 + 4 + 4 + 4) + row * 5
    rotary = layers * 4 * HALF * shape.tokens * (shape.heads + shape.key_heads) * shape.width  # in place, twice
    # Forward (gate, up) -> act, backward (dact, gate, up) -> dgate, dup.
    swiglu = layers * HALF * shape.tokens * shape.inner * (3 + 5)
    residual = layers * row  # h, which the product of down adds to; what else is added is in the norms
    embedding = 2 * row
    if shape.full:  # a gradient of every row, added to the head's where that is the same weight
        embedding += row + HALF * shape.vocabulary * shape.hidden * (2 if shape.tied else 1)
    loss = 2 * HALF * shape.loss_tokens * shape.vocabulary  # logits become their gradient
    loss += 2 * HALF * shape.loss_tokens * shape.hidden  # hidden states are gathered
    dequantise = 2 * shape.block_weights * (NF4 + HALF) if shape.nf4 else 0.0  # forward and backward
    # The norm of the gradient; then weights and states are read and written, and the gradient is read again.
    optimiser = trained + 3 * trained + 2 * stored
    return Bytes(norms, rotary, swiglu, residual, embedding, loss, dequantise, optimiser)


CLASSES = {
    "attention": r"sdpa|flash|fmha|attention|cudnn|dot_do_o",
    "optimiser": r"multi_tensor|adam|lpnorm|foreach|clip_grad",
    "products": r"gemm|nvjet|cutlass|xmma|cublas|splitk|wgmma|aten::(add|b)?mm\b",
}
"""Of kernels, by their names; what is left is elementwise."""


def kind_of(name: str) -> str:
    """The class of a kernel.

    Example:
        >>> kind_of("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT"), kind_of("_swiglu_backward")
        ('products', 'elementwise')
    """
    return next((kind for kind, words in CLASSES.items() if re.search(words, name, re.IGNORECASE)), "elementwise")


def by_kind(kernels: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums over (name, milliseconds) of each class."""
    found = dict.fromkeys((*CLASSES, "elementwise"), 0.0)
    for name, spent in kernels:
        found[kind_of(name)] += spent
    return found
