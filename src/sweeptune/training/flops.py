"""What a token costs in floating-point operations, and what the machine could do.

Per token, N the weights without the input embedding (Kaplan et al. 2020, arXiv 2001.08361, section 2.1): 2N forward,
2N for the gradient of the activations, 2N for the gradient of weights that train. So 6N for full fine-tuning, 4N for a
frozen base plus 6 per adapter weight. The head counts for loss positions only, attention from the sum of squared sample
lengths, and recomputation not at all.
"""

from __future__ import annotations

import time

import bitsandbytes as bnb
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sweeptune.kernels.attention import heads_of

# Dense peaks of the vendors' datasheets in TFLOP/s for (bf16 and fp16): substring of the device's name -> peak.
DENSE_TFLOPS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.1,
    "L40": 181.0,
    "L4": 121.0,
    "A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "T4": 65.0,
    "V100": 125.0,
    "B200": 2250.0,
}


def logical_size(parameter: torch.nn.Parameter) -> int:
    """Number of weights that a parameter stands for: 4-bit storage packs two into a byte."""
    if isinstance(parameter, bnb.nn.Params4bit) and parameter.quant_state is not None:
        return int(torch.Size(parameter.quant_state.shape).numel())
    return parameter.numel()


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Logical weights in total and those that train; tied weights count once."""
    return {
        "total": sum(logical_size(p) for p in model.parameters()),
        "trainable": sum(logical_size(p) for p in model.parameters() if p.requires_grad),
    }


def flops_per_token(
    model: PreTrainedModel, lengths: NDArray[np.int64], loss_share: float, *, frozen_base: bool
) -> float:
    """Model FLOPs of a training token, averaged over the samples.

    Args:
        model: The trainable model.
        lengths: Tokens of every sample, which is all that its attention sees, whatever row it shares.
        loss_share: Share of the tokens that bears loss and so reaches the head.
        frozen_base: Only adapters train: the base has no weight gradients.
    """
    config = model.config
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    sizes = {id(p): (logical_size(p), p.requires_grad) for p in model.parameters()}
    outside = {id(embedding), id(head)}
    base = 4 if frozen_base else 6
    # In a frozen base everything that trains is an adapter (or a magnitude of one), so it costs 6 per weight.
    body = sum(n * (6 if trains else base) for key, (n, trains) in sizes.items() if key not in outside)
    heads, _, width = heads_of(config)
    # Causal: QK^T and PV are 2 * s^2 * heads * width each for the full square, half of it for the triangle; backward
    # is twice.
    attention = 6 * config.num_hidden_layers * heads * width * float(np.square(lengths).sum() / lengths.sum())
    return float(body + base * logical_size(head) * loss_share + attention)


def measure_matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on random data on this device, the ceiling that was really there."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def vendor_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """The vendor's dense peak in FLOP/s for this device and dtype; None where it is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for key, tflops in DENSE_TFLOPS.items() if key in name), None)
