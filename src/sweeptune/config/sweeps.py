"""What a sweep on the command line stands for, in Hydra's own grammar.

``a=1,2`` and ``choice``, ``range(start,stop,step)`` (stop excluded, as Hydra has it), ``interval(low,high)`` (whole
numbers with ``int(interval(...))``), ``tag(log,...)`` around a range, ``glob`` for groups, casts, ``sort``,
``shuffle``.

Example:
    >>> sweep_domain(parse("optim.lr=tag(log, interval(1e-5, 1e-3))"))
    FloatRange(low=1e-05, high=0.001, log=True)
"""

from __future__ import annotations

import math
import random
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from sweeptune.config import words
from sweeptune.config.compose import groups
from sweeptune.config.domains import Choice, Domain, FloatRange, Value, choice, interval, whole_numbers
from sweeptune.config.errors import ConfigError
from sweeptune.config.space import as_text

_EMPTY_RANGE = "is an empty range: it ends before it begins, and its end is not part of it. Write range(<first>,<end>)"


def parse(text: str) -> Override:
    """One override as Hydra reads it.

    Raises:
        ConfigError: The grammar does not know it.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(words.unreadable(text)) from error


def sweep_domain(override: Override) -> Domain:
    """The values or the range that a sweep stands for.

    Args:
        override: A sweep (`Override.is_sweep_override`).

    Raises:
        ConfigError: It stands for nothing, or for what no search can do; one sentence that begins with the override.
    """
    key = override.key_or_group
    sweep = override._value  # `value()` gives the same for sweeps; a Glob has no public access in Hydra 1.3
    try:
        log = _log(getattr(sweep, "tags", set()))
        if isinstance(sweep, IntervalSweep):
            whole = type(sweep.start) is int
            return (whole_numbers if whole else interval)(sweep.start, sweep.end, log)
        values = _values(override)
        if not values:
            options = groups().get(key, [])
            raise ConfigError(_EMPTY_RANGE if isinstance(sweep, RangeSweep) else words.empty_sweep(key, options))
        if isinstance(sweep, RangeSweep) and _ascending(sweep):
            return whole_numbers(values[0], values[-1], log, sweep.step if len(values) > 1 else 1)
        if log:
            raise ConfigError("log is a scale of ranges, and listed values have none. Take tag(log, ...) away")
        return choice(values)
    except ConfigError as error:
        raise ConfigError([f"{override.input_line}: {problem}" for problem in error.problems]) from error


def sweep_text(key: str, domain: Domain) -> str:
    """The sweep that stands for a domain, as it would be typed."""
    if isinstance(domain, Choice):
        return f"{key}=choice({','.join(map(as_text, domain.values))})"
    if isinstance(domain, FloatRange):
        text = f"interval({domain.low},{domain.high})"
    else:
        text = f"range({domain.low},{domain.high + 1}{f',{domain.step}' if domain.step > 1 else ''})"
    return f"{key}=tag(log,{text})" if domain.log else f"{key}={text}"


def _log(tags: set[str]) -> bool:
    unknown = sorted(tags - {"log"})
    if unknown:
        raise ConfigError(f"the tag {unknown[0]} means nothing here. Allowed: log. Take it away")
    return bool(tags)


def _ascending(sweep: RangeSweep) -> bool:
    whole = all(type(number) is int for number in (sweep.start, sweep.stop, sweep.step))
    return whole and sweep.step > 0 and not sweep.shuffle


def _values(override: Override) -> list[Value]:
    sweep: Any = override._value
    if isinstance(sweep, Glob):
        return list(sweep.filter(groups().get(override.key_or_group, [])))
    if isinstance(sweep, RangeSweep):
        values = _range(sweep.start, sweep.stop, sweep.step)
    else:
        values = [_plain(value) for value in sweep.list]
    if sweep.shuffle:
        # The same command goes on with a study, so it must shuffle in the same way.
        random.Random(str(override.input_line)).shuffle(values)
    return values


def _range(start: float, stop: float, step: float) -> list[Value]:
    """The numbers as they would be typed: Hydra itself adds up 0.1 in binary and arrives at 0.30000000000000004."""
    if step == 0:
        raise ConfigError("a step of 0 never arrives. Give another step")
    if all(type(number) is int for number in (start, stop, step)):
        return list(range(int(start), int(stop), int(step)))
    first, end, by = (Decimal(str(number)) for number in (start, stop, step))
    count = max(0, math.ceil((end - first) / by))
    return [float(first + by * at) for at in range(count)]


def _plain(value: Any) -> Value:
    if isinstance(value, QuotedString):
        return str(value.text)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    plain: Value = value
    return plain
