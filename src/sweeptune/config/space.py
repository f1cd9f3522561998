"""A search space: which settings a study may change, and to what, under which method and condition.

A *point* is a mapping from dotted keys to values; ``method`` is a key like any other. A key that does not apply at a
point (another method's, or one whose condition is not met) is left out of it, so equal runs are equal points.

Example:
    >>> ranks = Parameter("method.rank", {"lora": Choice((4, 16))})
    >>> Space((Parameter("method", {"*": Choice(("full", "lora"))}), ranks), ("full", "lora")).grid()
    [{'method': 'full'}, {'method': 'lora', 'method.rank': 4}, {'method': 'lora', 'method.rank': 16}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from sweeptune.config.domains import (
    Choice,
    Domain,
    FloatRange,
    Value,
    all_values,
    as_plain,
    contains,
    corner_values,
    key_of,
    read_domain,
)
from sweeptune.config.errors import ConfigError

Point = dict[str, Value]
EVERY = "*"
"""Stands for every method among the domains of a parameter."""


@dataclass(frozen=True)
class Parameter:
    """One setting that a search changes."""

    key: str
    """``method``, another group, or a dotted setting."""
    domains: Mapping[str, Domain]
    """What it may be, by method; ``*`` is every method. Methods that are missing do not have it."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Other swept keys and the values at which this one applies; all must be met."""

    def domain(self, method: str) -> Domain | None:
        """What it may be with this method; None where the method lacks it."""
        return self.domains.get(method, self.domains.get(EVERY))

    def asked_as(self, method: str) -> str:
        """Its name to a sampler, which wants one domain for each name: ``optim.lr[full]`` where methods differ."""
        differ = len({key_of(as_plain(domain)) for domain in self.domains.values()}) > 1
        return f"{self.key}[{method}]" if differ else self.key

    def applies(self, point: Mapping[str, Value]) -> bool:
        """Whether the conditions are met by what has been chosen so far."""
        return all(key in point and _among(point[key], allowed) for key, allowed in self.when.items())


