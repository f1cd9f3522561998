"""Techniques without a setting, taken away in the process; and the process that runs a rung of bench/ladder.py.

A patch replaces one name of ours. One that has gone, or that the run never came by, ends the rung with an error instead
of a figure of something else.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

Put = Callable[[Any, str, Any], None]
"""Replaces an attribute of an object."""
USED: Counter[str] = Counter()


def put(owner: Any, name: str, value: Any) -> None:
    """Replace what is there."""
    if not hasattr(owner, name):
        raise SystemExit(f"{owner} has no {name}: bench/ladder_patches.py has to follow it")
    setattr(owner, name, value)


def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, which tells that it was used."""

    @wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        USED[name] += 1
        return call(*args, **kwargs)

    return told


def whole_logits(put: Put) -> None:
    """The loss without its fused kernel: logits of all loss tokens of a micro-batch at once, in bf16 and in fp32."""
    from sweeptune.training import loss

    put(loss, "fused", counted("whole_logits", lambda model: None))


def flash_rows(put: Put) -> None:
    """Rows of one length by the flash kernel for rows of many lengths."""
    import torch

    from sweeptune.kernels import interfaces

    bounds: dict[tuple[int, int, Any], torch.Tensor] = {}

    def rows(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, samples: int, scaling: float | None
    ) -> torch.Tensor:
        kernel: Any = interfaces.varlen_kernel()
        options = interfaces.varlen_options(kernel, None, query.shape[1] != key.shape[1])
        length = query.shape[2] // samples
        place = samples, length, query.device
        if place not in bounds:
            bounds[place] = torch.arange(samples + 1, dtype=torch.int32, device=query.device) * length
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        ends = bounds[place]
        found: torch.Tensor = kernel(q, k, v, ends, ends, length, length, scale=scaling, **options)
        return found.unsqueeze(0)

    put(interfaces, "_rows", counted("flash_rows", rows))


def adapters_alone(put: Put) -> None:
    """What adapters add to gate, up and the gradient of down's input, by products of their own."""
    from sweeptune.kernels import block, ops

    put(ops, "LATE_RANK", 0)
    put(block.Block, "__init__", counted("adapters_alone", block.Block.__init__))


def last_product(put: Put) -> None:
    """Recomputation makes a block's output too, which nothing reads."""
    from sweeptune.kernels.block import Block

    plain = Block.forward

    def forward(self: Any, hidden: Any, call: Any, *, keep: bool, result: bool = True) -> Any:
        USED["last_product"] += not result
        return plain(self, hidden, call, keep=keep, result=True)

    put(Block, "forward", forward)


def bnb_dequantize(put: Put) -> None:
    """NF4 weights by bitsandbytes' own kernels: the constants first, then the weight."""
    from bitsandbytes.functional import dequantize_4bit

    from sweeptune.kernels import ops

    def dequantize(packed: Any, state: Any, dtype: Any) -> Any:
        return dequantize_4bit(packed, state).to(dtype)

    put(ops, "nf4_dequantize", counted("bnb_dequantize", dequantize))


def cpu_kernels(put: Put) -> None:
    """The fused path on a CPU, by the kernels' plain twins: for trials."""
    from sweeptune.kernels import fuse

    put(fuse, "machine_lacks", counted("cpu_kernels", lambda device: None))


PATCHES: dict[str, Callable[[Put], None]] = {
    patch.__name__: patch
    for patch in (whole_logits, flash_rows, adapters_alone, last_product, bnb_dequantize, cpu_kernels)
}


def apply(names: Sequence[str], put: Put = put) -> None:
    """Put patches into this process."""
    USED.clear()
    for name in names:
        PATCHES[name](put)


def work(source: Path, *, wait: bool = False) -> int:
    """Run what a file says, as train.py does: ``overrides``, ``patches``, the run's ``folder`` and the ``target`` of
    what is known only inside the process.

    Args:
        source: The file.
        wait: Import all that a run needs, then wait for a line of stdin; end where none comes.
    """
    from sweeptune.config.allocator import expand_segments

    expand_segments()  # as the first thing, like train.py
    from stacks import pinned_gib, prepared, versions

    if wait and not prepared("sweeptune", sys.stdin.readline):
        return 0
    from sweeptune.launch.entry import main

    job = json.loads(source.read_text())
    apply(job["patches"])
    status = main([*job["overrides"], f"hydra.run.dir={job['folder']}"])
    import torch

    # Plain code on a CPU asks for no kernels either.
    unused = [name for name in job["patches"] if not USED[name] and name != "cpu_kernels"]
    found = {"unused": unused, "pinned_gib": None, "card": None, "versions": versions()}
    if torch.cuda.is_available():
        found |= {"pinned_gib": pinned_gib(), "card": torch.cuda.get_device_name()}
    Path(job["target"]).write_text(json.dumps(found))
    return status


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
