"""What one setting may be in a search: a list of values, a range of whole numbers, or an interval.

Example:
    >>> read_domain({"range": [4, 64], "log": True})
    IntRange(low=4, high=64, log=True, step=1)
    >>> as_plain(Choice((1, 2)))
    {'choice': [1, 2]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeptune.config.errors import ConfigError

Value = str | int | float | bool | None | list[Any] | dict[str, Any]
"""What YAML and an override can hold."""

DOMAIN_WORDS = ("choice", "range", "interval", "log", "step")


@dataclass(frozen=True)
class Choice:
    """One of these values; their order carries no meaning but the order of a grid."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class IntRange:
    """The whole numbers low, low + step, ... up to high, both ends included."""

    low: int
    high: int
    log: bool = False
    """Proposed evenly in the logarithm."""
    step: int = 1


@dataclass(frozen=True)
class FloatRange:
    """Any number from low to high."""

    low: float
    high: float
    log: bool = False
    """Proposed evenly in the logarithm."""


Domain = Choice | IntRange | FloatRange


def corner_values(domain: Domain) -> list[Value]:
    """Every value of a list, both ends of a range: if these are legal, nearly always all are."""
    if isinstance(domain, Choice):
        return list(domain.values)
    return [domain.low] if domain.low == domain.high else [domain.low, domain.high]


def all_values(domain: Domain) -> list[Value]:
    """Every value, in order; an interval has no end of them.

    Raises:
        ConfigError: The domain is an interval.
    """
    if isinstance(domain, FloatRange):
        raise ConfigError(f"an interval from {domain.low} to {domain.high} has no end of values")
    return list(domain.values) if isinstance(domain, Choice) else list(range(domain.low, domain.high + 1, domain.step))


def contains(domain: Domain, value: Value) -> bool:
    """Whether the value is one that a search over the domain would ever propose; of an interval, none ever is."""
    if isinstance(domain, IntRange):
        inside = isinstance(value, int) and not isinstance(value, bool)
        return inside and value in range(domain.low, domain.high + 1, domain.step)
    return isinstance(domain, Choice) and key_of(value) in map(key_of, domain.values)


def key_of(value: Any) -> str:
    """Equal for the same value of the same type: ``True`` is not ``1``, and lists can be compared."""
    return json.dumps(value, sort_keys=True)


def read_domain(plain: Any) -> Domain:
    """A domain from its YAML form: ``[4, 8]``, ``{choice: [4, 8]}``, ``{range: [4, 64], log: true, step: 1}`` or
    ``{interval: [1e-5, 1e-3], log: true}``. `as_plain` is the way back.

    Raises:
        ConfigError: What is wrong with it, without the name of the setting.
    """
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return choice(plain)
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{json.dumps(plain)} is one value. Give a list of several, [a, b], or take it out")
    forms = [word for word in ("choice", "range", "interval") if word in plain]
    if len(forms) != 1 or set(plain) - set(DOMAIN_WORDS):
        raise ConfigError(
            f"{json.dumps(plain)} is no list of values and no range. Allowed: [a, b], {{choice: [a, b]}}, "
            "{range: [low, high], log: false, step: 1} for whole numbers, {interval: [low, high], log: false}"
        )
    if forms == ["choice"]:
        if extra := [word for word in ("log", "step") if word in plain]:
            raise ConfigError(f"a choice has no {extra[0]}. Take {extra[0]} out, or give range or interval")
        return choice(plain["choice"])
    ends, log, step = plain[forms[0]], plain.get("log", False), plain.get("step", 1)
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise ConfigError(f"{forms[0]}: {json.dumps(ends)} must be its two ends, [low, high]")
    if not isinstance(log, bool):
        raise ConfigError(f"log: {json.dumps(log)} must be true or false")
    if forms == ["interval"] and "step" in plain:
        raise ConfigError("an interval has no step. Take step out, or list the values: [a, b, c]")
    return whole_numbers(ends[0], ends[1], log, step) if forms == ["range"] else interval(ends[0], ends[1], log)


def choice(values: Any) -> Choice:
    """A list of values, each kept once.

    Raises:
        ConfigError: It is empty or no list.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"choice: {json.dumps(values)} must be a list of values, [a, b]")
    if not values:
        raise ConfigError("stands for no value at all. List at least one, [a, b]")
    return Choice(tuple({key_of(value): value for value in values}.values()))


def whole_numbers(low: Any, high: Any, log: bool, step: Any = 1) -> IntRange:
    """A range of whole numbers; its upper end is brought down to the last one that the step reaches.

    Raises:
        ConfigError: It is empty, not of whole numbers, or logarithmic and cannot be.
    """
    if not all(type(number) is int for number in (low, high, step)) or step < 1:
        raise ConfigError(
            f"range: [{low}, {high}] with step {step}: all three must be whole numbers and the step at least 1. "
            "Numbers between whole ones are an interval: [low, high]"
        )
    _check_ends(low, high, log)
    if log and step != 1:
        raise ConfigError(f"log with step {step}: a logarithmic range has no step. Take one of them out")
    return IntRange(low, high - (high - low) % step, log, step)


def interval(low: Any, high: Any, log: bool) -> FloatRange:
    """An interval, both ends included.

    Raises:
        ConfigError: It is empty, not of numbers, or logarithmic and cannot be.
    """
    numbers = [number for number in (low, high) if type(number) in (int, float) and math.isfinite(number)]
    if len(numbers) != 2:
        raise ConfigError(f"interval: [{json.dumps(low)}, {json.dumps(high)}] must be two finite numbers, [low, high]")
    _check_ends(low, high, log)
    return FloatRange(float(low), float(high), log)


def as_plain(domain: Domain) -> dict[str, Any]:
    """The domain as JSON can hold it; `read_domain` reads it back."""
    if isinstance(domain, Choice):
        return {"choice": list(domain.values)}
    if isinstance(domain, FloatRange):
        return {"interval": [domain.low, domain.high], "log": domain.log}
    return {"range": [domain.low, domain.high], "log": domain.log, "step": domain.step}


def _check_ends(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ConfigError(f"from {low} to {high} is an empty range. The lower end comes first: [{high}, {low}]")
    if log and low <= 0:
        raise ConfigError(f"log from {low}: a logarithm needs a lower end above 0. Raise it, or take log out")
