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


def tables(config: Config) -> Iterator[str]:
    """``model.embedding=cpu`` needs a frozen embedding, ``model.head=nf4`` a quantised base, both two tables."""
    model, method = config.model, config.method.name
    if model.embedding == "cpu" and method == "full":
        yield (
            "model.embedding=cpu with method=full: the embedding trains, and only a frozen one can stay in host "
            "memory. Use model.embedding=device or a method with adapters (method=qlora)"
        )
    if model.head == "nf4" and method != "qlora":
        yield (
            f"model.head=nf4 with method={method}: only qlora has weights in 4 bits. Use model.head=plain or "
            "method=qlora"
        )
    if model.weights == "random" and (model.architecture or {}).get("tie_word_embeddings"):
        for key, chosen, plain in (("embedding", model.embedding, "device"), ("head", model.head, "plain")):
            if chosen != plain:
                yield (
                    f"model.{key}={chosen} with model={model.name}: its embedding and head are one table. "
                    f"Use model.{key}={plain}"
                )


MEMORY_RULES = (step_in_backward, rounding, tables)
