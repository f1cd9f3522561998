"""How a wrong override is explained: the value seen, what is allowed, the nearest name, and the fix."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from sweeptune.config.fields import all_keys, describe, fields_in, fields_of, literals, sections, takes
from sweeptune.config.schema import Config

# Where a value goes that looks like a file or a hub id and was given to the group.
_MEANT_AS_VALUE = {"data": "data=jsonl data.path={}", "model": "model.path={}"}


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The allowed name that looks most like `name`, or None when none comes close."""
    found = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return found[0] if found else None


def unreadable(text: str) -> str:
    """An override that Hydra's grammar does not know."""
    return (
        f"{text}: cannot be read as an override. Write key=value without spaces around the =; put a value with "
        f"spaces, commas, braces or colons in quotes: 'key=\"value\"'"
    )


def no_such_option(value: Override, typed: Override, options: Sequence[str]) -> str:
    """A group option that is no file in ``conf/<group>/``."""
    group, seen = value.key_or_group, str(value.value())
    near = nearest(seen, options)
    fix = f"Did you mean {group}={near}?" if near else f"For example {group}={options[0]}."
    if value.value() is None:
        near, fix, seen = None, f"Leave {group} out for the default.", "null"
    if near is None and group in _MEANT_AS_VALUE and ("/" in seen or "." in seen):
        fix = f"Did you mean {_MEANT_AS_VALUE[group].format(seen)}?"
    return f"{_head(value, typed)}: no such {group}. Allowed: {', '.join(options)}. {fix}"


def plain_group(override: Override) -> str:
    """A group written with a + or with a package."""
    fixed = f"{override.key_or_group}={_value(override)}"
    return f"{override.input_line}: a group is chosen without + and without a package. Write {fixed}"


def given_twice(override: Override) -> str:
    """A group with two choices."""
    group = override.key_or_group
    return f"{override.input_line}: {group} is given twice. Keep one; to compare several: --multirun {group}=<a>,<b>"


def not_removable(override: Override) -> str:
    """A deletion of something that every run needs."""
    key = override.key_or_group
    return f"{override.input_line}: every run needs {key}, so it cannot be removed. Leave {override.input_line} out"


def nothing_to_remove(override: Override) -> str:
    """A deletion of a free key that is not there."""
    return f"{override.input_line}: there is no {override.key_or_group} to remove. Leave {override.input_line} out"


def needs_multirun(override: Override, *, a_list: bool) -> str:
    """A sweep without ``--multirun``."""
    key, value = override.get_key_element(), _raw_value(override)
    as_list = f", a list: '{key}=[{value}]'" if a_list else ""
    return (
        f"{override.input_line}: is several values, which are several runs. Add --multirun to make them; one value "
        f"with a comma in it is written '{key}=\"{value}\"'{as_list}"
    )


def never_swept(override: Override) -> str:
    """A sweep over what a study has one of."""
    key = override.key_or_group
    what = "a study has one" if key.partition(".")[0] in ("study", "space") else "it decides about the whole command"
    return f"{override.input_line}: {key} cannot be swept, because {what}. Give one value: {key}=<value>"


_STOCK = {
    "hydra.sweeper.n_trials": "study.trials={}",
    "hydra.sweeper.n_jobs": "hardware.gpus={} (or the same command again, beside it)",
    "hydra.sweeper.study_name": "study.name={}",
    "hydra.sweeper.storage": "study.storage={}",
    "hydra.sweeper.direction": "study.objectives=[eval_loss]; which way is better is known of every figure",
    "hydra.sweeper.max_failure_rate": "study.max_failures=<n>",
    "hydra.sweeper.max_batch_size": "hardware.gpus=<n>, how many runs there are at once",
    "hydra.sweeper.sampler.seed": "seed={}",
    "hydra.sweeper.sampler": "study.sampler=tpe (or nsga2, random, grid)",
    "hydra.sweeper.search_space": "'<setting>=interval(<low>,<high>)', or space=<file of conf/space>",
    "hydra.launcher": "hardware.gpus=<n>, how many runs there are at once, and study.trials_per_gpu",
    "hydra.sweeper": "study.trials=<n> and study.sampler=tpe; all settings are in conf/study/default.yaml",
}
"""What the settings of Hydra's own sweepers and launchers are called here; of several the first that begins the key."""


