"""Where one training step's time goes on a GPU, and what it would take at the least; within 40 s on an H100.

    python bench/step_profile.py --method full          or lora, qlora: InternLM2-1.8B's shape, 8 x 2048 tokens
    python bench/step_profile.py --method lora data=jsonl data.path=gsm8k.jsonl     own settings, without the floor
    python bench/step_profile.py --method lora_fp8          its kernels, without the floor, which is bf16's
    python bench/step_profile.py --method lora --tiny       a trial on a CPU

Conditions are bench/peers.py's. First come the longest kernels of a step, then its matrix products alone, each shape
back to back for so long that the chip's power limit shows, then attention alone; what is left is bytes
(`step_floor.py`) at the measured copy rate. The sum is a floor, which the last table puts beside the step's own
kernels.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import head, line
from peers import settled, vocabulary_words, write_words
from peers_rows import LR
from step_floor import Bytes, Product, Shape, by_kind, least_bytes, products, shape_of
from torch.profiler import ProfilerActivity, profile

from sweeptune.config.allocator import expand_segments
from sweeptune.config.check import check
from sweeptune.config.compose import compose
from sweeptune.config.errors import ConfigError
from sweeptune.data import load_run_tokenizer
from sweeptune.kernels import interfaces
from sweeptune.training.session import Session, open_session
from sweeptune.training.step import train_step

WARMUP, STEPS = 4, 3
WARM_S, SUSTAINED_S = 1.0, 0.2
"""Of products before the first is timed, and of each shape."""
Event: Any = torch.cuda.Event
ROWS = 64
"""Of words, which steps take again and again."""


def overrides(options: argparse.Namespace, data: Path) -> list[str]:
    """The settings of the run: those of bench/peers.py, and whatever else is given."""
    rows, length = (4, 64) if options.tiny else (options.rows, options.length)
    found = [f"model={'tiny' if options.tiny else options.model}", "model.weights=random", f"method={options.method}"]
    found += ["hardware=cpu", "hardware.precision=bf16"] if options.tiny else ["hardware=gpu"]
    found += ["model.dtype=bf16"] if options.method == "full" else []
    found += [f"model.tokenizer={options.tokenizer}"] if options.tokenizer else []
    found += [f"hardware.micro_batch={rows}", "hardware.on_oom=stop"]
    found += [f"optim.lr={LR}", "optim.schedule=linear", "optim.warmup=0", "optim.max_grad_norm=1.0"]
    found += [f"train.tokens_per_step={rows * length}", f"train.max_steps={WARMUP + 2 * STEPS}", "train.epochs=null"]
    found += ["data=jsonl", f"data.path={data}", f"data.max_length={length}", "template=none"]
    found += ["data.format=prompt_completion", "data.loss_on=all", "data.packing=none", "data.on_long_row=truncate"]
    given = {each.partition("=")[0] for each in options.overrides}
    if "data.path" in given:  # own data is of whatever form its own settings say
        found = [each for each in found if not each.startswith(("data", "template"))]
    return settled([*found, *options.overrides])


def opened(options: argparse.Namespace, folder: Path) -> Session:
    """The run, ready to train."""
    data = folder / "words.jsonl"
    given = overrides(options, data)
    if f"data.path={data}" in given:
        config = compose(settled([*given, "hardware=cpu"]))
        words = vocabulary_words(load_run_tokenizer(config.model, config.template))
        write_words(data, config, words, ROWS)
    if problems := check(given, multirun=False):
        raise SystemExit(str(ConfigError(problems)))
    session = open_session(compose(given), folder)
    session.model.train()
    return session


# ---- measuring


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], times: int) -> float:
    """Of one of so many calls back to back, by the device's clock where there is one."""
    synchronize()
    if not torch.cuda.is_available():
        begin = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - begin) / times
    begun, ended = Event(enable_timing=True), Event(enable_timing=True)
    begun.record()
    for _ in range(times):
        call()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1000 / times