@dataclass(frozen=True)
class Space:
    """Everything that a search may change."""

    parameters: tuple[Parameter, ...]
    """In the order typed."""
    methods: tuple[str, ...]
    """The methods in play; one where the method is not swept."""

    def as_dict(self) -> dict[str, Any]:
        """The space as JSON can hold it."""
        return {
            "parameters": [
                {
                    "key": parameter.key,
                    "domains": {method: as_plain(domain) for method, domain in parameter.domains.items()},
                    "when": {key: list(allowed) for key, allowed in parameter.when.items()},
                }
                for parameter in self.parameters
            ],
            "methods": list(self.methods),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Space:
        """What `as_dict` has written."""
        parameters = tuple(
            Parameter(
                item["key"],
                {method: read_domain(domain) for method, domain in item["domains"].items()},
                {key: tuple(allowed) for key, allowed in item["when"].items()},
            )
            for item in plain["parameters"]
        )
        return cls(parameters, tuple(plain["methods"]))

    @property
    def endless(self) -> list[str]:
        """The keys of which some method has an interval."""
        has_interval = [any(isinstance(d, FloatRange) for d in item.domains.values()) for item in self.parameters]
        return [key for key, found in zip(self.swept, has_interval, strict=True) if found]

    @property
    def finite(self) -> bool:
        """Whether the points can be listed: nothing is an interval."""
        return not self.endless

    @property
    def swept(self) -> list[str]:
        """The keys, in the order typed."""
        return [parameter.key for parameter in self.parameters]

    @cached_property
    def walk(self) -> tuple[Parameter, ...]:
        """The parameters in the order in which they are decided: the method first, a condition before what it rules.

        Raises:
            ConfigError: Conditions lean on each other in a circle, or on keys that nothing sweeps.
        """
        left = sorted(self.parameters, key=lambda parameter: parameter.key != "method")
        done: list[Parameter] = []
        while left:
            known = {parameter.key for parameter in done}
            ready = next((parameter for parameter in left if set(parameter.when) <= known), None)
            if ready is None:
                stuck = ", ".join(f"{parameter.key} on {', '.join(parameter.when)}" for parameter in left)
                raise ConfigError(f"the conditions of the space never come to an end: {stuck}. Take one `when` out")
            left.remove(ready)
            done.append(ready)
        return tuple(done)

    def sample(self, suggest: Callable[[str, Domain], Value], given: Mapping[str, Value] | None = None) -> Point:
        """Choose a point, setting after setting; only those that apply are asked for.

        Args:
            suggest: Gets the key, or ``key[method]`` where methods have different domains, and the domain.
            given: Keys that are decided already; they are not asked for. Those that do not apply are left out.

        Returns:
            The point, its keys in the order of `walk`.
        """
        point: Point = {}
        for parameter in self.walk:
            method = self.method_of(point)
            domain = parameter.domain(method)
            if domain is not None and parameter.applies(point):
                decided = given is not None and parameter.key in given
                point[parameter.key] = (
                    given[parameter.key] if given and decided else suggest(parameter.asked_as(method), domain)
                )
        return point

    def method_of(self, point: Mapping[str, Value]) -> str:
        """The method that a point trains with."""
        return str(point.get("method", self.methods[0]))

    def grid(self) -> list[Point]:
        """Every point once, in the order typed, the first key slowest.

        Raises:
            ConfigError: An interval is swept.
        """
        if self.endless:
            raise ConfigError(
                [
                    f"{key}: an interval has no end of values, so there is no grid of them. List them ({key}=<a>,<b>), "
                    "or let a sampler choose: study.sampler=tpe study.trials=<n>"
                    for key in self.endless
                ]
            )
        points: list[Point] = [{}]
        for parameter in self.walk:
            points = [longer for point in points for longer in self._extended(point, parameter)]
        places = self._places()

        def place(point: Point, key: str) -> int:
            return places[self.method_of(point), key, key_of(point[key])] if key in point else -1

        return sorted(points, key=lambda point: [place(point, key) for key in self.swept])

    def _extended(self, point: Point, parameter: Parameter) -> Iterator[Point]:
        domain = parameter.domain(self.method_of(point))
        if domain is None or not parameter.applies(point):
            yield point
        else:
            yield from ({**point, parameter.key: value} for value in all_values(domain))

    def _places(self) -> dict[tuple[str, str, str], int]:
        """Where a value stands in its list, by method, key and value; what does not apply comes first."""
        return {
            (method, parameter.key, key_of(value)): place
            for method in self.methods
            for parameter in self.parameters
            if (domain := parameter.domain(method)) is not None
            for place, value in enumerate(all_values(domain))
        }

    def corners(self) -> list[Point]:
        """A few points that together hold every value of a list and both ends of a range, under each method that has
        it. Values that no point can hold are left out; `unreachable` names them."""
        points: list[Point] = []
        seen: set[tuple[str, str, str]] = set()
        for method, parameter, value in self._corner_values():
            if (method, parameter.key, key_of(value)) not in seen:
                forced = self._forced(parameter, value, method)
                if forced is not None:
                    points.append(self.sample(_unseen_first(forced, method, seen), forced))
                    seen |= {(method, key, key_of(held)) for key, held in points[-1].items()}
        return points or [{}]

    def unreachable(self) -> list[tuple[str, str]]:
        """Pairs of method and key for which the method has values, none of which any point holds."""
        pairs = [(method, parameter) for method in self.methods for parameter in self.parameters]
        return [
            (method, parameter.key)
            for method, parameter in pairs
            if (domain := parameter.domain(method)) is not None
            and all(self._forced(parameter, value, method) is None for value in corner_values(domain))
        ]

    def _corner_values(self) -> Iterator[tuple[str, Parameter, Value]]:
        """Deepest first: a point made for a conditional setting covers values of those that it depends on."""
        for method in self.methods:
            for parameter in reversed(self.walk):
                domain = parameter.domain(method)
                values = [] if domain is None else corner_values(domain)
                for value in [method] if parameter.key == "method" else values:
                    yield method, parameter, value

    def _forced(self, parameter: Parameter, value: Value, method: str) -> Point | None:
        """What must be chosen so that the parameter applies and is `value` under `method`; None: nothing helps."""
        by_key = {item.key: item for item in self.parameters}
        start: Point = {"method": method} if "method" in by_key else {}
        if parameter.key in start and start[parameter.key] != value:
            return None
        for chosen in product(*parameter.when.values()):
            point: Point | None = {**start, parameter.key: value}
            for key, wanted in zip(parameter.when, chosen, strict=True):
                domain = by_key[key].domain(method) if key in by_key else None
                below = self._forced(by_key[key], wanted, method) if domain and contains(domain, wanted) else None
                clash = point is None or below is None or any(point.get(k, v) != v for k, v in below.items())
                point = None if clash or point is None or below is None else {**point, **below}
            if point is not None:
                return point
        return None

    def baselines(self) -> list[Point]:
        """One point for each method, at its recommended settings: what else is swept is left out."""
        points = []
        for method in self.methods:
            point: Point = {"method": method} if "method" in self.swept else {}
            for parameter in self.walk:
                domain = parameter.domain(method)
                # A list of one is no search but the only thing allowed.
                if isinstance(domain, Choice) and len(domain.values) == 1 and parameter.applies(point):
                    point[parameter.key] = domain.values[0]
            points.append(point)
        return points

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """The point as Hydra overrides, quoted so that any value comes out as it went in; keys in the order typed."""
        return [as_override(key, point[key]) for key in self.swept if key in point]


def as_override(key: str, value: Value) -> str:
    """``key=value`` as Hydra reads it back to exactly this value.

    Example:
        >>> as_override("data.path", "a b,c.jsonl"), as_override("method.rank", 4), as_override("study.name", "2024")
        ('data.path="a b,c.jsonl"', 'method.rank=4', 'study.name="2024"')
    """
    # Mappings and the architecture take new keys, which Hydra only lets ++ set, whether they are there or not.
    free = key.startswith("model.architecture.") or isinstance(value, dict)
    return f"{'++' if free else ''}{key}={as_text(value)}"


def as_text(value: Value) -> str:
    """The value as Hydra reads it back, without the key."""
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{as_text(key)}:{as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return value if _is_plain(value) else QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _is_plain(text: str) -> bool:
    """Whether Hydra reads the bare text as this text: ``null``, ``1e3`` and ``true`` are not."""
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", text):
        return False
    try:
        return bool(OverridesParser.create().parse_override(f"key={text}").value() == text)
    except HydraException:
        return False


def _among(value: Value, allowed: tuple[Value, ...]) -> bool:
    return key_of(value) in map(key_of, allowed)


def _unseen_first(
    forced: Mapping[str, Value], method: str, seen: set[tuple[str, str, str]]
) -> Callable[[str, Domain], Value]:
    """Fill a corner with values that no corner has held yet, so that few corners hold them all."""

    def suggest(name: str, domain: Domain) -> Value:
        values = corner_values(domain)
        key = name.removesuffix(f"[{method}]")
        return next((value for value in values if (method, key, key_of(value)) not in seen), values[0])

    return suggest
