"""Rules of the settings that save memory and are right only under conditions."""

from __future__ import annotations

from collections.abc import Iterator

from sweeptune.config.schema import Config


def step_in_backward(config: Config) -> Iterator[str]:
    """``optim.in_backward`` cannot wait for the whole gradient."""
    if not config.optim.in_backward:
        return
    seen = "optim.in_backward=true"
    if config.optim.max_grad_norm > 0:
        yield (
            f"{seen} with optim.max_grad_norm={config.optim.max_grad_norm}: clipping needs the norm of the whole "
            "gradient, which never exists at once. Use optim.max_grad_norm=0 or optim.in_backward=false"
        )
    if config.hardware.precision == "fp16":
        yield (
            f"{seen} with hardware.precision=fp16: loss scaling must see the whole gradient before it allows a step. "
            "Use hardware.precision=bf16 (or fp32) or optim.in_backward=false"
        )
    if config.hardware.gpus_per_trial > 1:
        yield (
            f"{seen} with hardware.gpus_per_trial={config.hardware.gpus_per_trial}: gradients are added up over ranks "
            "when all of them are there. Use hardware.gpus_per_trial=1 or optim.in_backward=false"
        )


def rounding(config: Config) -> Iterator[str]:
    """``optim.rounding=stochastic`` is for weights that train in bf16, and an optimiser of ours."""
    if config.optim.rounding == "nearest":
        return
    seen = f"optim.rounding={config.optim.rounding}"
    if config.method.name != "full":
        yield (
            f"{seen} with method={config.method.name}: adapters train in fp32, which loses no update. "
            "Use optim.rounding=nearest, or method=full model.dtype=bf16"
        )
    elif config.model.dtype != "bf16":
        yield (
            f"{seen} with model.dtype={config.model.dtype}: only weights that are stored in bf16 are rounded. "
            "Use model.dtype=bf16 or optim.rounding=nearest"
        )
    if config.optim.name != "adamw":
        yield (
            f"{seen} with optim={config.optim.name}: bitsandbytes rounds to the nearest. Use optim=adamw or "
            "optim.rounding=nearest"
        )


MEMORY_RULES = (step_in_backward, rounding)
