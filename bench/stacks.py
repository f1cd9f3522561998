"""One stack on one row of bench/peers.py, in a process of its own; the driver starts it, but it can be run by hand.

    python bench/stacks.py transformers job.json out.json     also: liger, trl, unsloth, unsloth_bf16, sweeptune
    python bench/stacks.py base job.json out.json             writes the base model's folder that all of them load
    python bench/stacks.py transformers -        imports first, then reads ["job.json", "out.json"] from stdin

``job.json`` is a `Job`; ``out.json`` holds what was measured, or why nothing was. With ``-`` a worker can be started
while another one has the GPU, which it leaves alone until its line comes; without a line it ends. Every stack makes the
same steps out of the same ids, with fused AdamW, a linear schedule, clipping at 1.0, a DataLoader (pinned, two workers)
and loss and gradient norm of every step. The time is that of the steps behind the warm-up, synchronised at its ends
only; peaks are those of the timed steps. The loop that plain transformers, Liger and Unsloth share reads losses and
norms at the very end, so that nothing waits for the host; TRL's trainer reads them every step, as it does for
everybody.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from peers_job import MULTIPLE, Job, Passes, digest, loss_tokens, passes, read_steps, real_tokens

# transformers, peft and trl are imported by the stacks themselves: Unsloth has to come before them.

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNSLOTH = {"UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton", "liger-kernel", "trl", "unsloth", "accelerate")


# ---- measuring


class Window:
    """The timed steps: time, peaks of the allocator and of the host."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.begin = 0.0
        self.found: dict[str, Any] = {}

    def open(self) -> None:
        """Before the first timed step."""
        from sweeptune.training.memory import reset_host_peak

        reset_host_peak()
        if self.job.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.begin = time.perf_counter()

    def close(self, tokens: int) -> None:
        """Behind the last one.

        Args:
            tokens: Real tokens of the timed steps.
        """
        from sweeptune.training.memory import host_peak_bytes

        if self.job.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.begin
        self.found = {"tokens_per_s": tokens / seconds, "timed_s": seconds, "rss_gib": host_peak_bytes() / GIB}
        self.found["rss_ever_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        if self.job.cuda:
            self.found["allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
            self.found["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
            self.found["pinned_gib"] = pinned_gib()


def pinned_gib() -> float | None:
    """Most bytes that torch ever held in pinned host memory, the DataLoader's own among them."""
    stats = torch.cuda.host_memory_stats()
    return stats["allocated_bytes.peak"] / GIB if "allocated_bytes.peak" in stats else None


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def trainable(model: torch.nn.Module) -> dict[str, Any]:
    """How much trains, and in which number formats."""
    found: dict[str, int] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = str(parameter.dtype).removeprefix("torch.")
            found[name] = found.get(name, 0) + parameter.numel()
    main = sorted(found, key=lambda name: -found[name])
    return {"trainable": sum(found.values()), "adapter_dtype": "+".join(main)}


# ---- the loop of all that have no trainer of their own


def train(
    model: torch.nn.Module,
    job: Job,
    autocast: Callable[[], AbstractContextManager[None]],
    *,
    tell_lengths: bool = False,
) -> dict[str, Any]:
    """Make every step; return what was measured. Where passes have many shapes, each is run once before the first step,
    forward and backward: what is planned, compiled or tuned for a shape is no part of the measured steps.

    Args:
        model: In training mode, on its device; its forward takes ids, labels and ``num_items_in_batch``.
        job: The conditions.
        autocast: Opens what the forward runs in.
        tell_lengths: Whether the forward also takes ``packed_seq_lengths`` (Unsloth's word for padding-free rows).
    """
    steps = read_steps(job.ids)[: job.steps]
    data = Passes(steps, job, int(model.config.pad_token_id or 0))
    options: dict[str, Any] = {"num_workers": 2, "persistent_workers": True, "pin_memory": True} if job.cuda else {}
    loader = iter(torch.utils.data.DataLoader(data, batch_size=None, shuffle=False, **options))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    learned = [loss_tokens(step) for step in steps]

    def loss_of(batch: dict[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        batch = {name: value.to(job.device, non_blocking=True) for name, value in batch.items()}
        lengths = batch.pop("lengths", None)
        extra = {"packed_seq_lengths": lengths} if tell_lengths and lengths is not None else {}
        with autocast():
            return model(**batch, **extra, use_cache=False, num_items_in_batch=count).loss

    shapes = data.shapes() if job.layout != "full" else []
    for batch in shapes:
        # Nothing is drawn at random and no step is made: losses are the same without it.
        loss_of(batch, torch.tensor(learned[0], device=job.device)).backward()
        optimizer.zero_grad(set_to_none=True)
    if shapes:
        settle(job)
    window, losses, norms = Window(job), [], []
    for number, step in enumerate(steps):
        if number == job.warmup:
            window.open()
        count = torch.tensor(learned[number], device=job.device)
        total = torch.zeros((), device=job.device)
        for _ in range(data.counts[number]):
            loss = loss_of(next(loader), count)
            loss.backward()
            total += loss.detach()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        del loss, step
    window.close(real_tokens(steps[job.warmup :]))
    values = {"losses": [float(loss) for loss in losses], "norms": [float(norm) for norm in norms]}
    return window.found | values | trainable(model) | {"ids": digest(steps), "shapes": len(shapes)}


def ready(job: Job) -> None:
    """Cap and seed, before anything is loaded."""
    if job.cap_gib:
        from sweeptune.training.placement import cap_memory

        cap_memory(job.cap_gib, torch.device("cuda", 0))
    torch.manual_seed(job.seed)


def settle(job: Job) -> None:
    """What loading left over is given back, so that peaks are those of training."""
    gc.collect()
    if job.cuda:
        torch.cuda.empty_cache()


def mixed(job: Job) -> Callable[[], AbstractContextManager[None]]:
    """bf16 autocast, what Trainer(bf16=True) opens; fp32 on a CPU."""
    return (lambda: torch.autocast("cuda", torch.bfloat16)) if job.cuda else nullcontext


# ---- stacks


def load_plain(job: Job) -> Any:
    """The base on its device, as transformers loads it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if job.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=job.weights,
        )
    place = {"": f"{job.device}:0" if job.cuda else job.device}
    return AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=job.weights, attn_implementation="sdpa", device_map=place, **options
    )


def adapters(job: Job) -> Any:
    """LoRA on the seven linears."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=TARGETS)


def run_transformers(job: Job) -> dict[str, Any]:
    """transformers and PEFT as their documentation has it: fp32 adapters under bf16 autocast, and for QLoRA
    ``prepare_model_for_kbit_training``."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    ready(job)
    model = load_plain(job)
    again = {"use_reentrant": False}
    if job.method == "qlora":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=job.checkpointing, gradient_checkpointing_kwargs=again
        )
    elif job.checkpointing:
        model.gradient_checkpointing_enable(again)
    torch.manual_seed(job.seed)
    if job.method != "full":
        model = get_peft_model(model, adapters(job))
    settle(job)
    pure = job.method == "full" and job.dtype == "bf16"
    notes = "sdpa" + (", autocast" if not pure else "") + (", kbit preparation" if job.method == "qlora" else "")
    notes += ", checkpointing" if job.checkpointing else ""
    return train(model.train(), job, nullcontext if pure else mixed(job)) | {"notes": notes}


def run_liger(job: Job) -> dict[str, Any]:
    """Liger's kernels and fused loss under PEFT, without any fp32 upcast: bf16 adapters and no autocast."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from peft import get_peft_model

    apply_liger_kernel_to_llama()
    ready(job)
    model = load_plain(job)
    if job.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(job.seed)
    if job.method != "full":
        model = get_peft_model(model.requires_grad_(False), adapters(job), autocast_adapter_dtype=False)
        for parameter in model.parameters():
            if parameter.requires_grad:  # a quantised base leaves PEFT's own default in place
                parameter.data = parameter.data.to(job.weights)
    settle(job)
    notes = "sdpa, fused loss, no upcast" + (", checkpointing" if job.checkpointing else "")
    autocast = mixed(job) if job.dtype == "fp32" else nullcontext
    return train(model.train(), job, autocast) | {"notes": notes}


def run_unsloth(job: Job, *, bf16: bool = False) -> dict[str, Any]:
    """Unsloth's loader, kernels and checkpointing in our loop.

    Args:
        job: The conditions.
        bf16: Adapters in bf16 and no autocast, instead of its default: fp32 adapters under autocast.
    """
    os.environ |= UNSLOTH
    # Read when it is imported. Beside the base model, so that later runs find what the first has compiled.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(job.folder).parent / "unsloth_compiled"))
    from unsloth import FastLanguageModel

    ready(job)
    again: bool | str = "unsloth" if job.checkpointing else False
    full = job.method == "full"
    model, _ = FastLanguageModel.from_pretrained(
        job.folder,
        max_seq_length=2048,
        dtype=torch.bfloat16,
        load_in_4bit=job.method == "qlora",
        full_finetuning=full,
        use_gradient_checkpointing=again,
        use_exact_model_name=True,
        local_files_only=True,
        **({"float32_mixed_precision": job.dtype == "fp32"} if full else {}),
    )
    if not full:
        model = FastLanguageModel.get_peft_model(
            model,
            r=job.rank,
            target_modules=TARGETS,
            lora_alpha=job.alpha,
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing=again,
            random_state=job.seed,
        )
        if bf16:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
    model.for_training() if hasattr(model, "for_training") else model.train()
    if not job.checkpointing:  # for_training may arm it by default
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
    settle(job)
    pure = bf16 or (full and job.dtype == "bf16")
    notes = ("its own kernels, " if not full else "compiled, ") + ("no autocast" if pure else "autocast")
    notes += ", its checkpointing with offload" if job.checkpointing else ""
    found = train(model, job, nullcontext if pure else mixed(job), tell_lengths=True)
    embedding = model.get_input_embeddings().weight.device.type
    return found | {"notes": notes + ("" if embedding == job.device else f", embedding on the {embedding}")}


def run_trl(job: Job) -> dict[str, Any]:
    """TRL's SFTTrainer with its fused head and Liger's layers."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ready(job)
    steps = read_steps(job.ids)[: job.steps]
    split = [passes(step, job) for step in steps]
    accumulated = {len(parts) for parts in split}
    if len(accumulated) > 1:
        raise ValueError(f"TRL accumulates a fixed number of passes, and the steps here have {sorted(accumulated)}")
    order, rows = [], []
    for part in (part for parts in split for part in parts):
        samples = [sample for row in part for sample in row]
        order.append(list(range(len(rows), len(rows) + len(samples))))
        rows += [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in samples]
    window, found = Window(job), {"losses": [], "norms": []}
    notes = ["SFTTrainer, fused head, Liger layers"] + (["checkpointing"] if job.checkpointing else [])
    tokens = real_tokens(steps[job.warmup :])

    def run_shapes() -> None:
        """What `train` does before its first step, through the trainer's own step and batches."""
        made = [trainer.data_collator([trainer.train_dataset[at] for at in part]) for part in order]
        every = {(batch["input_ids"].shape, batch["labels"].shape): batch for batch in made}
        count = torch.tensor(loss_tokens(steps[0]), device=job.device)
        for batch in sorted(every.values(), key=lambda batch: -batch["input_ids"].numel()):
            trainer.training_step(trainer.model_wrapped, batch, count)
            trainer.model_wrapped.zero_grad(set_to_none=True)
        found["shapes"] = len(every)
        settle(job)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if job.layout == "full":
                return
            try:
                run_shapes()
            except (AttributeError, TypeError) as error:  # another version of the trainer: its row is worth more
                notes.append(f"shapes were not run before: {error}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == job.warmup:
                window.open()
            if state.global_step == len(steps):
                window.close(tokens)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                found["losses"].append(float(logs["loss"]))
                found["norms"].append(float(logs.get("grad_norm", float("nan"))))

    class Order(torch.utils.data.Sampler):  # type: ignore[type-arg]
        batch_size, drop_last = max(map(len, order)), False

        def __iter__(self) -> Iterator[list[int]]:
            return iter(order)

        def __len__(self) -> int:
            return len(order)

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                self.train_dataset,
                batch_sampler=Order(),
                collate_fn=self.data_collator,
                num_workers=2,
                persistent_workers=True,
                pin_memory=True,
            )
            return self.accelerator.prepare(loader)

    config = SFTConfig(
        output_dir=str(Path(job.work) / "trl"),
        max_steps=len(steps),
        per_device_train_batch_size=max(map(len, order)),
        gradient_accumulation_steps=accumulated.pop(),
        learning_rate=job.lr,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=job.cuda and not (job.method == "full" and job.dtype == "bf16"),
        use_cpu=not job.cuda,
        gradient_checkpointing=job.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=job.cuda,
        padding_free=job.layout == "free",
        pad_to_multiple_of=None if job.layout == "full" else MULTIPLE,
        max_length=None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=job.seed,
    )
    trainer = InOrder(
        model=load_plain(job),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        peft_config=None if job.method == "full" else adapters(job),
        callbacks=[Watch()],
    )
    settle(job)
    trainer.train()
    return window.found | found | trainable(trainer.model) | {"notes": ", ".join(notes), "ids": digest(steps)}


def run_sweeptune(job: Job) -> dict[str, Any]:
    """train.py with every proof and measurement, as a user starts it; its record is read afterwards."""
    folder = Path(job.work) / "run"
    before, sys.argv = sys.argv, ["train.py", *job.overrides, f"hydra.run.dir={folder}"]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as ended:
        if ended.code and not (folder / "result.json").is_file():
            raise RuntimeError(f"train.py ended with {ended.code} before there was a record") from None
    finally:
        sys.argv = before
    record = json.loads((folder / "result.json").read_text())
    found = read_run(folder, record)
    if job.cuda:
        found["pinned_gib"] = pinned_gib()
    return found


def read_run(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What our own run folder says, in the words of the other stacks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "grad_norm" in line]
    memory, speed, cost = record["memory"], record["speed"], record["fingerprint"].get("cost") or {}
    quality = record["fingerprint"].get("quality") or {}
    steady = (memory["phases"] or {}).get("steady", {})
    found: dict[str, Any] = {
        "status": record["status"],
        "reason": record["reason"],
        "tokens_per_s": speed["tokens_per_s"],
        "allocated_gib": steady.get("allocated_gib"),
        "reserved_gib": steady.get("reserved_gib"),
        "rss_gib": steady.get("host_gib"),
        "rss_ever_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "peak_memory_gib": memory["peak_memory_gib"],
        "losses": [line["loss"] for line in lines],
        "norms": [line["grad_norm"] for line in lines],
        "trainable": record["params"]["trainable"],
        "adapter_dtype": stored_dtype(folder),
        "exclusive": speed["exclusive"],
        "seconds_by_phase": {name: phase.get("seconds") for name, phase in (memory["phases"] or {}).items()},
        "proofs": {name: bool(value) for name, value in record["proofs"].items()},
        "git": record["environment"].get("git"),
        "plan": {name: quality.get(name) for name in ("data_order", "loss_mask")},
    }
    named = [f"{cost[key]} {word}" for key, word in (("attention", ""), ("kernels", "kernels")) if key in cost]
    again = cost.get("gradient_checkpointing")
    named += [] if not again else ["checkpointing" if again is True else f"checkpointing: {again}"]
    named += ["embedding on the host"] if cost.get("embedding") == "cpu" else []
    named += ["head in NF4"] if cost.get("head") == "nf4" else []
    named += [cost["optimiser"]] if cost.get("optimiser") not in (None, "adamw") else []
    return found | {"notes": ", ".join(word.strip() for word in named)}


def stored_dtype(folder: Path) -> str:
    """The number format of what was trained, from the last checkpoint."""
    from safetensors import safe_open

    found: dict[str, int] = {}
    files = sorted(folder.glob("checkpoints/*/trainable.safetensors"), key=lambda path: path.stat().st_mtime)
    for file in files[-1:]:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                part = tensors.get_slice(name)
                kind = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(part.get_dtype(), part.get_dtype())
                found[kind] = found.get(kind, 0) + int(np.prod(part.get_shape()))
    return "+".join(sorted(found, key=lambda name: -found[name])) or "-"


def make_base(job: Job) -> dict[str, Any]:
    """Write random weights as a plain Llama that every stack can load, with the tokenizer beside them.

    InternLM2 computes what Llama does, and its dynamic NTK begins beyond 32,768 tokens only: the folder says plain
    rotary embeddings, which are the same numbers at 2,048 and cost the peers no synchronisation.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweeptune.models import load_tokenizer
    from sweeptune.models.tiny import tiny_tokenizer

    values = dict(job.architecture or {})
    values["attention_bias"] = values.pop("bias", False)
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta", 10000.0)}
    for name in ("model_type", "rope_scaling"):
        values.pop(name, None)
    config = LlamaConfig(**values, rope_parameters=rope, use_cache=False)
    torch.manual_seed(job.seed)
    with torch.device(job.device):
        model = LlamaForCausalLM._from_config(config, dtype=job.weights)
    part = Path(f"{job.folder}.part")
    model.save_pretrained(part, max_shard_size="5GB")
    tokenizer = load_tokenizer(job.tokenizer) if job.tokenizer else tiny_tokenizer()
    if tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.unk_token:
        tokenizer.pad_token = tokenizer.unk_token  # Unsloth adds a token, and a row to the embedding, otherwise
    tokenizer.save_pretrained(part)
    part.rename(job.folder)
    return {"notes": f"{sum(p.numel() for p in model.parameters()) / 1e9:.3f} B parameters"}


STACKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "transformers": run_transformers,
    "liger": run_liger,
    "trl": run_trl,
    "unsloth": run_unsloth,
    "unsloth_bf16": lambda job: run_unsloth(job, bf16=True),
    "sweeptune": run_sweeptune,
    "base": make_base,
}


@contextmanager
def kept(path: Path) -> Iterator[dict[str, Any]]:
    """Whatever happens inside, ``path`` says how it ended."""
    found: dict[str, Any] = {"status": "completed", "reason": None}
    begin = time.perf_counter()
    try:
        yield found
    except Exception as error:
        first = (str(error).strip() or "nothing more is known").splitlines()[0][:300]
        full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
        found |= {"status": "oom" if full else "crashed", "reason": f"{type(error).__name__}: {first}"}
        traceback.print_exc()
    found |= {"seconds": time.perf_counter() - begin, "versions": versions()}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)


# ---- what can be done before there is a job

HUGGING_FACE = ("transformers", "transformers.models.llama.modeling_llama", "peft", "bitsandbytes")
OURS = (
    "transformers",
    "sweeptune.launch.entry",
    "sweeptune.report",
    "sweeptune.training",
    "sweeptune.models.tiny",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "bitsandbytes",
    "torch.nn.attention.varlen",
    "torch.nn.attention.flex_attention",
)
TRITON = tuple(f"sweeptune.kernels.{name}" for name in ("triton_ops", "adamw_triton", "host_rows_triton"))
IMPORTS: dict[str, tuple[str, ...]] = {
    "transformers": HUGGING_FACE,
    "liger": (*HUGGING_FACE, "liger_kernel.transformers", "liger_kernel.transformers.model.llama"),
    "trl": (*HUGGING_FACE, "datasets", "trl", "trl.trainer.sft_trainer", "liger_kernel.transformers"),
    "unsloth": ("unsloth",),  # first of all, and it imports the rest itself
    "unsloth_bf16": ("unsloth",),
    "sweeptune": OURS,
    "base": ("transformers", "transformers.models.llama.modeling_llama", "sweeptune.models.tiny"),
}


def prepare(stack: str) -> None:
    """Import what a stack is going to import, without any use of the GPU (but Unsloth's, which may open a context).

    What is missing is left to the run, which comes upon it again and says so.
    """
    if stack == "sweeptune":
        from sweeptune.config.allocator import expand_segments

        expand_segments()  # what train.py does first: bitsandbytes asks CUDA for its devices when it is imported
    if stack.startswith("unsloth"):
        os.environ |= UNSLOTH
    triton = TRITON if stack == "sweeptune" and importlib.util.find_spec("triton") else ()
    for name in (*IMPORTS[stack], *triton):
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name} was not imported ahead: {type(error).__name__}: {error}", flush=True)
    if stack == "sweeptune":
        from hydra.core.plugins import Plugins

        Plugins.instance()  # looks through all that is installed
    if opened := contexts():
        print(f"importing {stack} has opened a context on GPU {opened}", flush=True)


def contexts() -> list[int]:
    """The GPUs on which this process is to be seen: asking for their names alone opens no context."""
    asked = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    if not torch.cuda.is_initialized() or asked is None:
        return []
    return [gpu for gpu in range(torch.cuda.device_count()) if asked(gpu)]


def awaited() -> list[str]:
    """The line that says what to run; empty where whoever started this process has gone or needs it no more."""
    line = sys.stdin.readline()
    return json.loads(line) if line else []


Line = TypeVar("Line")
BESIDE = 4
"""Cores for the imports of the next run, which no run that is measured works on, where there are more than twice as
many."""


def prepared(stack: str, wait: Callable[[], Line]) -> Line:
    """`prepare` a stack beside a run that is measured, on other cores; then what ``wait`` returns, on the rest."""
    cores = sorted(os.sched_getaffinity(0))
    apart = BESIDE if len(cores) > 2 * BESIDE else 0
    os.sched_setaffinity(0, cores[-apart:])
    prepare(stack)
    found = wait()
    os.sched_setaffinity(0, cores[: len(cores) - apart])
    return found


def main() -> None:
    """Run the stack that the command line names."""
    stack, *paths = sys.argv[1:]
    if ahead := paths == ["-"]:
        paths = prepared(stack, awaited)
        if not paths:
            return
    source, target = paths
    job = Job(**json.loads(Path(source).read_text()))
    Path(job.work).mkdir(parents=True, exist_ok=True)
    if ahead:
        os.chdir(job.work)  # it was not there yet
    with kept(Path(target)) as found:
        found |= STACKS[stack](job)


if __name__ == "__main__":
    main()
