"""Check one override on its own: the group and its options, the key, the type and bounds of every value.

`sweeptune.config.check` goes through a command with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, get_origin

from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import DictConfig, OmegaConf

from sweeptune.config import words
from sweeptune.config.compose import groups
from sweeptune.config.domains import corner_values
from sweeptune.config.errors import ConfigError
from sweeptune.config.fields import bare, field_type, fields_in, fits, literals, sections, takes
from sweeptune.config.schema import METHOD_SCHEMAS
from sweeptune.config.space import as_text
from sweeptune.config.sweeps import parse, sweep_domain

NEVER_SWEPT = ("experiment", "resume", "space", "study")
"""What belongs to the study as a whole; an experiment may bring a space and settings of the study."""
OURS = (("hydra/sweeper", "study"), ("hydra/launcher", "basic"))
"""What conf/train.yaml chooses of Hydra's sweepers and launchers."""
FREE_KEYS = ("study.constraints.", "space.parameters.")


@dataclass(frozen=True)
class Seen:
    """One override after its check."""

    problems: tuple[str, ...]
    values: tuple[Override, ...]
    """The single values it stands for: one, or those of a sweep (of a range both ends); none when it is left out."""
    text: str | None = None
    """How the rest of the command sees it: as typed, but for wrong options; None when it is left out."""


@dataclass(frozen=True)
class World:
    """What keys are checked against: the run that the group choices alone would give."""

    cfg: DictConfig
    methods: tuple[str, ...]
    multirun: bool
    named: bool = False
    """Whether the methods are named for this very key, so that each of them must have it."""

    searched: frozenset[str] = frozenset()
    """What the space sweeps; a value on the command line replaces that, for the methods that have it."""

    def type_of(self, key: str) -> Any | None:
        """The annotation of a key with the first method that has it."""
        return next(filter(None, (field_type(key, method) for method in (*self.methods, *METHOD_SCHEMAS))), None)


def is_hydra(override: Override) -> bool:
    """Whether it is one of Hydra's own settings."""
    return bool(override.is_hydra_override())


def is_stock_sweeper(override: Override) -> bool:
    """Whether it chooses or sets up another sweeper or launcher of Hydra's: ``hydra.sweeper.n_trials=30``."""
    key = override.key_or_group.replace("/", ".")
    of_them = any(key == part or key.startswith(f"{part}.") for part in ("hydra.sweeper", "hydra.launcher"))
    return of_them and (override.key_or_group, override.value()) not in OURS


def single_values(override: Override) -> list[Override]:
    """The overrides of the single runs that a sweep stands for, or the override itself."""
    if not override.is_sweep_override():
        return [override]
    values = corner_values(sweep_domain(override))
    return [parse(f"{override.get_key_element()}={as_text(value)}") for value in values]


def _sweep_problem(override: Override, multirun: bool) -> str | None:
    if not override.is_sweep_override():
        return None
    if not multirun:
        annotation = field_type(override.key_or_group, "lora")
        return words.needs_multirun(override, a_list=annotation is not None and takes(annotation, list))
    if is_hydra(override) or override.key_or_group.partition(".")[0] in NEVER_SWEPT:
        return words.never_swept(override)
    try:
        sweep_domain(override)
    except ConfigError as error:
        return error.problems[0]
    return None


