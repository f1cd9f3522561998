"""What torch's CUDA allocator is told through the environment: expandable segments, unless the user says otherwise.

With segments of fixed sizes, peak memory depends on the order in which rows come: micro-batches of ever other sizes
leave holes (measured with the same rows: 6.68 GiB in one order, up to 9.15 in others). Expandable segments grow and
shrink by pages instead.

torch 2.11 to 2.13 read ``PYTORCH_ALLOC_CONF`` and ``PYTORCH_CUDA_ALLOC_CONF``, each a stand-in for the other and with
the one or the other first (c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h), so whatever is set is kept and
added to. They are read once, when CUDA starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
OPTION = "expandable_segments"
OTHER_BACKEND = "cudaMallocAsync"
"""An allocator of CUDA's own, which has no such segments and warns of the option."""


def expand_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch use expandable segments in this process and those that it starts; call it before CUDA is used.

    A choice of the user's, either way, is left alone; so is another allocator.

    Example:
        >>> environment = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}
        >>> expand_segments(environment)
        >>> environment["PYTORCH_CUDA_ALLOC_CONF"]
        'max_split_size_mb:512,expandable_segments:True'
    """
    given = {name: environment[name] for name in NAMES if environment.get(name, "").strip()}
    if any(OPTION in value or OTHER_BACKEND in value for value in given.values()):
        return
    for name, value in (given or {NAMES[0]: ""}).items():
        environment[name] = ",".join(part for part in (value.strip().rstrip(","), f"{OPTION}:True") if part)


def expands_segments(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a run that is started from here uses expandable segments on a CUDA GPU.

    Example:
        >>> expands_segments({}), expands_segments({"PYTORCH_ALLOC_CONF": "expandable_segments:False"})
        (True, False)
    """
    run = dict(environment)
    expand_segments(run)
    for name in NAMES:
        options = dict(part.replace(" ", "").partition(":")[::2] for part in run.get(name, "").split(","))
        if OPTION in options:
            return options[OPTION] == "True"
    return False
