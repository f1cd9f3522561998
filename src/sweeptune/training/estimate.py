"""Peak memory on a CUDA GPU, predicted without running and without a GPU.

A few layers of the model are built of fake tensors, and a pass of training, a later one that adds to its gradients, and
one of evaluation run through the package's own code, transformers, PEFT and bitsandbytes, with every allocation noted
(`sweeptune.training.passes`). From these come patterns (`sweeptune.training.patterns`), which are replayed for the
micro-batches of the run, in its order, through the rules of torch's allocator (`sweeptune.training.expandable`):
weights, first step, optimiser states, further steps, evaluation. The order counts, above all without expandable
segments (`sweeptune.training.allocator`): there micro-batches of different sizes leave holes that are reserved and not
used, two fifths of all memory in some runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sweeptune.config.allocator import expands_segments
from sweeptune.config.schema import Config
from sweeptune.tracking.calibration import Calibration, Estimate, calibrate, fits, lines, load_calibration
from sweeptune.training.allocator import Allocator, Block, Full
from sweeptune.training.expandable import Expandable
from sweeptune.training.passes import Passes, Resident, trace_passes
from sweeptune.training.patterns import Pattern
from sweeptune.training.placement import GIB
from sweeptune.training.shapes import Shape, Shapes, backend, bounds, of_data

__all__ = [
    "Calibration",
    "Estimate",
    "bounds",
    "calibrate",
    "estimate",
    "fits",
    "lines",
    "load_calibration",
    "of_data",
]

REPLAYED = 64
"""Micro-batches that are replayed whatever their size."""


def estimate(
    config: Config,
    shapes: Shapes | None = None,
    capacity_gib: float | None = None,
    *,
    expandable: bool | None = None,
) -> Estimate:
    """Predict the peak memory of a run on one CUDA GPU.

    Args:
        config: The run's settings; ``hardware.device`` does not matter.
        shapes: Sizes of its micro-batches: by default those of its data, which is read (`of_data`). `bounds` needs no
            data, takes the largest that the settings allow, and knows nothing of holes.
        capacity_gib: What the allocator may reserve in GiB: near it, it closes holes before it gives up. None: enough
            for everything.
        expandable: Whether the allocator's segments are; None: as in a run that is started from here.

    Raises:
        ConfigError: Data or model are not there, or do not fit the settings.

    Example:
        >>> found = estimate(compose(["method=qlora", "model=internlm2_7b", "model.weights=random"]))
        >>> found.peak_memory_gib, found.parts["activations"]
    """
    config = replace(config, hardware=replace(config.hardware, device="cuda"))
    shapes = shapes or of_data(config)
    passes = trace_passes(config, shapes)
    expandable = expands_segments() if expandable is None else expandable
    try:
        replay = play(passes, shapes, capacity_gib, expandable)
    except Full:
        replay = play(passes, shapes, None, expandable)  # by how much it does not fit
    phase = max(("steady", "eval"), key=lambda name: replay.phases[name])
    parts = {tag: size / GIB for tag, size in replay.fullest[phase].items()}
    allocated = sum(parts.values())
    largest = shapes.largest
    tokens = largest.tokens if passes.flat else largest.rows * largest.length
    return Estimate(
        peak_memory_gib=replay.phases[phase] + passes.paged / GIB,
        allocated_gib=allocated,
        phase=phase,
        phases=replay.phases,
        parts=parts | {"cache": replay.phases[phase] - allocated},
        paged_gib=passes.paged / GIB,
        method=config.method.name,
        checkpointing=bool(config.hardware.gradient_checkpointing),
        details={
            "rows": largest.rows,
            "length": largest.length,
            "positions": largest.positions,
            "eval": {name: getattr(shapes.eval, name) for name in ("rows", "length", "positions")},
            "micro_batches": max(map(len, shapes.steps)),
            "attention": backend(config),
            "kernels": passes.kernels,
            "offloaded_gib": passes.offloaded * tokens / GIB,
            "allocator": "expandable" if expandable else "fixed",
        },
    )


def play(passes: Passes, shapes: Shapes, capacity_gib: float | None, expandable: bool) -> Replay:
    """Replay a run.

    Raises:
        Full: It needs more than the capacity.
    """
    capacity = None if capacity_gib is None else int(capacity_gib * GIB)
    replay = Replay(Expandable(capacity) if expandable else Allocator(capacity))
    replay.keep(passes.resident)
    for number, step in enumerate(notable(shapes.steps)):
        replay.begin("first_step" if number == 0 else "steady")
        for place, shape in enumerate(step):
            alone = len(shapes.steps[number]) == 1
            replay.run(passes.train(shape, later=place > 0, alone=alone), shape, stay=True)
        replay.end_step()
        if number == 0:
            replay.end()
            replay.keep(passes.states)
            replay.begin("steady")
            # The same again: the states have taken room in the meantime.
            replay.run(passes.train(step[0], later=False, alone=len(shapes.steps[0]) == 1), step[0], stay=True)
            replay.end_step()
    replay.end()
    replay.allocator.release()
    replay.begin("eval")
    replay.run(passes.evaluation, shapes.eval, stay=False)
    replay.end()
    return replay


def notable(steps: Sequence[tuple[Shape, ...]]) -> list[tuple[Shape, ...]]:
    """The first micro-batches, and of later ones those that are larger in some way than all before, with their step's
    first, which is alone in finding no gradients. Whatever is smaller finds room where a larger one was."""
    most, seen = (0, 0), 0
    found = []
    for step in steps:
        kept = []
        for place, shape in enumerate(step):
            size = shape.rows * shape.length, shape.rows * shape.positions
            if place == 0 or seen < REPLAYED or size[0] > most[0] or size[1] > most[1]:
                kept.append(shape)
            most = max(most[0], size[0]), max(most[1], size[1])
            seen += 1
        found.append(tuple(kept))
    return found


class Replay:
    """Runs patterns through an allocator and remembers when it was fullest."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.kept: Counter[str] = Counter()
        self.phases: dict[str, float] = {}
        self.fullest: dict[str, Counter[str]] = {}
        self._phase = ""
        self._most = 0
        self._staying: list[tuple[str, Block]] = []

    def begin(self, phase: str) -> None:
        """Begin a phase, or go on with it."""
        if phase != self._phase:
            self.allocator.reset_peak()
            self._phase, self._most = phase, 0

    def end(self) -> None:
        """Note a phase's peak."""
        self.phases[self._phase] = self.allocator.peak_reserved / GIB

    def keep(self, blocks: Iterable[Resident]) -> None:
        """Allocate what stays."""
        for tag, size in blocks:
            self.kept[tag] += self.allocator.take(size).size

    def end_step(self) -> None:
        """Drop the gradients."""
        for _, block in self._staying:
            self.allocator.give(block)
        self._staying = []

    def run(self, pattern: Pattern, shape: Shape, *, stay: bool) -> None:
        """A pass; what it does not free stays until the end of the step, or is freed at once."""
        sizes, allocator = pattern.sizes(shape), self.allocator
        live: dict[int, Block] = {}
        at = None
        for place, event in enumerate(pattern.events):
            if event > 0:
                live[event] = allocator.take(sizes[event])
                if allocator.allocated > self._most:
                    self._most, at = allocator.allocated, place
            elif -event in live:
                allocator.give(live.pop(-event))
        if at is not None:
            self.fullest[self._phase] = self._held(pattern, sizes, at)
        for number, block in live.items():
            if stay:
                self._staying.append((pattern.tags[number], block))
            else:
                allocator.give(block)

    def _held(self, pattern: Pattern, sizes: Sequence[int], at: int) -> Counter[str]:
        """What fills the memory behind an event, in bytes by tag."""
        held = dict.fromkeys(event for event in pattern.events[: at + 1] if event > 0)
        for event in pattern.events[: at + 1]:
            if event < 0:
                held.pop(-event, None)
        found = Counter(self.kept)
        for tag, block in self._staying:
            found[tag] += block.size
        for number in held:
            found[pattern.tags[number]] += max(512, -(-sizes[number] // 512) * 512)
        return found
