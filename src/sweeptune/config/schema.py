"""Every setting of a run, as frozen dataclasses: the types, the allowed values and what each field changes.

The values live in ``conf/`` as YAML; this file says which values are legal. `sweeptune.config.compose` turns one into
the other and is the only place that sees a DictConfig.

Constraints are declared in the annotations and enforced by pydantic, so a bound stands in exactly one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

STRICT_KEYS = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights are fine-tuned (group ``model``)."""

    __pydantic_config__ = STRICT_KEYS

    name: str
    """The option's name in conf/model; it labels the run."""
    path: str | None
    """A local folder or a hub id. Null means: the model that ``sweeptune fetch <name>`` keeps in the cache."""
    weights: Literal["pretrained", "random"]
    """``random`` builds the architecture with random weights: memory and speed before any download."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    """Storage type of the weights. ``auto``: fp32 where every weight trains, else the compute precision."""
    tokenizer: str | None
    """A folder, a hub id or a ``tokenizer.model`` file; null means the one that comes with the weights."""
    attention: Literal[
        "auto", "sdpa", "eager", "flex", "varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4"
    ]
    """Attention back-end; ``auto`` takes the fastest that is present and correct for the data's packing."""
    embedding: Literal["device", "cpu"] = "device"
    """Where the input embedding is: ``cpu`` keeps a frozen one in host memory, from where its rows are fetched."""
    head: Literal["plain", "nf4"] = "plain"
    """How ``qlora`` stores the head: as the weights it does not quantise, or in 4 bits, which changes the losses."""
    architecture: dict[str, Any] | None
    """Values for the transformers config (with ``model_type``), needed for ``weights: random`` without a folder."""


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """Every weight trains."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["full"]
    recommended_lr: PositiveFloat
    """The learning rate that ``optim.lr`` takes unless it is set."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A frozen base with low-rank adapters (Hu et al. 2021, arXiv 2106.09685), and its relatives."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["lora", "dora", "rslora", "pissa", "qlora", "lora_int8", "lora_fp8"]
    recommended_lr: PositiveFloat
    """The learning rate that ``optim.lr`` takes unless it is set."""
    rank: Positive
    """Inner dimension r of the adapters: more capacity, more memory."""
    alpha: PositiveFloat
    """Numerator of the scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    dropout: Fraction
    """Dropout on the adapter's input during training."""
    target_modules: str | list[str]
    """``all-linear`` or a list of module names such as ``[q_proj, v_proj]``."""


MethodConfig = FullConfig | LoraConfig

METHOD_SCHEMAS: dict[str, type[FullConfig] | type[LoraConfig]] = {
    "full": FullConfig,
    "lora": LoraConfig,
    "qlora": LoraConfig,
    "dora": LoraConfig,
    "rslora": LoraConfig,
    "pissa": LoraConfig,
    "lora_int8": LoraConfig,
    "lora_fp8": LoraConfig,
}


RowFormat = Literal["auto", "messages", "alpaca", "alpaca_zh", "sharegpt", "xtuner", "prompt_completion", "qa", "text"]


