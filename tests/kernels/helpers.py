"""Small models of every kind that has fused kernels, and batches of every kind that they meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sweeptune.config.compose import compose
from sweeptune.data import collate_packs
from sweeptune.data.collate import Batch
from sweeptune.data.tokenize import Row
from sweeptune.kernels.fuse import fuse, unfuse
from sweeptune.methods import METHODS
from sweeptune.methods.quantized import keep_trainable_on_cpu
from sweeptune.models import load_model
from sweeptune.training.loss import summed_nll

CPU = torch.device("cpu")
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False, "max_position_embeddings": 512}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, tied": LLAMA | {"tie_word_embeddings": True},
    "internlm2": LLAMA | {"model_type": "internlm2"} | DYNAMIC,
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "head_dim": 16, "sliding_window": 8},
}


def packs(kind: str) -> list[tuple[Row, ...]]:
    """Rows of random ids: ``padded``, ``even``, or ``packed`` with several samples each."""
    generator = torch.Generator().manual_seed(3)

    def row(length: int) -> Row:
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        return Row(str(length), ids, [False] * 4 + [True] * (length - 4), length - 4)

    if kind == "packed":
        return [(row(11), row(7), row(14)), (row(17), row(9))]
    return [(row(length),) for length in ((23, 23, 23) if kind == "even" else (23, 12, 19))]


def batch(kind: str) -> Batch:
    """`packs` as tensors."""
    return collate_packs(packs(kind), 0, CPU)


def build(shape: str, method: str = "lora", attention: str = "sdpa", start: Path | None = None, **changed: Any) -> Any:
    """A model made trainable by a method, in fp32; norms and adapters are not as they begin: that would hide errors."""
    config = compose(["model=tiny", f"method={method}"])
    made = METHODS[method]
    settings = replace(config.model, architecture=SHAPES[shape], attention=attention)  # type: ignore[arg-type]
    quantization = made.quantization(torch.float32) if made.quantization else None
    base = load_model(settings, dtype=torch.float32, device=CPU, quantization=quantization, seed=1)
    torch.manual_seed(0)
    model = made.attach(base, replace(config.method, **changed))
    if made.start is not None and start is not None:
        made.start(model, start)
    if quantization is not None:
        keep_trainable_on_cpu(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p), alpha=0.2)
            elif "lora_B" in name:
                p.normal_(std=0.1)
    return model.train()


def gradients(model: Any, found: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss, and the gradient of everything that trains."""
    model.zero_grad(set_to_none=True)
    loss = summed_nll(model, found)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(model: Any, found: Batch, **options: bool) -> None:
    """Fused against plain: the loss to 1e-6, every gradient to 1e-5, relative; all is plain again behind it."""
    loss, expected = gradients(model, found)
    fuse(model, torch.float32, **options)
    try:
        fused_loss, ours = gradients(model, found)
    finally:
        unfuse(model)
    assert abs(fused_loss - loss) <= 1e-6 * loss
    assert ours.keys() == expected.keys() and expected
    for name, grad in expected.items():
        off = float((ours[name] - grad).norm() / grad.norm())
        assert off <= 1e-5, f"{name}: {off:.1e}"
