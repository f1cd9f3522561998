"""Refuse wrong overrides before anything runs, all of them at once.

Hydra stops at its first error, and a `+key` that no schema has would vanish without a word. So each override is parsed
and checked on its own against the groups in ``conf/`` and the schema; then the rest is composed, with the wrong ones
left out, for the rules between settings. In a sweep that happens for every combination.

Example:
    >>> for problem in check(["method=lorra", "method.rnak=4"], multirun=False):
    ...     print(problem)
    method=lorra: no such method. Allowed: dora, full, lora, lora_int8, pissa, qlora, rslora. Did you mean method=lora?
    method.rnak=4: no such setting. Did you mean method.rank=4?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sweeptune.config import words
from sweeptune.config.compose import compose_raw, conf_dir, to_config, without_hydra
from sweeptune.config.errors import ConfigError
from sweeptune.config.fields import field_type, fields_in, fits, literals, sections, takes
from sweeptune.config.rules import validate
from sweeptune.config.schema import METHOD_SCHEMAS

__all__ = ["check", "check_overrides", "swept_keys", "validate"]

MAX_POINTS = 200
_PREFIX = {OverrideType.CHANGE: "", OverrideType.ADD: "+", OverrideType.FORCE_ADD: "++", OverrideType.DEL: "~"}


@dataclass(frozen=True)
class _Seen:
    """One override after its check."""

    problems: tuple[str, ...]
    values: tuple[Override, ...]
    """The single values it stands for: one, or those of a sweep; none when it is left out."""


@dataclass(frozen=True)
class _World:
    """What keys are checked against: the run that the group choices alone would give."""

    cfg: DictConfig
    methods: tuple[str, ...]
    multirun: bool


def check(argv: Sequence[str], *, multirun: bool) -> list[str]:
    """All problems of a command, in the order of its overrides, then those between settings.

    Args:
        argv: The overrides only, as Hydra takes them: ``["method=qlora", "method.rank=8"]``, without flags.
        multirun: Whether ``--multirun`` is given. Then up to 200 combinations are composed and validated too.

    Returns:
        Sentences without repetition; empty when everything may start.
    """
    seen = _inspect(argv, multirun=multirun)
    problems = [problem for item in seen for problem in item.problems]
    axes = [item.values for item in seen if item.values]
    for point in islice(product(*axes), MAX_POINTS):
        problems += _check_point(point)
    return list(dict.fromkeys(problems))


def check_overrides(argv: Sequence[str], *, multirun: bool) -> list[str]:
    """The problems of each override on its own, in order: names, types, bounds and sweeps.

    Args:
        argv: The overrides only, without flags.
        multirun: Whether ``--multirun`` is given; without it a sweep such as ``seed=0,1`` is a problem.
    """
    problems = [problem for item in _inspect(argv, multirun=multirun) for problem in item.problems]
    return list(dict.fromkeys(problems))


def swept_keys(argv: Sequence[str]) -> list[str]:
    """The keys that a command sweeps, in its order; overrides that cannot be parsed sweep nothing."""
    parsed = [_parse(text) for text in argv]
    return [item.key_or_group for item in parsed if isinstance(item, Override) and item.is_sweep_override()]


@cache
def groups() -> dict[str, list[str]]:
    """The groups in ``conf/`` and the options of each, sorted."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _inspect(argv: Sequence[str], *, multirun: bool) -> list[_Seen]:
    parsed = [_parse(text) for text in argv]
    result = {at: item for at, item in enumerate(parsed) if isinstance(item, _Seen)}
    overrides = {at: item for at, item in enumerate(parsed) if isinstance(item, Override)}
    # Groups first: the method that is chosen decides which keys there are.
    for at, override in overrides.items():
        if override.key_or_group in groups():
            earlier = [other.key_or_group for before, other in overrides.items() if before < at]
            result[at] = _check_group(override, multirun, override.key_or_group in earlier)
        elif _is_hydra(override):
            result[at] = _Seen((), () if override.is_sweep_override() else (override,))
    cfg, unfit = _reference([seen.values[0] for seen in result.values() if seen.values])
    if unfit:
        result |= {at: _Seen((), ()) for at, override in overrides.items() if _is_hydra(override)}
    swept = _swept_by_experiment(cfg, {item.key_or_group for item in overrides.values()}) if multirun else []
    extra = [_check_group(item, True, False) for item in swept if item.key_or_group in groups()]
    world = _World(cfg, _methods_in_play(cfg, [*result.values(), *extra]), multirun)
    for at, override in overrides.items():
        if at not in result:
            result[at] = _check_key(override, world)
    extra += [_check_key(item, world) for item in swept if item.key_or_group not in groups()]
    result |= {at: _with_resume(result[at], item, overrides) for at, item in overrides.items()}
    return [result[at] for at in sorted(result)] + extra + unfit


