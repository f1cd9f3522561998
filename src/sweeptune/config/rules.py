"""Rules between settings: what is legal field by field and still cannot work together, or not on this machine.

Each rule is a small generator that yields a problem: the settings seen, why not, and the overrides that mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sweeptune.config.data_rules import data_format, data_source, hub_only
from sweeptune.config.memory_rules import MEMORY_RULES
from sweeptune.config.schema import Config
from sweeptune.config.study_rules import study_figures
from sweeptune.config.tracker_rules import tracker

FLASH_PACKAGES = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}
"""The package that brings each Flash Attention: 2 and 4 share a module's name, so only the package tells them apart."""


def validate(config: Config) -> list[str]:
    """Every way in which a well-typed configuration cannot work.

    Whether the model's weights are there is not asked: that is for the loader, which knows how to get them.

    Returns:
        Problems, one sentence or two each; empty when the run may start.

    Example:
        >>> validate(compose(["train.epochs=null"]))
        ['train.max_steps, train.max_tokens and train.epochs are all null: ...']
    """
    return [problem for rule in RULES for problem in rule(config)]


def _file_trouble(path: Path) -> str | None:
    file = path.expanduser()
    if file.is_dir():
        return "this is a folder, not a file"
    return None if file.exists() else "no such file"


def _template_path(config: Config) -> Iterator[str]:
    path, name = config.template.path, config.template.name
    if name != "jinja":
        if path is not None:
            yield (
                f"template.path={path}: template={name} reads no file. For a template of your own use template=jinja "
                f"template.path={path}; otherwise leave template.path out"
            )
    elif path is None:
        yield "template=jinja: reads a file, and none is given. Name it: template=jinja template.path=<file>.jinja"
    else:
        trouble = _file_trouble(Path(path))
        if trouble:
            yield (
                f"template.path={path}: {trouble}. Relative paths start at {Path.cwd()}; give "
                "template.path=<an existing file>"
            )


def _held_out(config: Config) -> Iterator[str]:
    total = config.data.eval_fraction + config.data.test_fraction
    if total >= 1:
        yield (
            f"data.eval_fraction={config.data.eval_fraction} and data.test_fraction={config.data.test_fraction} leave "
            f"nothing to train on. Their sum must be below 1, for example data.eval_fraction=0.1 data.test_fraction=0.1"
        )


def _row_fits_in_a_step(config: Config) -> Iterator[str]:
    step, row = config.train.tokens_per_step, config.data.max_length
    if step < row:
        yield (
            f"train.tokens_per_step={step} is smaller than the longest row, data.max_length={row}: such a row fits in "
            f"no step. Raise the step, train.tokens_per_step={row}, or shorten the rows, data.max_length={step}"
        )


def _some_limit(config: Config) -> Iterator[str]:
    if config.train.max_steps is None and config.train.max_tokens is None and config.train.epochs is None:
        yield (
            "train.max_steps, train.max_tokens and train.epochs are all null: the run would never end. Set at least "
            "one, for example train.epochs=1"
        )


def _device(config: Config) -> Iterator[str]:
    if config.hardware.device == "cuda" and gpu_count() == 0:
        yield (
            "hardware.device=cuda: torch finds no GPU here (`sweeptune doctor` says why). "
            "Use hardware=auto or hardware=cpu"
        )


def _precision(config: Config) -> Iterator[str]:
    if config.hardware.precision == "fp16" and _on_cpu(config):
        yield (
            f"hardware.precision=fp16: fp16 arithmetic needs a CUDA GPU, and {_why_cpu(config)}. "
            f"Use hardware.precision=fp32 or hardware.precision=bf16"
        )
    if config.model.dtype == "fp16" and config.method.name == "full":
        yield (
            "model.dtype=fp16 with method=full: weights stored in fp16 lose the small updates and overflow. "
            "Use model.dtype=fp32 (or bf16), with hardware.precision=fp16 on a GPU for fp16 arithmetic"
        )
    elif config.model.dtype == "fp16" and _on_cpu(config):
        yield f"model.dtype=fp16: needs a CUDA GPU, and {_why_cpu(config)}. Use model.dtype=fp32 or model.dtype=bf16"


def _needs_cuda(config: Config) -> Iterator[str]:
    if config.optim.name == "paged_adamw_8bit" and _on_cpu(config):
        # bitsandbytes 0.50 only warns and does not page; plain 8-bit AdamW does work on a CPU.
        yield (
            f"optim=paged_adamw_8bit: paging moves state between GPU and host memory, and {_why_cpu(config)}. "
            f"Use optim=adamw_8bit or optim=adamw"
        )
    cap = config.hardware.memory_cap_gib
    if cap is not None and _on_cpu(config):
        yield (
            f"hardware.memory_cap_gib={cap}: caps GPU memory, and {_why_cpu(config)}. "
            f"Use hardware.memory_cap_gib=null on a CPU"
        )


