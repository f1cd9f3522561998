"""Read the search space of a command: what it sweeps, what an experiment sweeps, and the space that it names.

A key on the command line replaces that of the experiment (``hydra.sweeper.params``), and either replaces that of the
space (``space=method_tradeoff``). A key applies to the methods that have it.

Example:
    >>> read_space(["method=full,lora", "method.rank=4,16"]).grid()
    [{'method': 'full'}, {'method': 'lora', 'method.rank': 4}, {'method': 'lora', 'method.rank': 16}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeptune.config.compose import compose_once, groups
from sweeptune.config.domains import Choice, Domain, Value, as_plain, key_of
from sweeptune.config.errors import ConfigError
from sweeptune.config.fields import field_type
from sweeptune.config.schema import METHOD_SCHEMAS
from sweeptune.config.space import EVERY, Parameter, Space
from sweeptune.config.space_yaml import condition_problems, read_parameters
from sweeptune.config.sweeps import parse, sweep_domain


@dataclass(frozen=True)
class Command:
    """A command, sorted by what its overrides are."""

    swept: dict[str, Override]
    """What it and the experiment sweep, by key, in the order typed."""
    fixed: dict[str, Override]
    """All else, by key, the last one of each."""
    lines: list[str]
    """The fixed ones as typed, those of the experiment first."""
    cfg: DictConfig
    """What the groups alone give; it holds the space and the defaults."""

    def always(self, key: str) -> Value:
        """The value of a setting that nothing sweeps; of a group, the name of its option."""
        if key in self.fixed:
            value: Value = self.fixed[key].value()
            return value
        found = OmegaConf.select(self.cfg, f"{key}.name" if key in groups() else key)
        plain: Value = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        return plain


def read_space(overrides: Sequence[str]) -> Space:
    """The search space of a command.

    Args:
        overrides: As typed on the command line, without flags.

    Raises:
        ConfigError: Every override that cannot be read, every range that is empty or cannot be logarithmic, and every
            condition of the space that is misspelt or never met. Keys and values are for `sweeptune.config.check`.
    """
    command = sort_command(overrides)
    own = _space_of_its_own(command)
    merged = {key: _within_command(parameter, command) for key, parameter in own.items()}
    merged |= _swept(command.swept)
    parameters = {key: parameter for key, parameter in merged.items() if parameter is not None}
    return _reachable(parameters, _methods(parameters, command), command)


def fixed_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that all points share: those of a command that sweep nothing, and an experiment's fixed ones.

    With `Space.overrides` of a point behind them they compose the run of that point.

    Raises:
        ConfigError: An override cannot be read.
    """
    command = sort_command(overrides)
    own = space_parameters(command)
    return [line for line in command.lines if not _narrowed(parse(line).key_or_group, own)]


def default_name(overrides: Sequence[str]) -> str:
    """What a study is called: ``study.name``, else the experiment, else the space, else after the keys that are swept.

    Raises:
        ConfigError: An override cannot be read.

    Example:
        >>> default_name(["method=full,lora", "optim.lr=1e-4,1e-3"])
        'method-lr'
    """
    command = sort_command(overrides)
    named = command.always("study.name")
    if not named and "experiment" in command.fixed:
        named = command.always("experiment")
    elif not named and space_parameters(command):
        named = command.cfg.space.name
    return str(named or "-".join(key.rpartition(".")[2] for key in command.swept) or "sweep")


def sort_command(overrides: Sequence[str]) -> Command:
    """Sort the overrides of a command; of a setting that is given twice the last one counts.

    Raises:
        ConfigError: An override cannot be read, or the chosen options do not compose.
    """
    typed = [parse(text) for text in overrides]
    last = {item.key_or_group: item for item in typed}
    cfg = compose_once(tuple(str(item.input_line) for item in last.values() if _shapes(item)))
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    experiment = [parse(f"{key}={value}") for key, value in params.items() if key not in last]
    everything = {item.key_or_group: item for item in experiment} | last
    return Command(
        {key: item for key, item in everything.items() if item.is_sweep_override()},
        {key: item for key, item in everything.items() if not item.is_sweep_override()},
        [str(item.input_line) for item in [*experiment, *typed] if not item.is_sweep_override()],
        cfg,
    )


def space_parameters(command: Command) -> dict[str, Parameter]:
    """The parameters of the named space as they are written, those left out that cannot be read."""
    return read_parameters(plain_space(command.cfg))[0]


def methods_with(key: str) -> list[str]:
    """The methods that have a setting; all of them for a group or a free key."""
    having = [method for method in METHOD_SCHEMAS if field_type(key, method)]
    return having or list(METHOD_SCHEMAS)


