"""Everything a run holds while it trains, and how it is put together: settings and data first, weights last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.data import Row, Splits, Step, largest_batches, lengths_of, load_run_tokenizer, load_splits, plan_steps
from sweeptune.kernels import interfaces
from sweeptune.kernels.attention import heads_of, masks_by_layer, resolve
from sweeptune.kernels.fastest import kernel_order
from sweeptune.kernels.fuse import install
from sweeptune.methods import METHODS
from sweeptune.models import load_config, load_model
from sweeptune.models.fetch import cache_dir
from sweeptune.tracking.console import progress, spinner
from sweeptune.tracking.files import JsonLines
from sweeptune.training.checkpoint import find_checkpoints, load_trainable, load_training_state, resumable
from sweeptune.training.in_backward import StepInBackward
from sweeptune.training.memory import MemoryMeter
from sweeptune.training.optimizer import build_optimizer
from sweeptune.training.placement import Placement, cap_memory, place
from sweeptune.training.proofs import proof_row
from sweeptune.training.speed import Stopwatch

log = logging.getLogger("sweeptune")


@dataclass
class Progress:
    """How far a run is; what a checkpoint keeps beside weights, optimiser and generators."""

    step: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    epoch: float = 0.0
    seconds: float = 0.0
    """Wall time of training before this process."""
    micro_batch: int = 0
    eval_batch: int = 0
    metrics_offset: int = 0
    train_loss: float | None = None
    initial_eval: dict[str, Any] | None = None
    initial_shared: bool = False
    """Whether it was taken from the study's folder, where a run that starts as the same model had left it."""
    last_eval: dict[str, Any] | None = None
    last_eval_step: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    gradient_proofs: list[dict[str, float]] = field(default_factory=list)
    replans: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Session:
    """A run in progress."""

    config: Config
    folder: Path
    accelerator: Accelerator
    placement: Placement
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    eval_rows: Sequence[Row]
    """The held-out rows that are really evaluated (``eval.longest``)."""
    steps: list[Step]
    model: PreTrainedModel
    optimizer: Any
    meter: MemoryMeter
    watch: Stopwatch
    metrics: JsonLines | None
    """None on every rank but the first."""
    progress: Progress
    eval_steps: frozenset[int] = frozenset()
    """Steps behind which ``train.eval_at`` asks for an evaluation."""
    packing_proof: dict[str, Any] | None = None
    """What proved, in this process, that samples which share a row do not see each other."""
    kernel_proof: dict[str, Any] | None = None
    """What proved, in this process, that the fused kernels compute what the plain code does."""
    in_backward: StepInBackward | None = None
    """What changes weights in the backward pass, where ``optim.in_backward`` asks for it."""

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def arithmetic(self) -> torch.dtype:
        """What limits how exact a loss or a gradient is: under lora_fp8 never more than bf16."""
        return torch.bfloat16 if self.config.method.name == "lora_fp8" else self.placement.arithmetic

    @property
    def main(self) -> bool:
        """Whether this rank writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def autocast(self) -> AbstractContextManager[None]:
        """The context that every loss is computed in."""
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def proof_rows(self, count: int) -> list[Row]:
        """So many short training rows, those with the most loss tokens out of the first ones."""
        short = sorted((proof_row(row) for row in self.splits.train[:256]), key=lambda row: -row.loss_tokens)
        return short[:count]

    def state(self) -> dict[str, Any]:
        """What a checkpoint writes as its progress."""
        return asdict(self.progress)


def open_session(config: Config, folder: Path, *, micro_batch: int | None = None) -> Session:
    """Prepare a run: device, data, plan, model, method, optimiser, and the newest checkpoint where there is one.

    Args:
        config: The run's settings.
        folder: The run folder.
        micro_batch: Replaces ``hardware.micro_batch`` after an out-of-memory in the optimiser.

    Raises:
        ConfigError: Model or data are not there or do not fit the settings, or the loss ledger found rows that would
            teach something else than was meant.
    """
    accelerator = make_accelerator(config)
    placement = place(config, accelerator.local_process_index)
    if config.hardware.memory_cap_gib:
        cap_memory(config.hardware.memory_cap_gib, placement.device)
    torch.manual_seed(config.seed)
    meter = MemoryMeter(placement.device)
    meter.enter("load")
    tokenizer = load_run_tokenizer(config.model, config.template)
    splits = load_splits(config.data, config.eval, config.template, tokenizer, progress)
    for line in splits.ledger.lines():
        log.info("%s", line)
    steps = plan_steps(splits.train, config.data, config.train, config.seed)
    if config.data.packing != "none":
        packs, size = sum(len(step.packs) for step in steps), config.data.max_length
        filled = sum(step.tokens for step in steps) / (packs * size)
        words = "data.packing=%s: %d rows of %d tokens, %.1f %% filled"
        log.info(words, config.data.packing, packs, size, 100 * filled)
    check_vocabulary(tokenizer, config)
    check_positions(splits, config)
    model = build_model(config, placement, folder)
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, config.optim, config.seed))
    metrics = JsonLines(folder / "metrics.jsonl") if accelerator.is_main_process else None
    session = Session(
        config=config,
        folder=folder,
        accelerator=accelerator,
        placement=placement,
        tokenizer=tokenizer,
        splits=splits,
        eval_rows=largest_batches(splits.eval, config.eval.longest, config.eval.batch_size, config.eval.batch_tokens),
        steps=steps,
        model=model,
        optimizer=optimizer,
        meter=meter,
        watch=Stopwatch(placement.device),
        metrics=metrics,
        progress=Progress(
            micro_batch=config.hardware.micro_batch,
            eval_batch=config.eval.batch_size,
        ),
        eval_steps=frozenset(steps_at(config.train.eval_at, steps)),
    )
    if config.optim.in_backward:
        session.in_backward = StepInBackward(model, optimizer.optimizer)
    resume(session)
    if micro_batch is not None:
        session.progress.micro_batch = micro_batch
    return session


def steps_at(shares: Sequence[float], steps: Sequence[Step]) -> list[int]:
    """The first steps (from 1) that reach each of some shares of the planned tokens.

    Example:
        >>> steps_at([0.25, 0.5], plan)  # of 8 steps of equal size
        [2, 4]
    """
    reached = list(accumulate(step.tokens for step in steps))
    # Divided, not multiplied: 0.1 x 30 is above 3, while 3 / 30 is 0.1.
    return [next(number for number, tokens in enumerate(reached, 1) if tokens / reached[-1] >= at) for at in shares]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """See that every token has a row in the embedding.

    Raises:
        ConfigError: The tokenizer belongs to another model.
    """
    rows = load_config(config.model).get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(
            f"model.tokenizer: {len(tokenizer)} tokens, and the model has embeddings for {rows}: they do not belong "
            "together. Use model.tokenizer=null for the model's own, or a model with this vocabulary "
            f"(with model.weights=random: model.architecture.vocab_size={len(tokenizer)})"
        )


def check_positions(splits: Splits, config: Config) -> None:
    """See that no row stretches a rotary embedding that is stretched by the longest row of a batch.

    With dynamic NTK (InternLM2), one row beyond the trained length changes every other row of its batch, so that a loss
    would depend on what a row is batched or packed with.

    Raises:
        ConfigError: Rows are longer than that.
    """
    shape = load_config(config.model).get_text_config()
    rope = getattr(shape, "rope_parameters", None) or {}
    if rope.get("rope_type") != "dynamic":
        return
    limit = shape.max_position_embeddings
    for name in ("train", "eval", "test"):
        lengths = lengths_of(getattr(splits, name))
        if name == "train":
            lengths = lengths.clip(max=config.data.max_length)  # packing=split cuts what is longer
        if beyond := int((lengths > limit).sum()):
            raise ConfigError(
                f"{beyond} rows of {name} are longer than the {limit} tokens that this model was trained on (the "
                f"longest has {lengths.max()}). Its rotary embedding (dynamic NTK) would then change with the rows of "
                f"a batch, and so would the loss. Set data.max_length={limit} or less, and remove longer held-out rows"
            )


def make_accelerator(config: Config) -> Accelerator:
    """Start Accelerate for the run's device and precision; under torchrun it joins the process group."""
    cpu = config.hardware.device == "cpu" or not torch.cuda.is_available()
    placement = place(config)
    mixed = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[placement.compute]
    return Accelerator(cpu=cpu, mixed_precision=mixed)


