"""Ask the schema about one setting: which type it has, whether a value fits, and how to say in words what fits.

Example:
    >>> describe(field_type("method.rank", "lora"))
    'a whole number of at least 1'
    >>> fits(field_type("method.rank", "lora"), 0)
    False
"""

from __future__ import annotations

import json
import types
from dataclasses import is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sweeptune.config import schema

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


@cache
def fields_of(owner: type) -> dict[str, Any]:
    """The fields of a schema dataclass with their annotations, in order."""
    return get_type_hints(owner, include_extras=True)


def sections() -> dict[str, type]:
    """The parts of a configuration that have fields of their own; ``method`` stands for its widest schema."""
    found = {name: kind for name, kind in fields_of(schema.Config).items() if isinstance(kind, type)}
    plain = {name: kind for name, kind in found.items() if kind.__module__ == schema.__name__}
    return {"method": schema.LoraConfig, **plain}


def fields_in(section: str, method: str) -> dict[str, Any]:
    """The fields of a section when `method` is chosen.

    Args:
        section: For example ``optim``; must be one of `sections`.
        method: An option of the group ``method``; it decides which fields ``method`` has.
    """
    return fields_of(schema.METHOD_SCHEMAS[method] if section == "method" else sections()[section])


def field_type(key: str, method: str) -> Any | None:
    """The annotation of a dotted key such as ``optim.lr`` or ``seed``, or None when there is no such setting."""
    section, _, field = key.partition(".")
    if section in sections():
        fields = fields_in(section, method)
        mapping = fields.get(field.partition(".")[0])
        if "." in field and get_origin(mapping) is dict:
            return get_args(mapping)[1]  # its keys are free: study.constraints.peak_memory_gib
        return fields.get(field)
    return fields_of(schema.Config).get(key)


def all_keys() -> list[str]:
    """Every dotted key that some configuration has."""
    top = [name for name in fields_of(schema.Config) if name not in sections()]
    return [f"{section}.{field}" for section, owner in sections().items() for field in fields_of(owner)] + top


def fits(annotation: Any, value: Any) -> bool:
    """Whether a plain value (as YAML or an override gives it) is legal for a field.

    Strict: ``true`` is no number, ``1.5`` no whole number, ``"4"`` no number at all.
    """
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def describe(annotation: Any) -> str:
    """What a field allows, in words: ``a whole number of at least 1 or null``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(args[0]) + _bounds(args[1])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is list:
        return f"a list of {describe(args[0])}"
    if isinstance(annotation, type) and is_dataclass(annotation):
        return f"a mapping with the fields {', '.join(fields_of(annotation))}"
    if origin is dict:
        return "a mapping {key: value}"
    return _WORDS[annotation]


def literals(annotation: Any) -> list[str]:
    """The names a field allows, when it allows a fixed set of them."""
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def bare(annotation: Any) -> Any:
    """The type without its bounds: ``int`` for a whole number of at least 1."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def takes(annotation: Any, kind: type) -> bool:
    """Whether the annotation, or one part of its union, is `kind` (``str``, ``list``, ``dict``)."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(takes(arg, kind) for arg in get_args(annotation))
    return kind in (annotation, get_origin(annotation))


def _bounds(info: FieldInfo) -> str:
    words: list[str] = []
    for bound in info.metadata:
        if isinstance(bound, Ge):
            words.append(f"of at least {bound.ge}")
        elif isinstance(bound, Gt):
            words.append(f"above {bound.gt}")
        elif isinstance(bound, Lt):
            words.append(f"below {bound.lt}")
    return " " + " and ".join(words) if words else ""
