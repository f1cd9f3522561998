"""What a run of bench/peers.py is given: its conditions, and the ids of every step, the same for all stacks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

IGNORED = -100
MULTIPLE = 64
"""Widths of rows of real lengths are padded to a multiple of it, so that their shapes are few."""


@dataclass(frozen=True)
class Job:
    """What a worker has to do."""

    method: str
    """full, lora or qlora."""
    folder: str
    """The base model: a plain Llama with a tokenizer."""
    ids: str = ""
    """The npz with every step's ids (`save_steps`)."""
    work: str = ""
    """A folder for whatever the stack writes."""
    dtype: str = "bf16"
    """Storage of the weights: bf16 or fp32."""
    layout: str = "full"
    """``full``: rows of one sample and one length; ``padded``: a sample a row, without the attention mask that causal
    attention has no need of when padding is on the right; ``rows``: samples behind each other in rows, told apart by
    their positions; ``free``: the same in one row, with the samples' lengths."""
    micro_batch: int = 8
    """Rows of one pass of ``full``."""
    parts: int = 1
    """Passes of a step of the other layouts: its rows, or its samples by length, in so many groups."""
    steps: int = 15
    warmup: int = 5
    checkpointing: bool = False
    cap_gib: float | None = None
    lr: float = 1e-4
    rank: int = 16
    alpha: float = 32.0
    seed: int = 0
    device: str = "cuda"
    overrides: list[str] = field(default_factory=list)
    """Of the stack ``sweeptune``."""
    architecture: dict[str, Any] | None = None
    """Of ``base``: the settings of a Llama."""
    tokenizer: str | None = None
    """Of ``base``: a tokenizer.model file; null is the byte-level one of the tiny model."""

    @property
    def weights(self) -> torch.dtype:
        """Storage type of the weights."""
        return torch.bfloat16 if self.dtype == "bf16" else torch.float32

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device == "cuda"


Sample = tuple[torch.Tensor, torch.Tensor]
"""Ids and labels: the token itself where it bears loss, else -100; not shifted."""
Rows = list[list[Sample]]
"""The samples of every row."""
Steps = list[Rows]


def save_steps(path: Path, steps: Sequence[Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]]]) -> None:
    """Write the steps of a run: ids and loss mask of every sample of every row."""
    samples = [sample for step in steps for row in step for sample in row]
    ids = np.concatenate([np.asarray(sample[0], dtype=np.int32) for sample in samples])
    mask = np.concatenate([np.asarray(sample[1], dtype=bool) for sample in samples])
    np.savez(
        path,
        ids=ids,
        labels=np.where(mask, ids, IGNORED).astype(np.int32),
        lengths=np.array([len(sample[0]) for sample in samples]),
        samples=np.array([len(row) for step in steps for row in step]),
        rows=np.array([len(step) for step in steps]),
    )


def read_steps(path: str | Path) -> Steps:
    """What `save_steps` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    ends = np.cumsum(arrays["lengths"])[:-1]
    ids, labels = (
        [torch.from_numpy(part.astype(np.int64)) for part in np.split(arrays[name], ends)] for name in ("ids", "labels")
    )
    samples = iter(zip(ids, labels, strict=True))
    counts = iter(arrays["samples"].tolist())
    return [[[next(samples) for _ in range(next(counts))] for _ in range(rows)] for rows in arrays["rows"].tolist()]


def passes(step: Rows, job: Job) -> list[Rows]:
    """The rows of every pass of a step."""
    if job.layout == "full":
        return [step[at : at + job.micro_batch] for at in range(0, len(step), job.micro_batch)]
    rows = step
    if job.layout == "padded":
        rows = [[sample] for sample in sorted((s for row in step for s in row), key=lambda sample: -len(sample[0]))]
    # Always as many passes as were asked for: TRL accumulates a fixed number of them.
    ends = [len(rows) * at // job.parts for at in range(job.parts + 1)]
    return [rows[begin:end] for begin, end in pairwise(ends) if begin < end]


def collate(rows: Rows, layout: str, pad_id: int) -> dict[str, torch.Tensor]:
    """Tensors of one pass. Padding is on the right, bears no loss, and is a sample of its own where rows hold many."""
    if layout == "free":
        rows = [[sample for row in rows for sample in row]]
    longest = max(sum(len(ids) for ids, _ in row) for row in rows)
    width = longest if layout == "full" else math.ceil(longest / MULTIPLE) * MULTIPLE
    filled = [padded(row, width, pad_id) for row in rows]
    batch = {
        "input_ids": torch.stack([torch.cat([ids for ids, _ in row]) for row in filled]),
        "labels": torch.stack([torch.cat([labels for _, labels in row]) for row in filled]),
    }
    if layout in ("rows", "free"):
        lengths = [[len(ids) for ids, _ in row] for row in filled]
        positions = [torch.cat([torch.arange(length) for length in row]) for row in lengths]
        batch["position_ids"] = torch.stack(positions)
    if layout == "free":
        batch["lengths"] = torch.tensor(lengths[0], dtype=torch.int32)
    return batch


def padded(row: list[Sample], width: int, pad_id: int) -> list[Sample]:
    """A row with what it lacks, as one more sample."""
    lacking = width - sum(len(ids) for ids, _ in row)
    return [*row, (torch.full((lacking,), pad_id), torch.full((lacking,), IGNORED))] if lacking else row


class Passes(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Every pass of a run, made into tensors when it is asked for."""

    def __init__(self, steps: Steps, job: Job, pad_id: int) -> None:
        self.job, self.pad_id = job, pad_id
        split = [passes(step, job) for step in steps]
        self.counts = [len(parts) for parts in split]
        self.parts = [part for parts in split for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return collate(self.parts[at], self.job.layout, self.pad_id)

    def shapes(self) -> list[dict[str, torch.Tensor]]:
        """A pass of every shape that there is, the largest first."""
        every = [self[at] for at in range(len(self))]
        found = {tuple((name, *batch[name].shape) for name in sorted(batch)): batch for batch in every}
        return sorted(found.values(), key=lambda batch: -batch["input_ids"].numel())


def real_tokens(steps: Steps) -> int:
    """Tokens without padding."""
    return sum(len(ids) for step in steps for row in step for ids, _ in row)


def loss_tokens(step: Rows) -> int:
    """Tokens of a step that bear loss."""
    return sum(int((labels != IGNORED).sum()) for row in step for _, labels in row)


def digest(steps: Steps) -> str:
    """Names the ids that were trained on, in their order."""
    found = hashlib.sha256()
    for step in steps:
        for row in step:
            for ids, labels in row:
                found.update(ids.numpy().tobytes() + labels.numpy().tobytes())
    return found.hexdigest()[:16]