@dataclass(frozen=True, kw_only=True)
class MixPart:
    """One dataset of a mixture (an element of ``data.mix``)."""

    __pydantic_config__ = STRICT_KEYS

    path: str
    """A file or a folder."""
    weight: PositiveFloat | None = None
    """Share of the training tokens, relative to the other weights; null everywhere: each row once."""
    format: RowFormat = "auto"
    """Shape of its rows."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned and what it is judged on (group ``data``)."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["pydocs", "pydocs_text", "jsonl", "text", "hub"]
    path: str | list[str] | None
    """The files or folders to read (``jsonl``, ``text``) or the dataset's hub id (``hub``); null for ``pydocs``."""
    format: RowFormat
    """Shape of a row; ``auto`` detects it from the first row and says which."""
    mix: list[MixPart] | None
    """Several datasets with their shares, instead of ``path``."""
    split: str
    """Which split of a hub dataset is read."""
    subset: str | None
    """Which configuration of a hub dataset is read; null is its only or default one."""
    revision: str | None
    """Branch, tag or commit of a hub dataset; null is the newest."""
    streaming: bool
    """Read a hub dataset row by row instead of downloading it first."""
    loss_on: Literal["assistant", "last", "all"]
    """What is learned: every answer, the last answer only, or every token. Raw text is always learned whole."""
    packing: Literal["none", "pack", "split"]
    """``pack`` puts whole samples together in rows of ``max_length``; ``split`` concatenates and cuts."""
    max_length: Positive
    """Longest training row, in tokens. Evaluation never cuts a sample; raw text is read in windows of this length."""
    on_long_row: Literal["auto", "truncate", "split", "drop", "error"]
    """What happens to a training sample longer than ``max_length``; counted and logged, never silent. ``auto`` is
    ``split`` where samples are packed, else ``truncate``."""
    on_bad_row: Literal["error", "skip"]
    """A malformed row stops the run with file, line and reason, or is skipped and counted."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows (by a hash of their content) held out for ``eval``."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows (by the same hash) held out for ``test``; never looked at by a search."""
    cache: bool
    """Keep tokenized rows on disk and use them again while data, template and tokenizer stay the same."""


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How a conversation becomes text (group ``template``)."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["auto", "internlm2_chat", "chatml", "alpaca", "llama3", "none", "jinja"]
    """``auto`` is the model's own chat template; raw text takes none under any name."""
    path: str | None
    """The file with the template (``jinja``); null for all others."""
    document_start: str | None
    """Token before a raw document: its text, ``auto`` (what the tokenizer begins texts with) or null for none."""
    document_end: str | None
    """Token behind a raw document: its text, ``auto`` (the end-of-text token, not the end of a turn) or null."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where and how the run computes (group ``hardware``)."""

    __pydantic_config__ = STRICT_KEYS

    name: str
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    """Compute precision; ``auto`` is bf16 on a GPU and fp32 on a CPU."""
    micro_batch: Positive
    """Rows per forward and backward pass. Changes memory and speed, never the gradient of a step."""
    gradient_checkpointing: bool | Literal["offload"]
    """Recompute activations in the backward pass: less memory, about a third more time. ``offload``: what that still
    keeps waits in the host's memory (fused kernels only)."""
    kernels: Literal["auto", "plain"] = "auto"
    """``auto``: fused kernels where they are known to be right (a CUDA GPU, bf16, the Llama family), proven when the
    run starts; ``plain``: transformers' and PEFT's own code everywhere."""
    memory_cap_gib: PositiveFloat | None
    """Enforced limit on GPU memory in GiB (2^30 bytes), CUDA context included."""
    on_oom: Literal["replan", "stop"]
    """``replan`` halves the micro-batch and repeats the step; ``stop`` ends the run as ``oom``."""
    gpus: Positive | None
    """GPUs (or CPU ranks) that may be used; null is all."""
    gpus_per_trial: Positive
    """Ranks of one run; above one it is started through torchrun (gloo on CPUs, nccl on GPUs)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule (group ``optim``)."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    lr: PositiveFloat
    """Peak learning rate; by default the method's ``recommended_lr``."""
    weight_decay: NonNegativeFloat
    """Decoupled weight decay; applied to matrices only, not to norms and biases."""
    beta1: Fraction
    beta2: Fraction
    eps: PositiveFloat
    schedule: Literal["cosine", "linear", "constant"]
    """Shape after the warm-up: down to zero along a half cosine or a line, or flat."""
    warmup: Fraction
    """Share of all steps spent rising linearly from zero to ``lr``."""
    max_grad_norm: NonNegativeFloat
    """Clip the total gradient norm to this; 0 does not clip."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """How new weights are rounded to bf16 where every weight trains in it: ``nearest`` loses small updates,
    ``stochastic`` keeps them on average."""
    in_backward: bool = False
    """Change each weight as soon as its gradient is there and drop that at once: without clipping, on one GPU."""


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Where metrics go beside metrics.jsonl, which is always written (group ``tracker``)."""

    __pydantic_config__ = STRICT_KEYS

    name: Literal["none", "wandb", "wandb_offline"]
    project: str = "sweeptune"
    """W&B project that runs go to; made there when it does not exist."""
    entity: str | None = None
    """W&B user or team; null is the default one of the key."""


