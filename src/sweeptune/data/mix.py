"""Several datasets with weights: an order of rows in which each has its share of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import MixPart
from sweeptune.data.store import TokenStore


def weighted(parts: Sequence[MixPart]) -> bool:
    """Whether the datasets have weights.

    Raises:
        ConfigError: Some have and some have not.
    """
    bare = [part.path for part in parts if part.weight is None]
    if bare and len(bare) < len(parts):
        raise ConfigError(
            f"data.mix: {', '.join(bare)} has no weight and others have. Give each a weight, or none of them one: then "
            "each row is seen once"
        )
    return bool(parts) and not bare


def mixed(rows: TokenStore, parts: Sequence[MixPart]) -> tuple[TokenStore, list[dict[str, Any]]]:
    """Repeat rows until each dataset has its share of the tokens of an epoch.

    The dataset that is largest for its weight is seen once, every other one in whole passes and a rest, whose rows are
    chosen by hash. So every row is seen at least once an epoch, and shares hold to within a row of each dataset.

    Args:
        rows: The training rows.
        parts: The datasets, in the order of ``rows.sources``, each with a weight.

    Returns:
        A view of the rows, and for each dataset its path, weight, rows, tokens, passes and share of the tokens.

    Raises:
        ConfigError: A dataset has no training row.
    """
    sources, lengths = rows.sources, rows.lengths
    order = np.frombuffer(rows.digests.tobytes(), dtype=">u8")[::2]
    weights = np.array([part.weight for part in parts], dtype=np.float64)
    tokens = np.array([lengths[sources == i].sum() for i in range(len(parts))], dtype=np.int64)
    if not tokens.all():
        missing = parts[int(np.argmin(tokens))].path
        raise ConfigError(
            f"data.mix: {missing} has no training row of its own (held-out rows and rows that stood in an earlier "
            "dataset do not count), so it cannot have a share; leave it out or bring more rows"
        )
    wanted = weights * (tokens / weights).max()
    chosen = [np.arange(len(rows))]
    for i, target in enumerate(wanted):
        own = np.flatnonzero(sources == i)
        passes = max(1, int(target / tokens[i] + 1e-9))
        own = own[np.argsort(order[own], kind="stable")]
        rest = int(np.abs(np.cumsum([0, *lengths[own]]) - (target - passes * tokens[i])).argmin())
        chosen += [np.sort(own)] * (passes - 1) + [np.sort(own[:rest])]
    view = rows.take(np.concatenate(chosen))
    return view, _shares(view, parts, tokens)


def _shares(view: TokenStore, parts: Sequence[MixPart], once: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    sources, lengths = view.sources, view.lengths
    found = []
    for i, part in enumerate(parts):
        tokens = int(lengths[sources == i].sum())
        found.append(
            {
                "path": part.path,
                "weight": part.weight,
                "rows": int((sources == i).sum()),
                "tokens": tokens,
                "passes": tokens / int(once[i]),
                "share": tokens / int(lengths.sum()),
            }
        )
    return found