def sustained(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call that is repeated for so long."""
    once = max(seconds_of(call, 2), 1e-7)
    return seconds_of(call, max(2, round(seconds / once)))


def profiled(session: Session) -> tuple[float, list[tuple[str, float, int]]]:
    """Milliseconds of a step, and (name, milliseconds, number) of its kernels."""
    for step in session.steps[:WARMUP]:
        train_step(session, step)
    synchronize()
    begin = time.perf_counter()
    for step in session.steps[WARMUP : WARMUP + STEPS]:
        train_step(session, step)
    synchronize()
    wall = (time.perf_counter() - begin) / STEPS * 1000
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for step in session.steps[WARMUP + STEPS :]:
            train_step(session, step)
        synchronize()
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels = [(k.key, getattr(k, spent) / STEPS / 1000, k.count // STEPS) for k in profiler.key_averages()]
    return wall, sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])


def maker(product: Product, device: torch.device) -> Callable[[], Any]:
    """What makes a product of random numbers: an idle multiplication of zeros would take less power."""

    def matrix(rows: int, columns: int, layout: str) -> torch.Tensor:
        drawn = torch.randn((rows, columns) if layout == "n" else (columns, rows), device=device).bfloat16()
        return drawn if layout == "n" else drawn.t()

    a, b = matrix(product.m, product.k, product.layout[0]), matrix(product.k, product.n, product.layout[1])
    out = torch.zeros(product.m, product.n, device=device, dtype=torch.bfloat16)
    if product.into:
        return lambda: out.addmm_(a, b)
    return lambda: torch.mm(a, b, out=out)


def measure_products(wanted: dict[Product, float], device: torch.device) -> dict[Product, float]:
    """Seconds of each product, back to back on a chip that is warm."""
    heaviest = maker(max(wanted, key=lambda product: product.flops), device)
    sustained(heaviest, WARM_S)
    return {product: sustained(maker(product, device), SUSTAINED_S) for product in wanted}


def measure_attention(shape: Shape, rows: int, device: torch.device) -> float:
    """Seconds of a layer's attention, forward and backward, by the kernel that runs were given."""
    query, key, value, cotangent = (
        torch.randn(1, shape.tokens, heads, shape.width, device=device).bfloat16()
        for heads in (shape.heads, shape.key_heads, shape.key_heads, shape.heads)
    )
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in (query, key, value))

    def both() -> None:
        torch.autograd.grad(interfaces._rows(q, k, v, rows, None), (q, k, v), cotangent)

    return sustained(both, 2 * SUSTAINED_S)


def measure_copy(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / sustained(lambda: target.copy_(source), SUSTAINED_S)


# ---- tables


def product_table(wanted: dict[Product, float], seconds: dict[Product, float]) -> list[str]:
    """Each product with its time and rate."""
    found = head(("m", "n", "k", "layout", "times", "ms each", "ms", "TFLOP/s"))
    for product, times in sorted(wanted.items(), key=lambda item: -item[1] * seconds[item[0]]):
        each = seconds[product]
        layout = product.layout + (" +=" if product.into else "")
        cells = (product.m, product.n, product.k, layout, f"{times:.4g}", f"{1000 * each:.4f}")
        found.append(line((*cells, f"{1000 * times * each:.2f}", f"{product.flops / each / 1e12:.0f}")))
    return found


def floor_table(floor: dict[str, float], own: dict[str, float], wall: float, tokens: int) -> list[str]:
    """The floor beside the step, in milliseconds, class by class; what no kernel fills is gaps."""
    gaps = max(0.0, wall - sum(own.values()))
    found = head(("", "floor, ms", "step, ms", "over the floor, ms"))
    for part in floor:
        found.append(line((part, f"{floor[part]:.2f}", f"{own[part]:.2f}", f"{own[part] - floor[part]:+.2f}")))
    least = sum(floor.values())
    found.append(line(("gaps: no kernel runs", "0.00", f"{gaps:.2f}", f"{gaps:+.2f}")))
    found.append(line(("sum", f"{least:.2f}", f"{wall:.2f}", f"{wall - least:+.2f}")))
    rates = [1000 * tokens / each for each in (least, wall)]
    found.append(
        line(("tokens/s", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / rates[0]:.1%} of the floor's"))
    )
    return found


def bytes_line(moved: Bytes, rate: float) -> str:
    """What is moved, in words."""
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in vars(moved).items() if value)
    return f"least GB of the rest: {parts}; a copy moves {rate / 1e9:,.0f} GB/s"


# ---- the script


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("full", "lora", "qlora", "lora_fp8"), default="full")
    parser.add_argument("--model", default="internlm2_1_8b", help="an option of conf/model; its weights are random")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.model; else byte by byte")
    parser.add_argument("--kernels", type=int, default=8, help="of the longest, to print")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("overrides", nargs="*", help="settings as train.py takes them")
    return parser