Sampler = Literal["auto", "tpe", "nsga2", "random", "grid"]
Fractions = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=8)]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: a folder of runs that are compared (group ``study``). The defaults are those of conf/study/default.yaml,
    so that run folders of earlier versions can still be read."""

    __pydantic_config__ = STRICT_KEYS

    name: str | None = None
    """Folder under ``multirun/``; by default the experiment, else the space, else the swept keys."""
    trials: Positive | None = None
    """How many trials there are in all, baselines included; null is the whole grid."""
    objectives: Annotated[list[str], Field(min_length=1, max_length=3)] = field(
        default_factory=lambda: ["eval_loss", "peak_memory_gib"]
    )
    """What the search improves: eval_loss, peak_memory_gib, tokens_per_s, or a field of the record (``eval.loss``).
    Speeds grow better, all else falls."""
    constraints: dict[str, float] = field(default_factory=dict)
    """Limits that a configuration must keep, such as ``{peak_memory_gib: 8}``; of speeds the least that is allowed."""
    sampler: Sampler = "auto"
    """What proposes the next trial; ``auto``: the grid where only lists are swept and trials is null, else tpe."""
    baselines: bool = False
    """Run each method at its recommended settings first."""
    allocate: Literal["equal", "joint"] = "equal"
    """``equal``: each method gets the same training tokens; ``joint``: the sampler chooses the method, too."""
    replicates: Positive = 1
    """Seeds of a trial; its value is their mean."""
    confirm_seeds: NonNegative = 0
    """Seeds, not used in the search, that each method's best configuration is trained with for the verdict."""
    margin: NonNegativeFloat = 0.01
    """Differences in loss inside +- this many nats a token count as none."""
    prune: bool = False
    """Stop trials that are clearly behind others of their method at the same tokens."""
    rungs: Fractions = field(default_factory=lambda: [0.125, 0.25, 0.5])
    """Shares of a trial's tokens at which it is evaluated and may be pruned."""
    probe_steps: NonNegative = 20
    """Steps of the probe that measures memory and speed of each kind of configuration; 0: no probes."""
    max_failures: Positive = 5
    """The study ends when so many trials have failed and none has completed."""
    trial_timeout_s: PositiveFloat | None = None
    """Wall time after which a run of a trial is ended as ``timeout``."""
    trials_per_gpu: Positive = 1
    """Trials that share a GPU while only their loss matters; memory and speed are measured alone."""
    keep_weights: Literal["best", "all"] = "best"
    """Whose weights stay on disk: each method's best trial's, or all."""
    storage: str | None = None
    """An Optuna storage URL (``sqlite:///study.db``); null is ``study.journal`` in the study's folder."""


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """What a search may change (group ``space``); `sweeptune.study.space` reads the parameters."""

    __pydantic_config__ = STRICT_KEYS

    name: str = "none"
    parameters: dict[str, Any] = field(default_factory=dict)
    """Setting -> values, range, or one of these for each method, with an optional condition."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and in which portions. Defaults are those of conf/train.yaml, for run folders that were written before
    the setting was there."""

    __pydantic_config__ = STRICT_KEYS

    tokens_per_step: Positive
    """Rows are added to a step until the next one would exceed this many real (non-padding) tokens."""
    max_steps: Positive | None
    max_tokens: Positive | None
    """Budget in real tokens: training ends with the last step that fits."""
    epochs: PositiveFloat | None
    """Passes over the training rows. Of the three limits that are set, the first one reached ends the run."""
    eval_every: NonNegative
    """Evaluate after every n steps; 0 only before the first and after the last step."""
    eval_at: Fractions = field(default_factory=list)
    """Also evaluate after the first step that reaches each of these shares of the run's tokens: a study's rungs."""
    checkpoint_every: NonNegative
    """Write a checkpoint after every n steps; 0 only at the end and when interrupted."""
    keep_checkpoints: Positive
    """How many of the newest checkpoints are kept."""
    keep_best: bool
    """Also keep the checkpoint with the lowest eval loss, beside the newest ones."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How the loss is judged. Defaults are those of conf/train.yaml, as in `TrainConfig`."""

    __pydantic_config__ = STRICT_KEYS

    batch_size: Positive
    """Rows per forward pass at most; changes speed and memory only, never the loss."""
    batch_tokens: Positive | None = None
    """Its positions at most, padding included; a longer row is alone. None: any number."""
    max_samples: Positive | None
    """The first n held-out rows by hash; null is all of them."""
    longest: Positive | None = None
    """Of these only the largest batches, as many as n rows fill: what a short run needs to see the peak of evaluation.
    Its losses compare with those of such runs alone."""
    test: bool
    """Also evaluate the trained model on the test split."""
    merged: bool = False
    """Under qlora, judge the trained model also merged into bf16, and quantised again after that."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, complete."""

    __pydantic_config__ = STRICT_KEYS

    model: ModelConfig
    method: Annotated[FullConfig | LoraConfig, Field(discriminator="name")]
    data: DataConfig
    template: TemplateConfig
    hardware: HardwareConfig
    optim: OptimConfig
    tracker: TrackerConfig
    study: StudyConfig = field(default_factory=StudyConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    train: TrainConfig
    eval: EvalConfig
    seed: NonNegative
    resume: str | None
    """A run folder to continue; everything else is then read from it."""