def _offload(config: Config) -> Iterator[str]:
    hardware, obstacle = config.hardware, None
    if hardware.gradient_checkpointing != "offload":
        return
    if _on_cpu(config):
        obstacle = f"they need a CUDA GPU, and {_why_cpu(config)}"
    elif hardware.kernels == "plain":
        obstacle = "hardware.kernels=plain is chosen"
    elif hardware.precision in ("fp32", "fp16"):
        obstacle = f"they compute in bf16, and hardware.precision={hardware.precision} is chosen"
    if obstacle:
        yield (
            f"hardware.gradient_checkpointing=offload: needs the fused kernels; {obstacle}. Use "
            "hardware.gradient_checkpointing=true"
        )


def flash_installed(attention: str) -> bool:
    """Whether the package of a ``flash_attention_*`` is installed."""
    try:
        version(FLASH_PACKAGES[attention])
    except PackageNotFoundError:
        return False
    return True


def _attention(config: Config) -> Iterator[str]:
    wanted, seen = config.model.attention, f"model.attention={config.model.attention}"
    if wanted in FLASH_PACKAGES and not flash_installed(wanted):
        package = FLASH_PACKAGES[wanted]
        yield (
            f"{seen}: the package {package} is not installed. Install it (pip install {package}) or use "
            "model.attention=auto"
        )
    elif wanted in (*FLASH_PACKAGES, "varlen") and _on_cpu(config):
        yield f"{seen}: needs a GPU, and {_why_cpu(config)}. Use model.attention=sdpa"
    elif wanted in (*FLASH_PACKAGES, "varlen") and config.hardware.precision == "fp32":
        yield (
            f"{seen}: computes in bf16 or fp16 only, and hardware.precision=fp32 is chosen. Use "
            "hardware.precision=bf16 or model.attention=sdpa"
        )
    elif wanted == "flex" and _on_cpu(config):
        yield f"{seen}: has no backward pass on a CPU, and {_why_cpu(config)}. Use model.attention=sdpa"


def _packing(config: Config) -> Iterator[str]:
    data = config.data
    if data.packing == "split" and data.on_long_row == "truncate":
        # split cuts at max_length anyway: a row that is truncated before would lose its end for nothing.
        yield (
            "data.on_long_row=truncate with data.packing=split: split cuts rows of any length and loses nothing, so "
            "truncating them first would throw their ends away. Use data.on_long_row=auto (or drop), or "
            "data.packing=pack with data.on_long_row=truncate"
        )


def _gpus(config: Config) -> Iterator[str]:
    ranks, gpus = config.hardware.gpus_per_trial, config.hardware.gpus
    if gpus is not None and ranks > gpus:
        yield (
            f"hardware.gpus_per_trial={ranks} is more than hardware.gpus={gpus}. "
            f"Use hardware.gpus_per_trial={gpus} or hardware.gpus={ranks}"
        )
        return
    if max(ranks, gpus or 1) == 1 or config.hardware.device == "cpu":
        return
    found = gpu_count()
    for key, wanted in (("gpus", gpus or 1), ("gpus_per_trial", ranks)):
        if 0 < found < wanted:
            yield f"hardware.{key}={wanted}: this machine has {found}. Use hardware.{key}={found}"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    folder = Path(model.path).expanduser() if model.path else None
    if model.weights == "random" and model.architecture is None and not (folder and folder.is_dir()):
        yield (
            f"model.weights=random with model.path={model.path or 'null'}: nothing says what to build. Give a folder "
            f"that holds a config.json (model.path=<folder>), or an option that has an architecture (model=tiny)"
        )
    elif folder and model.path and model.path.startswith(("/", "./", "../", "~")) and not folder.is_dir():
        yield f"model.path={model.path}: no such folder. Give model.path=<an existing folder> or a hub id (owner/name)"


def _resume(config: Config) -> Iterator[str]:
    if config.resume is None:
        return
    folder = Path(config.resume).expanduser()
    if not folder.is_dir():
        yield f"resume={config.resume}: no such folder. Give the run's folder: resume=outputs/<date>/<time>"
    elif not (folder / "config.yaml").is_file():
        yield (
            f"resume={config.resume}: holds no config.yaml, so it is no run folder. Give the folder of one run: "
            f"resume=outputs/<date>/<time> or resume=multirun/<study>/<number>"
        )


_assumed: ContextVar[int | None] = ContextVar("_assumed", default=None)


@contextmanager
def assuming_gpus(count: int) -> Iterator[None]:
    """Check settings for a machine with so many GPUs, whatever this one has."""
    token = _assumed.set(count)
    try:
        yield
    finally:
        _assumed.reset(token)


def gpu_count() -> int:
    """CUDA devices that torch sees. Imports torch, which takes seconds: ask only when a setting depends on it."""
    if (assumed := _assumed.get()) is not None:
        return assumed
    import torch

    return torch.cuda.device_count()


def _on_cpu(config: Config) -> bool:
    device = config.hardware.device
    return device == "cpu" or (device == "auto" and gpu_count() == 0)


def _why_cpu(config: Config) -> str:
    chosen = config.hardware.device == "cpu"
    return "hardware.device=cpu is chosen" if chosen else "torch finds no GPU here (hardware.device=auto)"


RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    data_source,
    data_format,
    hub_only,
    _template_path,
    _held_out,
    _row_fits_in_a_step,
    _some_limit,
    _device,
    _precision,
    _needs_cuda,
    _offload,
    _attention,
    _packing,
    _gpus,
    _model,
    _resume,
    *MEMORY_RULES,
    study_figures,
    tracker,
)