def shape_and_bytes(session: Session) -> tuple[Shape, Bytes, int]:
    """What a profiled step computes on, what it moves at the least, and its rows."""
    steps: Sequence[Any] = session.steps[WARMUP : WARMUP + STEPS]
    tokens, loss = (round(sum(getattr(s, name) for s in steps) / STEPS) for name in ("tokens", "loss_tokens"))
    config, model = session.config, session.model
    rank = 0 if config.method.name == "full" else config.method.rank
    shape = shape_of(model.config, tokens, loss, rank, nf4=config.method.name == "qlora")
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    states = [t for state in session.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    stored = sum(t.nbytes for t in states if t.numel() > 1)  # but for counters of steps
    return shape, least_bytes(shape, trained, stored), round(sum(len(s.packs) for s in steps) / STEPS)


def main() -> None:
    """Profile a run, then measure what it would take at the least."""
    options = arguments().parse_args()
    expand_segments()
    with tempfile.TemporaryDirectory() as folder:
        session = opened(options, Path(folder))
        wall, kernels = profiled(session)
        shape, moved, rows = shape_and_bytes(session)
        device = session.device
        del session
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    busy = sum(spent for _, spent, _ in kernels)
    share = f"{busy:.0f} ms of them with a kernel running ({busy / wall:.0%})"
    print(f"one step: {wall:.0f} ms, {share}, {sum(count for *_, count in kernels):.0f} kernels")
    for name, spent, count in kernels[: options.kernels]:
        print(f"{spent:8.1f} ms  {count:6.0f} x  {name[:90]}")
    if options.method == "lora_fp8":
        print("no floor: its products are measured in bf16, and these are in fp8")
        return
    if shape.tokens % rows or options.overrides:
        print("no floor: it is of full rows in one pass, and these are other settings")
        return
    wanted = products(shape)
    seconds = measure_products(wanted, device)
    attention = shape.layers * measure_attention(shape, rows, device)
    rate = measure_copy(device)
    floor = {
        "products": 1000 * sum(times * seconds[product] for product, times in wanted.items()),
        "attention": 1000 * attention,
        "elementwise": 1000 * moved.elementwise / rate,
        "optimiser": 1000 * moved.optimiser / rate,
    }
    flops = sum(times * product.flops for product, times in wanted.items())
    print("\n" + "\n".join(product_table(wanted, seconds)))
    print(f"\nall products: {flops / 1e12:.1f} TFLOP at {flops / floor['products'] / 1e9:.0f} TFLOP/s")
    print(bytes_line(moved, rate) + "\n")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{options.method}, {rows} rows, {shape.tokens} tokens ({shape.loss_tokens} with loss), {card}:\n")
    print("\n".join(floor_table(floor, by_kind((name, spent) for name, spent, _ in kernels), wall, shape.tokens)))


if __name__ == "__main__":
    main()
