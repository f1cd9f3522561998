"""Refuse wrong overrides before anything runs, all of them at once.

Hydra stops at its first error, and a `+key` that no schema has would vanish without a word. So each override is parsed
and checked on its own against the groups in ``conf/`` and the schema, and so is each parameter of a space; then the
rest is composed, with the wrong ones left out, for the rules between settings: in a search for points that together
hold every value and both ends of every range under each method.

Example:
    >>> for problem in check(["method=lorra", "method.rnak=4"], multirun=False):
    ...     print(problem)
    method=lorra: no such method. Allowed: dora, full, lora, lora_fp8, lora_int8, pissa, qlora, rslora. Did you mean
    method=lora?
    method.rnak=4: no such setting. Did you mean method.rank=4?
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeptune.config import words
from sweeptune.config.compose import compose_once, from_plain, groups, to_config, without_hydra
from sweeptune.config.domains import Value, all_values, corner_values, key_of
from sweeptune.config.errors import ConfigError
from sweeptune.config.override_checks import Seen, World, check_group, check_key, is_hydra, is_stock_sweeper
from sweeptune.config.read_space import fixed_overrides, plain_space, read_space, sort_command, space_parameters
from sweeptune.config.rules import validate
from sweeptune.config.schema import METHOD_SCHEMAS, Config
from sweeptune.config.space import EVERY, Parameter, Point, Space, as_override
from sweeptune.config.space_yaml import read_parameters
from sweeptune.config.study_rules import search_problems
from sweeptune.config.sweeps import parse, sweep_text

__all__ = ["check", "check_overrides", "groups", "ignored_by_one_run", "validate"]

MAX_POINTS = 200


def check(argv: Sequence[str], *, multirun: bool) -> list[str]:
    """All problems of a command, in the order of its overrides, then those between settings.

    Args:
        argv: The overrides only, as Hydra takes them: ``["method=qlora", "method.rank=8"]``, without flags.
        multirun: Whether ``--multirun`` is given. Then points of the search space are composed and validated: those
            that hold every value and both ends of every range, and others, up to 200.

    Returns:
        Sentences without repetition; empty when everything may start.
    """
    seen, of_the_space = _inspect(argv, multirun=multirun)
    problems = [problem for item in seen + of_the_space for problem in item.problems]
    kept = [item.text for item in seen if item.text is not None]
    if multirun:
        problems += _search(kept, compose=not any(item.problems for item in of_the_space))
    else:
        problems += _compose([parse(text) for text in kept], {}, _share)[1]
    return list(dict.fromkeys(problems))


def check_overrides(argv: Sequence[str], *, multirun: bool) -> list[str]:
    """The problems of each override on its own, in order: names, types, bounds and sweeps.

    Args:
        argv: The overrides only, without flags.
        multirun: Whether ``--multirun`` is given; without it a sweep such as ``seed=0,1`` is a problem.
    """
    seen, of_the_space = _inspect(argv, multirun=multirun)
    return list(dict.fromkeys(problem for item in seen + of_the_space for problem in item.problems))


def ignored_by_one_run(argv: Sequence[str]) -> str | None:
    """What a command without ``--multirun`` asks for in vain: settings of a study, and the sweep of an experiment.

    Args:
        argv: The overrides only, checked before.

    Example:
        >>> ignored_by_one_run(["method=lora", "study.trials=30"])
        'study.trials=30: without --multirun (-m) this is one run, of which a setting of a study changes nothing. ...'
    """
    overrides = {item.key_or_group: item for item in map(parse, argv)}
    vain = [_text(item) for key, item in overrides.items() if key == "study" or key.startswith("study.")]
    if "experiment" in overrides:
        brought = sort_command([_text(overrides["experiment"])])
        vain += [_text(overrides["experiment"])] if brought.swept or space_parameters(brought) else []
    return words.needs_a_study(vain, argv) if vain else None


def _inspect(argv: Sequence[str], *, multirun: bool) -> tuple[list[Seen], list[Seen]]:
    """The overrides in order, with what Hydra says of its own ones last; and what an experiment or a space sweeps."""
    parsed = [_parsed(text) for text in argv]
    result = {at: item for at, item in enumerate(parsed) if isinstance(item, Seen)}
    overrides = {at: item for at, item in enumerate(parsed) if isinstance(item, Override)}
    # Groups first: the method that is chosen decides which keys there are.
    for at, override in overrides.items():
        if override.key_or_group in groups():
            repeated = override.key_or_group in [other.key_or_group for b, other in overrides.items() if b < at]
            result[at] = check_group(override, multirun=multirun, repeated=repeated)
        elif is_stock_sweeper(override):
            result[at] = Seen((words.stock_sweeper(override),), ())
        elif is_hydra(override):
            swept = override.is_sweep_override()
            result[at] = Seen((words.never_swept(override),), ()) if swept else Seen((), (override,), _text(override))
        elif override.key_or_group.startswith("space."):
            seen = check_key(override, World(compose_once(()), ("lora",), multirun))
            ignored = not multirun and not seen.problems
            result[at] = Seen((words.space_needs_multirun(override),), ()) if ignored else seen
    cfg, unfit = _reference([seen.values[0] for seen in result.values() if seen.values])
    if unfit:
        result |= {at: Seen((), ()) for at, override in overrides.items() if is_hydra(override)}
    typed = {item.key_or_group for item in overrides.values()}
    extra = [*_of_experiment(cfg, typed), *_of_space(cfg, typed)] if multirun else []
    chosen = [value for seen in result.values() for value in seen.values if value.key_or_group == "method"]
    chosen = chosen or [value for _, item, _ in extra for value in _methods_of(item)]
    methods = tuple(str(item.value()) for item in chosen) or (str(cfg.method.name),)
    world = World(cfg, methods, multirun, searched=frozenset(cfg.space.parameters) if multirun else frozenset())
    for at, override in overrides.items():
        if at not in result:
            result[at] = check_key(override, world)
    result |= {at: _with_resume(result[at], item, overrides) for at, item in overrides.items()}
    return [result[at] for at in sorted(result)] + unfit, [_check_extra(*item, world) for item in extra]


def _parsed(text: str) -> Override | Seen:
    try:
        return parse(text)
    except ConfigError as error:
        return Seen(tuple(error.problems), ())


def _text(override: Override) -> str:
    return str(override.input_line)


def _reference(chosen: Sequence[Override]) -> tuple[DictConfig, list[Seen]]:
    """The run that group choices and ``hydra.*`` settings give; without the latter when Hydra refuses them.

    Raises:
        ConfigError: The YAML files of the chosen options do not compose.
    """
    try:
        return compose_once(tuple(_text(override) for override in chosen)), []
    except ConfigError as error:
        own = tuple(_text(override) for override in chosen if not is_hydra(override))
        return compose_once(own), [Seen(tuple(error.problems), ())]


_Extra = tuple[str, Override | Seen, tuple[str, ...]]
"""Where it stands, what it would be on the command line, the methods named for it (none: those in play)."""


def _of_experiment(cfg: DictConfig, typed: set[str]) -> Iterator[_Extra]:
    """What ``hydra.sweeper.params`` sweeps; a key on the command line replaces it."""
    for key, value in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items():
        if key not in typed:
            yield "", _parsed(f"{key}={value}"), ()


def _of_space(cfg: DictConfig, typed: set[str]) -> Iterator[_Extra]:
    """What the space sweeps; what cannot be read of it is reported with its conditions."""
    try:
        parameters = read_parameters(plain_space(cfg))[0]
    except ConfigError as error:
        yield "", Seen(tuple(error.problems), ()), ()
        return
    for key, parameter in parameters.items():
        for method, domain in parameter.domains.items():
            named = _named_methods(parameter) if method == EVERY else (method,)
            if key not in typed:
                yield f"space={cfg.space.name}: ", _parsed(sweep_text(key, domain)), named


def _named_methods(parameter: Parameter) -> tuple[str, ...]:
    return tuple(str(method) for method in parameter.when.get("method", ()) if method in METHOD_SCHEMAS)


def _methods_of(item: Override | Seen) -> tuple[Override, ...]:
    is_method = isinstance(item, Override) and item.key_or_group == "method"
    return check_group(item, multirun=True).values if is_method else ()


def _check_extra(where: str, item: Override | Seen, named: tuple[str, ...], world: World) -> Seen:
    if isinstance(item, Override):
        if item.key_or_group in groups():
            item = check_group(item, multirun=True)
        else:
            item = check_key(item, replace(world, methods=named, named=True) if named else world)
    return replace(item, problems=tuple(f"{where}{problem}" for problem in item.problems))


def _with_resume(seen: Seen, override: Override, overrides: dict[int, Override]) -> Seen:
    resumes = [other for other in overrides.values() if other.key_or_group == "resume" and other.value() is not None]
    if not resumes or override.key_or_group == "resume" or is_hydra(override):
        return seen
    return Seen((*seen.problems, words.no_effect_with_resume(override)), ())


def _search(kept: Sequence[str], *, compose: bool) -> list[str]:
    """The problems of a search space as a whole, and those of its points."""
    try:
        space = read_space(kept)
        fixed = [parse(text) for text in fixed_overrides(kept)]
    except ConfigError as error:
        return error.problems
    share = cache(_share)
    composed = [_compose(fixed, point, share) for point in _points(space)] if compose else []
    config = next((config for config, _ in composed if config is not None), None)
    of_points = [problem for _, problems in composed for problem in problems]
    return (search_problems(space, config.study) if config else []) + of_points


def _points(space: Space) -> list[Point]:
    """All points when they are few; else those that hold every value, and others that combine values by chance."""
    domains = [list(parameter.domains.values()) for parameter in space.parameters]
    if space.finite and math.prod(max(len(all_values(domain)) for domain in each) for each in domains) <= MAX_POINTS:
        return space.grid()
    draw = random.Random(0)
    corners = space.corners()
    more = [space.sample(lambda _, domain: draw.choice(corner_values(domain))) for _ in range(MAX_POINTS)]
    distinct = {key_of(point): point for point in [*corners, *more]}
    return list(islice(distinct.values(), max(MAX_POINTS, len(corners))))


def _compose(
    fixed: Sequence[Override], point: Point, share: Callable[[tuple[str, ...], tuple[str, ...]], _Shared]
) -> tuple[Config | None, list[str]]:
    """Compose one run and ask the rules between its settings; no configuration where a setting is not legal."""
    chosen = [_text(item) for item in fixed if item.key_or_group in groups() or is_hydra(item)]
    chosen += [as_override(key, value) for key, value in point.items() if key in groups()]
    lines = [_text(item) for item in fixed if item.key_or_group not in groups() and not is_hydra(item)]
    values = {key: value for key, value in point.items() if key not in groups()}
    try:
        shared = share(tuple(chosen), tuple(lines))
        config = from_plain(shared.with_values(values)) if shared.allows(values) else _slowly(shared.cfg, values)
    except ConfigError as error:
        return None, error.problems
    return config, validate(config)


@dataclass(frozen=True)
class _Shared:
    """What points with the same options have in common: composing takes a tenth of a second, resolving a hundredth."""

    cfg: DictConfig
    resolved: Any
    """The plain settings; None where something cannot be resolved."""
    referenced: frozenset[str]
    """The settings that others take their value from."""

    def allows(self, values: Mapping[str, Value]) -> bool:
        """Whether the values can be put in place without resolving again."""
        simple = all(key.count(".") < 2 and "${" not in key_of(value) for key, value in values.items())
        mappings = any(isinstance(value, dict) for value in values.values())
        return simple and not mappings and self.resolved is not None and not self.referenced & values.keys()

    def with_values(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The plain settings of one point."""
        result = dict(self.resolved)
        for key, value in values.items():
            section, _, field = key.partition(".")
            result[section] = {**result[section], field: value} if field else value
        return result


def _share(chosen: tuple[str, ...], lines: tuple[str, ...]) -> _Shared:
    cfg = without_hydra(compose_once(chosen))
    OmegaConf.set_struct(cfg, False)
    for line in lines:
        _apply(cfg, parse(line))
    referenced = re.findall(r"\$\{([\w.]+)\}", key_of(OmegaConf.to_container(cfg)))
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        resolved = None
    return _Shared(cfg, resolved, frozenset(referenced))


def _slowly(cfg: DictConfig, values: Mapping[str, Value]) -> Config:
    cfg = copy.deepcopy(cfg)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, merge=True)
    return to_config(cfg)


def _apply(cfg: DictConfig, override: Override) -> None:
    key = override.key_or_group
    if override.is_delete():
        parent, _, leaf = key.rpartition(".")
        del OmegaConf.select(cfg, parent)[leaf]
    else:
        OmegaConf.update(cfg, key, override.value(), merge=True)
