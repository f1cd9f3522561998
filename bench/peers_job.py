"""What a run of bench/peers.py is given: its conditions, and the ids of every step, the same for all stacks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

IGNORED = -100


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
    """``full``: rows of one sample and one length; ``padded``: a sample a row; ``free``: samples behind each other."""
    micro_batch: int = 8
    """Rows of one pass."""
    parts: int = 4
    """Passes of a padded step: its samples by length, in so many groups."""
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
Steps = list[list[list[Sample]]]
"""The samples of every row of every step."""


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


def passes(step: list[list[Sample]], job: Job) -> list[list[Sample]]:
    """The samples of every pass of a step."""
    if job.layout == "padded":
        ordered = sorted((sample for row in step for sample in row), key=lambda sample: -len(sample[0]))
        # Always as many passes as were asked for: TRL accumulates a fixed number of them.
        ends = [len(ordered) * at // job.parts for at in range(job.parts + 1)]
        return [ordered[begin:end] for begin, end in pairwise(ends) if begin < end]
    groups = [step[at : at + job.micro_batch] for at in range(0, len(step), job.micro_batch)]
    return [[sample for row in group for sample in row] for group in groups]


def collate(samples: list[Sample], layout: str, pad_id: int) -> dict[str, torch.Tensor]:
    """Tensors of one pass; padding is on the right and never bears loss."""
    if layout == "free":
        lengths = [len(ids) for ids, _ in samples]
        return {
            "input_ids": torch.cat([ids for ids, _ in samples])[None],
            "labels": torch.cat([labels for _, labels in samples])[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "lengths": torch.tensor(lengths, dtype=torch.int32),
        }
    width = max(len(ids) for ids, _ in samples)
    shape = len(samples), width
    batch = {"input_ids": torch.full(shape, pad_id), "labels": torch.full(shape, IGNORED)}
    mask = torch.zeros(shape, dtype=torch.long)
    for at, (ids, labels) in enumerate(samples):
        batch["input_ids"][at, : len(ids)] = ids
        batch["labels"][at, : len(ids)] = labels
        mask[at, : len(ids)] = 1
    return batch if bool(mask.all()) else batch | {"attention_mask": mask}


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


def real_tokens(steps: Steps) -> int:
    """Tokens without padding."""
    return sum(len(ids) for step in steps for row in step for ids, _ in row)


def loss_tokens(step: list[list[Sample]]) -> int:
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