def stock_sweeper(override: Override) -> str:
    """A setting of another sweeper or launcher of Hydra's than the study's."""
    key, value = override.key_or_group, _value(override)
    group = "/" in key
    params = key.partition("hydra.sweeper.params.")[2]
    found = next(word for word in _STOCK if key.replace("/", ".").startswith(word))
    fix = f"'{params}={value}'" if params else _STOCK[found].format(value)
    if found == "hydra.sweeper.sampler" and group and value in ("tpe", "nsga2", "nsgaii", "random", "grid"):
        fix = f"study.sampler={'nsga2' if value == 'nsgaii' else value}"
    what = "launcher" if key.startswith("hydra.launcher") or key == "hydra/launcher" else "sweeper"
    return (
        f"{override.input_line}: --multirun is a study of sweeptune's own, which no other {what} of Hydra's can run. "
        f"Write {fix}"
    )


def space_needs_multirun(override: Override) -> str:
    """A search space, or a part of one, for a single run."""
    return f"{override.input_line}: a space is searched by several runs. Add --multirun to make them, or leave it out"


def nested_key(override: Override, mapping: str) -> str:
    """A dotted name behind ``space.parameters.`` or ``study.constraints.``: Hydra takes each dot for a level deeper."""
    name, value = override.key_or_group.removeprefix(f"{mapping}."), _raw_value(override)
    typed = "" if mapping == "study.constraints" else f", or sweep it by itself: '{name}=<a>,<b>'"
    example = value if mapping == "study.constraints" else "[<a>, <b>]"
    return (
        f"{override.input_line}: here a dot begins a level, so this would be {name.partition('.')[2]} inside of "
        f"{name.partition('.')[0]}, not {name}. Write '{mapping}={{{name}: {example}}}'{typed}"
    )


def wrong_item(override: Override, key: str, item: Any, annotation: Any) -> str:
    """A value of the wrong type inside of a mapping with free keys."""
    name = override.key_or_group
    return (
        f"{name}.{key}={item} (in {override.input_line}): must be {describe(annotation)}. "
        f"For example '{name}={{{key}: 8}}', or leave {key} out"
    )


def needs_a_study(vain: Sequence[str], argv: Sequence[str]) -> str:
    """Settings of a study beside a command that makes one run."""
    these = "a setting of a study changes" if len(vain) == 1 else "settings of a study change"
    return (
        f"{', '.join(vain)}: without --multirun (-m) this is one run, of which {these} nothing. "
        f"Add -m for a study: {shlex.join(['python', 'train.py', '-m', *argv])}"
    )


def whole_interval(override: Override) -> str:
    """An interval of a whole number."""
    key, value = override.get_key_element(), _raw_value(override)
    return f"{override.input_line}: {override.key_or_group} is a whole number. Write {key}=int({value})"


def empty_sweep(key: str, options: Sequence[str]) -> str:
    """A sweep over nothing, such as a glob that matches no option; without the override in front."""
    allowed = f" Allowed: {', '.join(options)}." if options else " glob works for groups only."
    return f"stands for no value at all.{allowed} List them: {key}=<a>,<b>"


def whole_section(override: Override) -> str:
    """A section of settings used as if it were one setting."""
    key = override.key_or_group
    fields = list(fields_of(sections()[key]))
    return (
        f"{override.input_line}: {key} is a section, not one setting. Its fields: {', '.join(fields)}. "
        f"For example {key}.{fields[0]}={_value(override)}"
    )