def _reference(chosen: Sequence[Override]) -> tuple[DictConfig, list[_Seen]]:
    """The run that group choices and ``hydra.*`` settings give; without the latter when Hydra refuses them.

    Raises:
        ConfigError: The YAML files of the chosen options do not compose.
    """
    try:
        return _composed(tuple(_text(override) for override in chosen)), []
    except ConfigError as error:
        own = tuple(_text(override) for override in chosen if not _is_hydra(override))
        return _composed(own), [_Seen(tuple(error.problems), ())]


def _parse(text: str) -> Override | _Seen:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return _Seen((words.unreadable(text),), ())


def _swept_by_experiment(cfg: DictConfig, typed: set[str]) -> list[Override]:
    """What ``hydra.sweeper.params`` sweeps; a key on the command line replaces it."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    swept = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [override for override in swept if override.key_or_group not in typed]


def _methods_in_play(cfg: DictConfig, seen: Sequence[_Seen]) -> tuple[str, ...]:
    chosen = [value.value() for item in seen for value in item.values if value.key_or_group == "method"]
    return tuple(chosen or [cfg.method.name])


def _is_hydra(override: Override) -> bool:
    return bool(override.is_hydra_override())


def _text(override: Override) -> str:
    """The override as it would be typed for a single run."""
    return str(override.input_line)


def _single_values(override: Override) -> list[Override]:
    """The overrides of the single runs that a sweep stands for, or the override itself."""
    if not override.is_sweep_override():
        return [override]
    if isinstance(override.value(), Glob):
        values = override.value().filter(groups().get(override.key_or_group, []))
    else:
        values = list(override.sweep_string_iterator())
    return list(OverridesParser.create().parse_overrides([f"{override.get_key_element()}={value}" for value in values]))


def _sweep_problem(override: Override, multirun: bool) -> str | None:
    if not override.is_sweep_override():
        return None
    if not multirun:
        annotation = field_type(override.key_or_group, "lora")
        return words.needs_multirun(override, a_list=annotation is not None and takes(annotation, list))
    if isinstance(override.value(), IntervalSweep):
        return words.interval(override)
    if not _single_values(override):
        return words.empty_sweep(override, groups().get(override.key_or_group, []))
    return None


def _check_group(override: Override, multirun: bool, repeated: bool) -> _Seen:
    group, options = override.key_or_group, groups()[override.key_or_group]
    if override.is_delete():
        return _Seen((words.not_removable(override),), ())
    if override.type != OverrideType.CHANGE or override.package is not None:
        return _Seen((words.plain_group(override),), ())
    if repeated:
        return _Seen((words.given_twice(override),), ())
    trouble = _sweep_problem(override, multirun)
    if trouble:
        return _Seen((trouble,), ())
    values = _single_values(override)
    wrong = [value for value in values if value.value() not in options]
    problems = tuple(words.no_such_option(value, override, options) for value in wrong)
    good = [value for value in values if value not in wrong]
    if good:
        return _Seen(problems, tuple(good))
    # The rest of the command is read as if the nearest name had been typed: one mistake, one message.
    near = words.nearest(str(wrong[0].value()), options)
    return _Seen(problems, tuple(_single_values(_must_parse(f"{group}={near}"))) if near else ())


def _must_parse(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _check_key(override: Override, world: _World) -> _Seen:
    trouble = _key_problem(override, world) or _sweep_problem(override, world.multirun)
    if trouble:
        return _Seen((trouble,), ())
    values = _single_values(override)
    problems = [problem for value in values if (problem := _value_problem(value, override, world))]
    return _Seen(tuple(problems), () if problems else tuple(values))


def _key_problem(override: Override, world: _World) -> str | None:
    key = override.key_or_group
    section, _, field = key.partition(".")
    if key.startswith("model.architecture."):
        return _architecture_problem(override, world)
    known = {method: field_type(key, method) for method in METHOD_SCHEMAS}
    if section in sections() and not field:
        return words.whole_section(override)
    if not any(known.values()):
        return words.unknown_key(override, world.methods[0])
    if override.is_delete():
        return words.not_removable(override)
    if lacking := [method for method in world.methods if known[method] is None]:
        return words.not_with_method(override, lacking, [name for name, found in known.items() if found], world.methods)
    if field == "name" and literals(fields_in(section, world.methods[0])[field]):
        return words.name_is_chosen(override, section)
    if override.type == OverrideType.ADD:
        return words.drop_plus(override)
    return None


def _architecture_problem(override: Override, world: _World) -> str | None:
    """Only here are free keys allowed: they go to the transformers config as they are."""
    exists = OmegaConf.select(world.cfg, override.key_or_group) is not None
    if override.type == OverrideType.ADD and exists:
        return words.drop_plus(override)
    if override.type == OverrideType.CHANGE and not exists:
        return words.add_plus(override, list(world.cfg.model.architecture or {}))
    if override.is_delete() and not exists:
        return words.nothing_to_remove(override)
    return None


def _value_problem(value: Override, typed: Override, world: _World) -> str | None:
    annotation = field_type(value.key_or_group, world.methods[0])
    content = value.value()
    # Free keys have no type, and what an interpolation gives is known only once everything is composed.
    if annotation is None or (isinstance(content, str) and "${" in content) or fits(annotation, content):
        return None
    return words.wrong_value(value, typed, annotation, OmegaConf.select(world.cfg, value.key_or_group))


def _with_resume(seen: _Seen, override: Override, overrides: dict[int, Override]) -> _Seen:
    resumes = [other for other in overrides.values() if other.key_or_group == "resume" and other.value() is not None]
    if not resumes or override.key_or_group == "resume" or _is_hydra(override):
        return seen
    return _Seen((*seen.problems, words.no_effect_with_resume(override)), ())


def _check_point(point: Sequence[Override]) -> Iterator[str]:
    chosen = tuple(_text(value) for value in point if value.key_or_group in groups() or _is_hydra(value))
    try:
        # Composing takes a tenth of a second, values next to nothing: points that share their groups share the work.
        cfg = without_hydra(_composed(chosen))
        OmegaConf.set_struct(cfg, False)
        for value in point:
            if not _is_hydra(value) and value.key_or_group not in groups():
                _apply(cfg, value)
        yield from validate(to_config(cfg))
    except ConfigError as error:
        yield from error.problems


@cache
def _composed(chosen: tuple[str, ...]) -> DictConfig:
    return compose_raw(chosen)


def _apply(cfg: DictConfig, override: Override) -> None:
    key = override.key_or_group
    if override.is_delete():
        parent, _, leaf = key.rpartition(".")
        del OmegaConf.select(cfg, parent)[leaf]
    else:
        OmegaConf.update(cfg, key, override.value(), merge=True)
