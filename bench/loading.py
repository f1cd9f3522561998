"""How long a 7B checkpoint takes to be loaded and quantised to NF4, and what that takes of host and device memory.

    python bench/loading.py --work /tmp/loading

It makes a checkpoint of random weights in the published layout of InternLM2-7B (bf16, 15 GB in shards of about 4.5 GB)
and loads it through `sweeptune.models.load_model`, each time in a fresh process: once after the kernel was asked to
drop the files from its cache (cold, as far as it obeys), twice with the files there (warm).

Host memory is the growth of the process's resident set while it loads, anonymous memory (which is really needed) apart
from pages of the mapped files (which the kernel takes back when it wants to). On a CPU, a trial: --model tiny.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sweeptune.config.allocator import expand_segments
from sweeptune.config.compose import groups

SHARD = 4.5e9
"""Bytes after which a new file begins."""


def make(name: str, folder: Path) -> None:
    """Write the checkpoint, unless it is there."""
    import torch
    from safetensors.torch import save_file

    from sweeptune.config.compose import compose
    from sweeptune.models import load_config

    if (folder / "model.safetensors.index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(compose([f"model={name}", "model.weights=random"]).model)
    config.save_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device=device).manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    files = 0

    def write() -> None:
        nonlocal files
        files += 1
        file = f"model-{files:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        shard.clear()

    for key, shape in shapes(config).items():
        values = torch.randn(shape, generator=draw, device=device, dtype=torch.float32) * 0.02
        shard[key] = (values + (len(shape) == 1)).bfloat16().cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            write()
    write()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint: InternLM2's published names, else Llama's."""
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    head = getattr(config, "head_dim", None) or d // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    internlm = config.model_type == "internlm2"
    found: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight" if internlm else "model.embed_tokens.weight": (v, d)
    }
    for layer in range(config.num_hidden_layers):
        if internlm:
            parts = {"attention.wqkv": (q + 2 * kv, d), "attention.wo": (d, q), "feed_forward.w1": (f, d)}
            parts |= {"feed_forward.w3": (f, d), "feed_forward.w2": (d, f), "attention_norm": (d,), "ffn_norm": (d,)}
        else:
            parts = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
            parts |= {
                "self_attn.o_proj": (d, q),
                "mlp.gate_proj": (f, d),
                "mlp.up_proj": (f, d),
                "mlp.down_proj": (d, f),
            }
            parts |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    found["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        found["output.weight" if internlm else "lm_head.weight"] = (v, d)
    return found


def resident() -> dict[str, int]:
    """Bytes of this process's resident memory, by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words and words[0].startswith("Rss")}


def load(folder: Path) -> dict[str, float]:
    """Load once, in this process."""
    expand_segments()
    import torch

    from sweeptune.methods.quantized import nf4
    from sweeptune.models import load_model

    cuda = torch.cuda.is_available()
    if cuda:
        torch.zeros(1, device="cuda")
    before, most, over = resident(), resident(), threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for kind, size in resident().items():
                most[kind] = max(most.get(kind, 0), size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begin = time.perf_counter()
    model = load_model(folder, dtype=torch.bfloat16, device="cuda" if cuda else "cpu", quantization=nf4(torch.bfloat16))
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    over.set()
    watcher.join()
    assert not any(parameter.is_meta for parameter in model.parameters())
    return {
        "seconds": seconds,
        "anonymous": (most["RssAnon"] - before["RssAnon"]) / 2**30,
        "file": (most["RssFile"] - before["RssFile"]) / 2**30,
        "device": torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
        "stays": torch.cuda.memory_allocated() / 2**30 if cuda else 0.0,
    }


def drop_cache(folder: Path) -> None:
    """Ask the kernel to forget the files."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Make, load three times, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint; 16 GB")
    known = {"choices": groups()["model"], "metavar": "MODEL"}
    parser.add_argument("--model", default="internlm2_7b", help="an option of conf/model", **known)
    parser.add_argument("--load", action="store_true", help="load once and print JSON (what the processes do)")
    options = parser.parse_args()
    folder = options.work / options.model
    if options.load:
        print(json.dumps(load(folder)))
        return
    begin = time.perf_counter()
    make(options.model, folder)
    sizes = [file.stat().st_size / 2**30 for file in folder.glob("*.safetensors")]
    made = time.perf_counter() - begin
    print(f"{len(sizes)} files, {sum(sizes):.1f} GiB, the largest {max(sizes):.1f}; made in {made:.0f} s")
    print("| cache | seconds | host anonymous GiB | host mapped file GiB | device peak GiB | device afterwards GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for cache in ("cold", "warm", "warm"):
        if cache == "cold":
            drop_cache(folder)
        command = [sys.executable, __file__, "--work", str(options.work), "--model", options.model, "--load"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        figures = " | ".join(f"{found[key]:.2f}" for key in ("anonymous", "file", "device", "stays"))
        print(f"| {cache} | {found['seconds']:.1f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