def unknown_key(override: Override, methods: Sequence[str]) -> str:
    """A key that no configuration has; the nearest one of any method in play is meant."""
    key = override.key_or_group
    plus = ", and + cannot make one" if override.is_add() or override.is_force_add() else ""
    near = next(filter(None, (_nearest_key(key, method) for method in methods)), None)
    if near:
        fix = f"~{near}" if override.is_delete() else f"{near}={_value(override)}"
        return f"{override.input_line}: no such setting{plus}. Did you mean {fix}?"
    section = key.partition(".")[0]
    if section in sections():
        allowed = [f"{section}.{field}" for field in fields_in(section, methods[0])]
    else:
        allowed = list(fields_of(Config))
    return f"{override.input_line}: no such setting{plus}. Allowed: {', '.join(allowed)}. Leave it out"


def not_with_method(override: Override, lacking: Sequence[str], having: Sequence[str], chosen: Sequence[str]) -> str:
    """A setting of another method."""
    key, field = override.key_or_group, override.key_or_group.partition(".")[2]
    fix = f"Leave {key} out, or choose another method: method=lora {key}={_value(override)}"
    if len(chosen) > len(lacking):
        kept = ",".join(method for method in chosen if method not in lacking)
        fix = f"Leave {key} out, or sweep only methods that have it: method={kept} {key}={_value(override)}"
    return (
        f"{override.input_line}: method={', '.join(lacking)} has no {field}. "
        f"These methods have it: {', '.join(sorted(having))}. {fix}"
    )


def name_is_chosen(override: Override, section: str) -> str:
    """The name of an option, set behind the group's back."""
    return (
        f"{override.input_line}: the name belongs to the option and changes with it. "
        f"Choose the option: {section}={_value(override)}"
    )


def drop_plus(override: Override) -> str:
    """A + in front of a setting that exists."""
    fixed = f"{override.key_or_group}={_value(override)}"
    return f"{override.input_line}: this setting exists, and + is for new ones. Drop the +: {fixed}"


def add_plus(override: Override, existing: Sequence[str]) -> str:
    """A new key of the one mapping where keys are free."""
    stem, _, leaf = override.key_or_group.rpartition(".")
    near = nearest(leaf, existing)
    fix = f"Did you mean {stem}.{near}={_value(override)}? " if near else ""
    return f"{override.input_line}: the architecture has no {leaf}. {fix}To add it: +{override.input_line}"


def wrong_value(value: Override, typed: Override, annotation: Any, default: Any) -> str:
    """A value of the wrong type or outside its bounds.

    Args:
        value: The single value.
        typed: The override as it was typed, which may be a sweep of several values.
        annotation: The field's annotation in the schema.
        default: What the field would be without the override; it serves as the example.
    """
    key, seen = value.key_or_group, value.value()
    near = nearest(str(seen), literals(annotation))
    if near:
        fix = f"Did you mean {key}={near}?"
    elif takes(annotation, str) and isinstance(seen, bool | int | float):
        fix = f"To give it as text, quote it: '{key}=\"{_raw_value(value)}\"'"
    elif default is None or OmegaConf.is_dict(default):
        fix = f"For example {key}=null" if takes(annotation, type(None)) else "Leave it out"
    else:
        fix = f"For example {key}={_plain(default)}"
    return f"{_head(value, typed)}: must be {describe(annotation)}. {fix}"


def no_effect_with_resume(override: Override) -> str:
    """A setting beside ``resume=``, which takes all settings from the run folder."""
    return (
        f"{override.input_line}: resume= goes on with the settings of the run folder, so this would change nothing. "
        f"Leave it out, or start a new run without resume="
    )


def _nearest_key(key: str, method: str) -> str | None:
    section, _, field = key.partition(".")
    leaf = field or section
    # The right field under the wrong section, or under none: lr, optim.rank. Names are everywhere and say nothing.
    same = [known for known in all_keys() if known.rpartition(".")[2] == leaf != "name"]
    if same:
        return same[0]
    if section in sections():
        near = nearest(field, list(fields_in(section, method)))
        return f"{section}.{near}" if near else None
    return nearest(key, all_keys() if field else list(fields_of(Config)))


def _head(value: Override, typed: Override) -> str:
    return (
        str(value.input_line) if value.input_line == typed.input_line else f"{value.input_line} (in {typed.input_line})"
    )


def _raw_value(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def _value(override: Override) -> str:
    return _raw_value(override) or "<value>"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
