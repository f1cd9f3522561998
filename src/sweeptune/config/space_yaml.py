"""Read the parameters of a space from YAML, and judge its conditions.

optim.lr:                                            # a range for each method
  full: {interval: [1.0e-6, 3.0e-4], log: true}
  lora: {interval: [1.0e-4, 1.0e-2], log: true}
method.rank: {when: {method: [lora]}, choice: [4, 16]}   # a condition
data.packing: [none, pack]                           # a list
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweeptune.config.compose import groups
from sweeptune.config.domains import DOMAIN_WORDS, Choice, Domain, FloatRange, Value, contains, read_domain
from sweeptune.config.errors import ConfigError
from sweeptune.config.fields import all_keys
from sweeptune.config.schema import METHOD_SCHEMAS
from sweeptune.config.space import EVERY, Parameter
from sweeptune.config.words import nearest

Parameters = dict[str, Parameter]


def read_parameters(parameters: Mapping[str, Any]) -> tuple[Parameters, list[str]]:
    """Parameters by key, as written: with ``method`` among the conditions, for methods that may not be in play.

    Returns:
        Those that can be read, and a problem for each thing that cannot.
    """
    found: Parameters = {}
    problems: list[str] = []
    for key, plain in parameters.items():
        when: dict[str, tuple[Value, ...]] = {}
        if isinstance(plain, Mapping):
            conditions = plain.get("when", {})
            plain = {word: value for word, value in plain.items() if word != "when"}
            when, wrong = _read_when(conditions)
            problems += [f"{key}: {problem}" for problem in wrong]
        domains, wrong = _read_domains(plain)
        problems += [f"{key}: {problem}" for problem in wrong]
        if domains and (key != "method" or _is_list_of_methods(domains, when)):
            found[key] = Parameter(key, domains, when)
        elif domains:
            problems.append("method: must be a list of methods, without conditions, such as [full, lora]")
    return found, problems


def condition_problems(
    parameters: Parameters, methods: tuple[str, ...], always: Callable[[str], Value], typed: frozenset[str]
) -> list[str]:
    """Conditions that are misspelt or that nothing can meet, one sentence each.

    Args:
        parameters: The space as it is written.
        methods: The methods that it sweeps.
        always: The value of a setting that nothing sweeps.
        typed: Keys that the command line gives: what it takes away of a space is no mistake of the space's.
    """
    problems = []
    for parameter in parameters.values():
        for key, allowed in parameter.when.items():
            for problem in _condition(key, allowed, parameters, methods, always, typed):
                problems.append(f"{parameter.key}: when {key} is {_listed(allowed)}: {problem}")
        left = parameter.domains.keys() if EVERY not in parameter.domains else METHOD_SCHEMAS.keys()
        if "method" not in typed and not left & set(methods):
            problems.append(f"{parameter.key}: has values for {_listed(left)}, and only {_listed(methods)} is swept")
    return problems


def _condition(
    key: str,
    allowed: tuple[Value, ...],
    parameters: Parameters,
    methods: tuple[str, ...],
    always: Callable[[str], Value],
    typed: frozenset[str],
) -> Iterator[str]:
    if key == "method":
        wrong = list(_unknown_methods(map(str, allowed)))
        yield from wrong
        if not wrong and "method" not in typed and not set(map(str, allowed)) & set(methods):
            yield f"no point satisfies this. The methods of the space: {', '.join(methods)}"
    elif key in parameters:
        domains = list(parameters[key].domains.values())
        if any(isinstance(domain, FloatRange) for domain in domains):
            yield f"{key} is an interval, which meets single values never. List values of it, or take the condition out"
            return
        for value in allowed:
            if not any(contains(domain, value) for domain in domains):
                yield _never(key, value, domains)
    elif key not in {*all_keys(), *groups()}:
        near = nearest(key, [*parameters, *all_keys(), *groups()])
        yield f"no such setting. {f'Did you mean {near}?' if near else 'Allowed: ' + ', '.join(parameters)}"
    elif key not in typed and always(key) not in allowed:
        yield f"no point satisfies this: nothing sweeps {key}, and it is {json.dumps(always(key))}. Sweep it, too"


def _never(key: str, value: Value, domains: list[Domain]) -> str:
    values = [item for domain in domains if isinstance(domain, Choice) for item in domain.values]
    near = nearest(str(value), list(map(str, values)))
    fix = f"Did you mean {near}?" if near else f"Its values: {_listed(values)}" if values else "It is outside the range"
    return f"{key} is never {json.dumps(value)}. {fix}"


def _read_when(plain: Any) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    if not isinstance(plain, Mapping):
        return {}, [f"when: {json.dumps(plain)} must be a mapping from settings to values, {{method: [lora, qlora]}}"]
    when, problems = {}, []
    for key, allowed in plain.items():
        values = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        if values:
            when[str(key)] = values
        else:
            problems.append(f"when {key} is []: no point satisfies this. List values of {key}")
    return when, problems


def _read_domains(plain: Any) -> tuple[dict[str, Domain], list[str]]:
    if not isinstance(plain, Mapping) or not plain or any(word in DOMAIN_WORDS for word in plain):
        return _tried(EVERY, plain)
    domains: dict[str, Domain] = {}
    problems = list(_unknown_methods(map(str, plain), (*METHOD_SCHEMAS, "when", *DOMAIN_WORDS)))
    for method in plain.keys() & METHOD_SCHEMAS.keys():
        found, wrong = _tried(str(method), plain[method])
        domains |= found
        problems += [f"{method}: {problem}" for problem in wrong]
    return {method: domains[method] for method in plain if method in domains}, problems


def _tried(method: str, plain: Any) -> tuple[dict[str, Domain], list[str]]:
    try:
        return {method: read_domain(plain)}, []
    except ConfigError as error:
        return {}, error.problems


def _unknown_methods(names: Any, known: tuple[str, ...] = ()) -> Iterator[str]:
    for name in names:
        if name not in METHOD_SCHEMAS:
            near = nearest(name, known or list(METHOD_SCHEMAS))
            fix = f"Did you mean {near}?" if near else "Take it out"
            yield f"{name}: no such method. Allowed: {', '.join(sorted(METHOD_SCHEMAS))}. {fix}"


def _is_list_of_methods(domains: Mapping[str, Domain], when: Mapping[str, Any]) -> bool:
    return list(domains) == [EVERY] and isinstance(domains[EVERY], Choice) and not when


def _listed(values: Any) -> str:
    return ", ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
