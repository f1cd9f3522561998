"""Eval loss of models that are no longer training: a run on any data, or an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sweeptune.config.schema import Config
from sweeptune.data import Row, largest_batches, load_everything, load_run_tokenizer, load_splits
from sweeptune.tracking.console import progress
from sweeptune.training.evaluate import evaluate, summarize
from sweeptune.training.placement import Placement, place
from sweeptune.training.restore import load_trained


def judge(folder: Path, config: Config, split: str) -> dict[str, Any]:
    """Evaluate a run's newest weights.

    Args:
        folder: The run folder.
        config: The run's settings, where wanted with other data and eval settings.
        split: ``eval``, ``test`` or ``all``: the data as a whole, in no split; of each ``eval.max_samples``.

    Returns:
        loss, perplexity, bits_per_byte, loss_tokens, samples.
    """
    rows = held_out(config, split)
    trained = load_trained(folder)
    return _score(trained.model, rows, config, trained.placement, int(trained.tokenizer.pad_token_id or 0))


def judge_folder(folder: Path, config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Evaluate a saved model on the eval rows of a run's settings, computing in ``dtype``."""
    placement = place(config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(placement.device)
    model.config.use_cache = False  # as in training: a cache costs memory, and with one packed rows see each other
    placement = replace(placement, compute=torch.float32)  # the weights' own dtype, without autocast
    return _score(model, held_out(config, "eval"), config, placement, int(model.config.pad_token_id or 0))


def held_out(config: Config, split: str) -> Sequence[Row]:
    """The rows of a split, or of everything."""
    tokenizer = load_run_tokenizer(config.model, config.template)
    if split == "all":
        return load_everything(config.data, config.eval, config.template, tokenizer, progress)
    splits = load_splits(config.data, config.eval, config.template, tokenizer, progress)
    if split == "test":
        return splits.test
    return largest_batches(splits.eval, config.eval.longest, config.eval.batch_size, config.eval.batch_tokens)


def _score(
    model: torch.nn.Module, rows: Sequence[Row], config: Config, placement: Placement, pad_id: int
) -> dict[str, Any]:
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    if placement.compute is not torch.float32:

        def autocast() -> AbstractContextManager[None]:
            return torch.autocast(placement.device.type, placement.compute)

    examples = evaluate(
        model,
        rows,
        batch_size=config.eval.batch_size,
        batch_tokens=config.eval.batch_tokens,
        device=placement.device,
        autocast=autocast,
        pad_id=pad_id,
    )
    return summarize(examples)