def build_model(config: Config, placement: Placement, folder: Path) -> PreTrainedModel:
    """Load the base and make it trainable by the method.

    A start that was computed from the weights (PiSSA's singular vectors) is kept in the run folder and used again,
    because another machine would compute slightly other ones.
    """
    shape = load_config(config.model)
    backend = resolve(config.model.attention, shape, placement.device, placement.compute)
    if backend.name == "varlen":
        file, heads = cache_dir() / "attention.json", heads_of(shape)
        interfaces.order[:] = kernel_order(file, placement.device, *heads, placement.compute)
    method = METHODS[config.method.name]
    quantization = method.quantization(placement.compute) if method.quantization else None
    with spinner(f"loading {config.model.name}"):
        base = load_model(
            replace(config.model, attention=backend.name),  # type: ignore[arg-type]  # it is one of the words
            dtype=placement.weights,
            device=placement.device,
            quantization=quantization,
            seed=config.seed,
        )
        if config.data.packing != "none":
            masks_by_layer(base.config, lambda window: None)  # refuses layers in which samples cannot be kept apart
        torch.manual_seed(config.seed)  # adapters start alike, however the base was made
        model = method.attach(base, config.method)
        if method.start is not None:
            method.start(model, folder / "checkpoints" / "start.safetensors")
    checkpointing = config.hardware.gradient_checkpointing
    kernels = install(model, config.hardware.kernels, placement.device, placement.compute, checkpointing)
    log.info("attention: %s (%s); kernels: %s (%s)", backend.name, backend.reason, *kernels)
    return model


def resume(session: Session) -> None:
    """Go on from the newest checkpoint that allows it; what was logged after it is set aside."""
    found = [path for path in find_checkpoints(session.folder) if resumable(path)]
    if found:
        load_trainable(session.model, found[-1])
        scaler = session.accelerator.scaler
        state = load_training_state(found[-1], session.optimizer, session.device, scaler)
        session.progress = Progress(**state)
        log.info("resuming after step %d of %d (%s)", session.progress.step, len(session.steps), found[-1].name)
    if session.metrics is not None:
        session.metrics.truncate_to(session.progress.metrics_offset)
