"""What bf16 loses of an adapter's first updates: losses of the first steps in fp32, in plain bf16 and by fused kernels.

    python bench/small_updates.py          15 s on a CPU, where the kernels' plain twins compute what they do

A model of Llama's kind with random weights learns one batch with LoRA on all linear layers. All three start from the
same numbers. What an adapter has learned in a step is smaller than half a step of bf16 for most of a layer's outputs:
added to an output that is rounded already, as PEFT's layers do, it is lost there. The fused path adds it before.
"""

from __future__ import annotations

import argparse

import torch
from common import head, line, positive
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sweeptune.kernels.fuse import fuse
from sweeptune.tracking.console import setup_logging


def model_of(options: argparse.Namespace, dtype: torch.dtype) -> torch.nn.Module:
    """The model with its adapters in fp32; all begin as numbers of bf16, whatever they are stored in."""
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        attn_implementation="sdpa",
    )
    torch.manual_seed(options.seed)
    base = LlamaForCausalLM(config).to(torch.bfloat16).to(dtype)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    return model


def losses(model: torch.nn.Module, batch: torch.Tensor, options: argparse.Namespace, autocast: bool) -> list[float]:
    """Before each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=0.0)
    found = []
    for _ in range(options.steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def main() -> None:
    """Train the three, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=positive, default=6)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    setup_logging(None)  # what libraries warn of stays out of the table
    batch = torch.randint(0, 4000, (2, 256), generator=torch.Generator().manual_seed(options.seed))
    columns = [f"step {number}" for number in range(1, options.steps + 1)]
    print("\n".join(head(["loss", *columns, "of the first step kept"])))
    exact = 0.0
    for name in ("fp32", "bf16, plain", "bf16, fused"):
        model = model_of(options, torch.float32 if name == "fp32" else torch.bfloat16)
        if name == "bf16, fused":
            fuse(model, torch.bfloat16)
        found = losses(model, batch, options, autocast=name != "fp32")
        exact = exact or found[0] - found[1]
        print(line([name, *(f"{loss:.4f}" for loss in found), f"{(found[0] - found[1]) / exact:.0%}"]), flush=True)


if __name__ == "__main__":
    main()