def check_group(override: Override, *, multirun: bool, repeated: bool = False) -> Seen:
    """Check the choice of an option, or of several.

    Args:
        override: Its key is a group.
        multirun: Whether sweeps are allowed.
        repeated: Whether the command has chosen an option of this group before.
    """
    group, options = override.key_or_group, groups()[override.key_or_group]
    if override.is_delete():
        return Seen((words.not_removable(override),), ())
    if override.type != OverrideType.CHANGE or override.package is not None:
        return Seen((words.plain_group(override),), ())
    if repeated:
        return Seen((words.given_twice(override),), ())
    trouble = _sweep_problem(override, multirun)
    if trouble:
        return Seen((trouble,), ())
    values = single_values(override)
    wrong = [value for value in values if value.value() not in options]
    problems = tuple(words.no_such_option(value, override, options) for value in wrong)
    if group == "space" and not multirun and not problems and override.value() != "none":
        return Seen((words.space_needs_multirun(override),), ())
    if not wrong:
        return Seen((), tuple(values), override.input_line)
    # The rest of the command is read as if the nearest names had been typed: one mistake, one message.
    meant = [words.nearest(str(value.value()), options) if value in wrong else value.value() for value in values]
    names = [str(name) for name in dict.fromkeys(meant) if name]
    mended = f"{group}={','.join(names)}" if names else None
    return Seen(problems, tuple(parse(f"{group}={name}") for name in names), mended)


def check_key(override: Override, world: World) -> Seen:
    """Check a setting: that there is one of this name with the methods in play, and that its values fit."""
    trouble = _key_problem(override, world) or _sweep_problem(override, world.multirun)
    if trouble:
        return Seen((trouble,), ())
    values = single_values(override)
    problems = [problem for value in values if (problem := _value_problem(value, override, world))]
    return Seen(tuple(problems), () if problems else tuple(values), None if problems else override.input_line)


def _key_problem(override: Override, world: World) -> str | None:
    key = override.key_or_group
    section, _, field = key.partition(".")
    if key.startswith("model.architecture."):
        return _architecture_problem(override, world)
    for mapping in FREE_KEYS:
        if key.startswith(mapping) and "." in key.removeprefix(mapping) and not override.is_delete():
            return words.nested_key(override, mapping.removesuffix("."))
    known = {method: field_type(key, method) for method in METHOD_SCHEMAS}
    if section in sections() and not field:
        return words.whole_section(override)
    if not any(known.values()):
        return words.unknown_key(override, world.methods)
    if override.is_delete():
        return words.not_removable(override)
    lacking = [method for method in world.methods if known[method] is None]
    swept = override.is_sweep_override() or key in world.searched
    # A swept key is for the methods that have it.
    if lacking and (world.named or not swept or len(lacking) == len(world.methods)):
        return words.not_with_method(override, lacking, [name for name, found in known.items() if found], world.methods)
    if field == "name" and literals(fields_in(section, world.methods[0])[field]):
        return words.name_is_chosen(override, section)
    if override.type == OverrideType.ADD and not key.startswith(FREE_KEYS):
        return words.drop_plus(override)
    return None


def _architecture_problem(override: Override, world: World) -> str | None:
    """Only here are free keys allowed: they go to the transformers config as they are."""
    exists = OmegaConf.select(world.cfg, override.key_or_group) is not None
    if override.type == OverrideType.ADD and exists:
        return words.drop_plus(override)
    if override.type == OverrideType.CHANGE and not exists:
        return words.add_plus(override, list(world.cfg.model.architecture or {}))
    if override.is_delete() and not exists:
        return words.nothing_to_remove(override)
    return None


def _value_problem(value: Override, typed: Override, world: World) -> str | None:
    annotation = world.type_of(value.key_or_group)
    content = value.value()
    # Free keys have no type, and what an interpolation gives is known only once everything is composed.
    if annotation is None or (isinstance(content, str) and "${" in content) or fits(annotation, content):
        return None
    if get_origin(annotation) is dict and isinstance(content, dict):
        of_each = get_args(annotation)[1]
        wrong = next((key for key, item in content.items() if not fits(of_each, item)), None)
        if wrong is not None:
            return words.wrong_item(typed, str(wrong), content[wrong], of_each)
    if typed.value_type == ValueType.INTERVAL_SWEEP and takes(bare(annotation), int):
        return words.whole_interval(typed)
    return words.wrong_value(value, typed, annotation, OmegaConf.select(world.cfg, value.key_or_group))
