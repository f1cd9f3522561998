"""The rows of bench/peers.py: what is compared, under which conditions and with which stacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

PEERS = ("transformers", "liger", "trl", "unsloth")
WARMUP = 5
"""What our own watch leaves out (`sweeptune.tracking.record.WARMUP_STEPS`); every stack leaves out the same."""
LR = 1e-4
FP8 = ["method=lora_fp8"]
PLAIN = ["hardware.kernels=plain"]


@dataclass(frozen=True)
class Row:
    """The conditions of one comparison."""

    method: str
    """full, lora or qlora."""
    model: str = "internlm2_1_8b"
    """An option of conf/model, whose architecture gets random weights."""
    dtype: str = "bf16"
    """Storage of the weights; with fp32 the products are bf16 under autocast."""
    rows: tuple[int, ...] = (8,)
    """Rows of 2048 tokens a step and a pass; of several, each stack keeps the fastest that fits."""
    length: int = 2048
    checkpointing: bool = False
    cap_gib: float | None = None
    """Enforced limit on the GPU's memory, the CUDA context included."""
    real: bool = False
    """Rows of the file of ``--data`` at their real lengths, packed by us, instead of full rows of random words."""
    parts: tuple[int, ...] = (1,)
    """Of real lengths: passes of a step whose samples a peer pads; of several, each keeps the fastest that fits."""
    peers: tuple[str, ...] = PEERS
    """Stacks; ``<stack>_free`` is its padding-free variant."""
    variants: dict[str, list[str]] = field(default_factory=lambda: {"sweeptune": []})
    """Our runs, each with what it sets beyond the row's own settings."""
    overrides: tuple[str, ...] = ()
    """Of all of our runs."""
    ours_first: bool = False
    timeout_s: int = 150

    @property
    def stacks(self) -> list[str]:
        """In the order in which they run."""
        order = (self.variants, self.peers) if self.ours_first else (self.peers, self.variants)
        return [stack for part in order for stack in part]

    def layout(self, stack: str) -> str:
        """`peers_job.Job.layout` of a stack: transformers (5.23, `masking_utils.find_packed_sequence_indices`) keeps
        samples apart by their positions in every row of a batch, also with sdpa, so that it needs neither one long row,
        whose mask grows with the square, nor one row at a time; TRL and Unsloth make one row of a pass."""
        if not self.real:
            return "full"
        if not stack.endswith("_free"):
            return "padded"
        return "rows" if work_of(stack) in ("transformers", "liger") else "free"

    def settings(self, stack: str) -> list[tuple[int, int]]:
        """Rows and passes of a step that a stack tries: it keeps the fastest that fits."""
        layout = self.layout(stack)
        found: list[tuple[int, int]] = []
        for rows in self.rows:
            parts: tuple[int, ...] = (1,)
            if layout == "padded" and work_of(stack) != "sweeptune":
                parts = self.parts
            elif layout == "free":
                # TRL's mask over one row of all samples would take rows ** 2 as much; Unsloth has kernels for it, and
                # a pass takes it 140 ms whatever its size, so that row by row it can be no faster.
                parts = (rows,) if work_of(stack) == "trl" else (1,)
            found += [(rows, each) for each in dict.fromkeys(parts)]
        return found


BOTH = {"sweeptune": [], "sweeptune_plain": PLAIN}
LORA = (*PEERS, "unsloth_bf16")
OFFLOAD = {"sweeptune": [], "sweeptune_offload": ["hardware.gradient_checkpointing=offload"]}
ON_HOST = ["hardware.gradient_checkpointing=offload", "model.embedding=cpu"]
LEAST = [*ON_HOST, "model.head=nf4", "optim=paged_adamw_8bit"]
SEVEN: dict[str, Any] = {
    "method": "qlora",
    "model": "internlm2_7b",
    "checkpointing": True,
    "peers": LORA,
    "timeout_s": 240,
}
ROWS: dict[str, Row] = {
    "intern18_full": Row("full", variants=BOTH),
    "intern18_lora": Row("lora", peers=LORA, variants=BOTH | {"sweeptune_fp8": FP8}),
    "intern18_qlora": Row("qlora", peers=LORA, variants=BOTH),
    "intern18_lora_ckpt": Row("lora", peers=LORA, checkpointing=True, variants=OFFLOAD),
    "intern18_qlora_ckpt": Row("qlora", peers=LORA, checkpointing=True, variants=OFFLOAD),
    "intern18_full_fp32": Row("full", dtype="fp32", variants=BOTH),
    "intern7_qlora": Row(
        **SEVEN, rows=(1,), variants={"sweeptune": [], "sweeptune_host": ON_HOST, "sweeptune_least": LEAST}
    ),
    "intern7_qlora_cap8": Row(**SEVEN, rows=(6, 4, 3, 2), cap_gib=8, variants={"sweeptune_host": ON_HOST}),
    "gsm8k_lora": Row(
        "lora",
        real=True,
        # A visit that is cut off has ours and the fastest peers; with 1 pass half of what a step computes is padding.
        peers=("liger", "unsloth", "liger_free", "unsloth_free", "transformers", "trl", "trl_free"),
        ours_first=True,
        parts=(4, 2),
    ),
}


def tiny(row: Row) -> Row:
    """The same row small enough for a CPU, in fp32."""
    cuda_only = {"dtype": "fp32", "cap_gib": None, "model": "tiny", "length": 64, "timeout_s": 300}
    return replace(row, rows=tuple(min(rows, 4) for rows in row.rows), **cuda_only)


def work_of(stack: str) -> str:
    """The worker that runs a stack or a variant of ours.

    Example:
        >>> work_of("sweeptune_plain"), work_of("trl_free"), work_of("unsloth_bf16")
        ('sweeptune', 'trl', 'unsloth_bf16')
    """
    return "sweeptune" if stack.startswith("sweeptune") else stack.removesuffix("_free")


@dataclass(frozen=True)
class Visit:
    """What holds for every run of one command."""

    name: str
    row: Row
    out: Path
    work: Path
    steps: int
    tokenizer: Path | None
    data: Path | None
    timeout_s: int
    tiny: bool
    ends: float = float("inf")
    """When (`time.perf_counter`) the last run has to be over."""

    @property
    def base(self) -> Path:
        """The folder of the base model, which rows of one model share."""
        kind = "tiny-fp32" if self.tiny else f"{self.row.model}-bf16"
        return self.work / "base" / kind