def plain_space(cfg: DictConfig) -> Mapping[str, object]:
    """The parameters of the space as YAML would hold them.

    Raises:
        ConfigError: They are no mapping, or refer to a setting that is not there.
    """
    try:
        plain = OmegaConf.to_container(cfg.space.parameters, resolve=True)
    except OmegaConfBaseException as error:
        why = str(error.msg).splitlines()[0]
        raise ConfigError(
            f"{error.full_key}: cannot be resolved: {why}. "
            "Write the values out: 'space.parameters={<setting>: [a, b]}'"
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError(f"space.parameters={plain}: must be a mapping from settings to their values")
    return {str(key): value for key, value in plain.items()}


def _shapes(override: Override) -> bool:
    """Whether it decides which space there is and what the default of a setting is."""
    key = override.key_or_group
    shaping = key in groups() or override.is_hydra_override() or key.startswith("space.")
    return shaping and not override.is_sweep_override()


def _space_of_its_own(command: Command) -> dict[str, Parameter]:
    """The named space as written, judged as written; then whatever the command changes of it is no mistake."""
    own, problems = read_parameters(plain_space(command.cfg))
    methods = _methods(own, command) if "method" in own else _methods(_swept(command.swept), command)
    typed = frozenset(command.fixed) | frozenset(command.swept)
    problems += condition_problems(own, methods, command.always, typed)
    if problems:
        raise ConfigError([f"space={command.cfg.space.name}: {problem}" for problem in problems])
    if own:
        Space(tuple(_conditions_on_swept_keys(own)), methods).walk  # noqa: B018 (raises for a circle)
    return own


def _swept(overrides: Mapping[str, Override]) -> dict[str, Parameter]:
    found, problems = {}, []
    for key, item in overrides.items():
        try:
            found[key] = Parameter(key, {EVERY: sweep_domain(item)})
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _narrowed(key: str, own: Mapping[str, Parameter]) -> bool:
    """Whether a fixed setting stays a parameter, of one value, because only some of the swept methods have it."""
    return key in own and len(methods_with(key)) < len(METHOD_SCHEMAS)


def _within_command(parameter: Parameter, command: Command) -> Parameter | None:
    """A parameter of the space, unless the command fixes it: then None, or that one value where methods lack it."""
    key = parameter.key
    if key not in command.fixed:
        return parameter
    value: Value = command.fixed[key].value()
    return Parameter(key, {EVERY: Choice((value,))}) if _narrowed(key, {key: parameter}) else None


def _methods(parameters: Mapping[str, Parameter], command: Command) -> tuple[str, ...]:
    domain = parameters["method"].domain(EVERY) if "method" in parameters else None
    return tuple(map(str, domain.values)) if isinstance(domain, Choice) else (str(command.always("method")),)


def _reachable(parameters: Mapping[str, Parameter], methods: tuple[str, ...], command: Command) -> Space:
    """The space of the methods in play, without what no point can hold."""
    met = {key: _in_play(item, methods, parameters, command) for key, item in parameters.items()}
    left = {key: domains for key, domains in met.items() if domains}
    while True:
        kept = tuple(_with(parameters[key], left[key], methods, parameters) for key in left)
        space = Space(kept, methods)
        dead = space.unreachable()
        if not dead:
            return space
        for method, key in dead:
            del left[key][method]
        left = {key: domains for key, domains in left.items() if domains}


def _in_play(
    parameter: Parameter, methods: tuple[str, ...], swept: Mapping[str, Parameter], command: Command
) -> dict[str, Domain]:
    """What a parameter may be under each of the methods that have it and that its condition lets in."""
    for key, allowed in parameter.when.items():
        if key != "method" and key not in swept and key_of(command.always(key)) not in map(key_of, allowed):
            return {}
    among = set(parameter.when.get("method", methods)) & set(methods_with(parameter.key))
    return {
        method: domain for method in methods if method in among and (domain := parameter.domain(method)) is not None
    }


def _with(
    parameter: Parameter, domains: Mapping[str, Domain], methods: tuple[str, ...], swept: Mapping[str, Parameter]
) -> Parameter:
    alike = len({key_of(as_plain(domain)) for domain in domains.values()}) == 1
    everywhere = alike and set(domains) == set(methods)
    when = {key: allowed for key, allowed in parameter.when.items() if key != "method" and key in swept}
    return Parameter(parameter.key, {EVERY: domains[methods[0]]} if everywhere else dict(domains), when)


def _conditions_on_swept_keys(own: Mapping[str, Parameter]) -> list[Parameter]:
    return [
        replace(item, when={key: allowed for key, allowed in item.when.items() if key in own and key != "method"})
        for item in own.values()
    ]
