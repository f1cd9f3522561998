"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is written beside its final place and renamed when it is whole, so a folder ``step-000120`` is always
complete. It holds what trains, never the frozen base.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sweeptune.tracking.files import DiskFull, is_disk_full
from sweeptune.training.optimizer import load_optimizer_state

WEIGHTS, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.pt", "state.json"
NAME = re.compile(r"step-(\d{6,})")


def find_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [path for path in (folder / "checkpoints").glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def resumable(path: Path) -> bool:
    """Whether training can go on from a checkpoint; a finished run keeps its weights only."""
    return (path / OPTIMIZER).is_file()


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What trains, by name, on the CPU; tied weights appear once."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: torch.nn.Module, path: Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape.

    Raises:
        RuntimeError: The checkpoint belongs to another model or method.
    """
    saved = load_file(path / WEIGHTS)
    targets = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if saved.keys() != targets.keys():
        odd = sorted(saved.keys() ^ targets.keys())
        raise RuntimeError(f"{path}: its weights do not fit this model and method; first difference: {odd[0]}")
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(saved[name])


def random_state(device: torch.device) -> dict[str, Any]:
    """The generators that training draws from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    state: dict[str, Any],
    device: torch.device,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: Any = None,
) -> Path:
    """Write a checkpoint; every rank must call this, rank 0 writes.

    Args:
        folder: The run folder.
        model: Its trainable weights are saved.
        state: JSON-able progress with ``step``.
        device: The device of this rank, for its generators.
        optimizer: Saved so that training can go on; None for the weights of a finished run.
        scaler: The fp16 gradient scaler, if there is one.

    Raises:
        DiskFull: Nothing of the older checkpoints is touched, and the half-written one is removed.
    """
    final = folder / "checkpoints" / f"step-{state['step']:06d}"
    generators: list[Any] = [random_state(device)]
    if dist.is_initialized():
        generators = [None] * dist.get_world_size()
        dist.all_gather_object(generators, random_state(device))
        if dist.get_rank() != 0:
            return final
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(trainable_state(model), part / WEIGHTS)
        if optimizer is not None:
            saved = {"optimizer": optimizer.state_dict(), "random": generators}
            torch.save(saved | ({"scaler": scaler.state_dict()} if scaler else {}), part / OPTIMIZER)
        (part / STATE).write_text(json.dumps(state))
        for file in part.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        _sync(final.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        if is_disk_full(error, part):
            raise DiskFull(final) from error
        raise
    return final


def load_training_state(
    path: Path, optimizer: torch.optim.Optimizer, device: torch.device, scaler: Any = None
) -> dict[str, Any]:
    """Restore optimiser, generators and scaler from a checkpoint; return its progress.

    Raises:
        RuntimeError: The checkpoint was written by another number of ranks.
    """
    saved = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if len(saved["random"]) != world:
        raise RuntimeError(f"{path}: written by {len(saved['random'])} ranks, resumed by {world}")
    load_optimizer_state(optimizer, saved["optimizer"])
    restore_random_state(saved["random"][rank], device)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest ``keep`` checkpoints and the best one."""
    for path in find_checkpoints(folder)[:-keep]:
        if path.name != f"step-{best_step or 0:06d}":
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
