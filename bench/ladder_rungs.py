"""The ladders of bench/ladder.py: every technique, one after the other, and what turns it on or off."""

from __future__ import annotations

from dataclasses import dataclass, replace

PLAIN = "hardware.kernels=plain"
CHECKPOINTING = "hardware.gradient_checkpointing=true"
OFFLOAD = "hardware.gradient_checkpointing=offload"
BF16 = "model.dtype=bf16"
IN_BACKWARD = ("optim.in_backward=true", "optim.max_grad_norm=0")


@dataclass(frozen=True)
class Rung:
    """One run."""

    name: str
    what: str
    """Its line in the table."""
    overrides: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    """Names in `ladder_patches.PATCHES`: what has no setting is taken away in the process."""
    before: str | None = None
    """The rung that it is compared with; None: the one above."""

    @property
    def kernels(self) -> str:
        """What the record has to say of its kernels."""
        return "plain" if PLAIN in self.overrides else "fused"


LORA = [
    Rung("sdpa", "plain code, rows padded, sdpa", (PLAIN, "model.attention=sdpa")),
    Rung("varlen", "plain code, varlen (flash) without padding", (PLAIN, "model.attention=varlen"), ("flash_rows",)),
    Rung("blocks", "fused blocks, logits made whole", (), ("whole_logits", "flash_rows", "adapters_alone")),
    Rung("loss", "+ fused loss", (), ("flash_rows", "adapters_alone")),
    Rung("rows", "+ the fastest kernel for rows of one length", (), ("adapters_alone",)),
    Rung("default", "+ adapters added on the way: **the default**"),
    Rung("fp8", "`method=lora_fp8`", ("method=lora_fp8",)),
    Rung("checkpointing_whole", "checkpointing, all recomputed", (CHECKPOINTING,), ("last_product",), "default"),
    Rung("checkpointing", "- the blocks' last product: `gradient_checkpointing=true`", (CHECKPOINTING,)),
    Rung("offload", "+ blocks' inputs on the host: `gradient_checkpointing=offload`", (OFFLOAD,)),
]
QLORA = [
    Rung("plain", "plain code", (PLAIN,)),
    Rung("blocks", "fused, NF4 dequantised by bitsandbytes", (), ("bnb_dequantize",)),
    Rung("default", "+ NF4 dequantised by a kernel of ours: **the default**"),
    Rung("checkpointing", "`gradient_checkpointing=true`", (CHECKPOINTING,)),
    Rung("offload", "`gradient_checkpointing=offload`", (OFFLOAD,)),
    Rung("embedding", "+ `model.embedding=cpu`", (OFFLOAD, "model.embedding=cpu")),
    Rung("head", "+ `model.head=nf4`", (OFFLOAD, "model.embedding=cpu", "model.head=nf4")),
    Rung(
        "paged",
        "+ `optim=paged_adamw_8bit`",
        (OFFLOAD, "model.embedding=cpu", "model.head=nf4", "optim=paged_adamw_8bit"),
    ),
]
FULL = [
    Rung("fp32_plain", "plain code, fp32 master weights", (PLAIN,)),
    Rung("fp32", "fused, fp32 master weights: **the default**"),
    Rung("bf16", "`model.dtype=bf16`", (BF16,)),
    Rung("in_backward", "+ `optim.in_backward=true optim.max_grad_norm=0`", (BF16, *IN_BACKWARD)),
    Rung("adamw_8bit", "+ `optim=adamw_8bit`", (BF16, *IN_BACKWARD, "optim=adamw_8bit")),
    Rung("stochastic", "bf16 + `optim.rounding=stochastic`", (BF16, "optim.rounding=stochastic"), (), "bf16"),
    Rung(
        "stochastic_in_backward",
        "+ `optim.in_backward=true optim.max_grad_norm=0`",
        (BF16, "optim.rounding=stochastic", *IN_BACKWARD),
    ),
]
LADDERS: dict[str, list[Rung]] = {"lora": LORA, "qlora": QLORA, "full": FULL}


def rungs(only: list[str] | None = None) -> list[tuple[str, Rung]]:
    """(ladder, rung), all or those that are named, as ``lora`` or ``lora/fp8``, in the ladders' order.

    Raises:
        SystemExit: A name is not known.

    Example:
        >>> [f"{ladder}/{rung.name}" for ladder, rung in rungs(["lora/fp8", "lora/default"])]
        ['lora/default', 'lora/fp8']
    """
    every = [(ladder, rung) for ladder, steps in LADDERS.items() for rung in steps]
    known = {f"{ladder}/{rung.name}" for ladder, rung in every} | set(LADDERS)
    if unknown := [name for name in only or () if name not in known]:
        raise SystemExit(f"--only {' '.join(unknown)}: known are {', '.join(sorted(known))}")
    return [pair for pair in every if only is None or {pair[0], f"{pair[0]}/{pair[1].name}"} & set(only)]


def before(ladder: str, rung: str) -> str | None:
    """The rung that a rung is compared with; None for the first."""
    names = [each.name for each in LADDERS[ladder]]
    place = names.index(rung)
    return LADDERS[ladder][place].before or (names[place - 1] if place else None)


def tiny(rung: Rung) -> Rung:
    """The same on a CPU: the fused kernels' plain twins stand in for them, and there is no varlen."""
    kept = [each for each in rung.overrides if not each.startswith("model.attention=")]
    patches = [name for name in rung.patches if name != "flash_rows"]
    return replace(rung, overrides=(*kept, "hardware.precision=bf16"), patches=(*patches, "cpu_kernels"))
