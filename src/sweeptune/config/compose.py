"""From YAML to a `Config` and back: the only place that hands out a DictConfig.

Example:
    >>> compose(["method=qlora", "method.rank=8"]).method.rank
    8
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from sweeptune.config.errors import ConfigError
from sweeptune.config.fields import describe, field_type, fields_of, sections
from sweeptune.config.schema import METHOD_SCHEMAS, Config

CONFIG_NAME = "train"
# What Hydra 1.3 and 1.4 both understand; pinning it keeps their changes of behaviour out.
HYDRA_VERSION_BASE = "1.3"


_frozen: list[Path] = []


@contextmanager
def conf_from(folder: Path) -> Iterator[None]:
    """Compose from another folder of YAML files: a study's own copy, which nobody edits while it runs."""
    _frozen.append(folder.resolve())
    compose_once.cache_clear()
    groups.cache_clear()
    try:
        yield
    finally:
        _frozen.pop()
        compose_once.cache_clear()
        groups.cache_clear()


def conf_dir() -> Path:
    """The folder of YAML files: `conf_from`'s, else the repository's ``conf/`` beside ``src``, else the package's."""
    if _frozen:
        return _frozen[-1]
    repository = Path(__file__).resolve().parents[3] / "conf"
    if (repository / f"{CONFIG_NAME}.yaml").is_file():
        return repository
    return Path(__file__).resolve().parents[1] / "conf"


def with_free_keys(arguments: Sequence[str]) -> list[str]:
    """Let mappings with free keys be given like any setting: ``study.constraints={peak_memory_gib: 8}``.

    Hydra would refuse it, as it refuses every key that the YAML lacks, unless a ``++`` stands in front.
    """
    return [f"++{text}" if text.startswith(("study.constraints", "space.parameters")) else text for text in arguments]


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of the overrides of one run, unresolved, with Hydra's own settings under ``hydra``.

    Raises:
        ConfigError: Hydra refuses an override; its words are passed on.
    """
    try:
        with _hydra_of_our_own():
            return hydra_compose(CONFIG_NAME, with_free_keys(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last where a list has no such key
        raise ConfigError(f"Hydra cannot compose this: {' '.join(str(error).split())}") from error


@cache
def compose_once(overrides: tuple[str, ...]) -> DictConfig:
    """`compose_raw`, remembered: it takes a tenth of a second. The result is shared: change only copies of it.

    Raises:
        ConfigError: As `compose_raw`.
    """
    return compose_raw(overrides)


@cache
def groups() -> dict[str, list[str]]:
    """The groups in ``conf/`` and the options of each, sorted."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose ``conf/`` with the overrides of one run.

    Args:
        overrides: As typed on the command line, such as ``["method=qlora", "seed=1"]``.

    Raises:
        ConfigError: Listing everything that the schema refuses. For the nearest valid names and for rules between
            settings, call `sweeptune.config.check.check` first.
    """
    return to_config(without_hydra(compose_raw(overrides)))


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Change a run's settings: whole groups first (``data=jsonl``), then values (``eval.max_samples=10``).

    Args:
        config: A complete configuration.
        overrides: As typed on the command line, checked before.

    Raises:
        ConfigError: The result is not legal.
    """
    values = OmegaConf.create(dataclasses.asdict(config))
    keyed = [text.partition("=") for text in overrides]
    for group in [key for key, _, _ in keyed if "." not in key]:
        values[group] = dataclasses.asdict(compose(overrides))[group]
    values.merge_with_dotlist([text for text in overrides if "." in text.partition("=")[0]])
    return to_config(values)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy that holds the run's own settings only."""
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def to_config(cfg: DictConfig | Mapping[str, Any]) -> Config:
    """Resolve interpolations and check every value against the schema.

    Args:
        cfg: A complete configuration without the ``hydra`` section.

    Raises:
        ConfigError: All wrong, missing and unknown settings at once.
    """
    cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: cannot be resolved: {str(error.msg).splitlines()[0]}") from error
    return from_plain(values)


def from_plain(values: Any) -> Config:
    """Check plain settings, without interpolations, against the schema.

    Args:
        values: A complete configuration, as YAML would hold it.

    Raises:
        ConfigError: All wrong, missing and unknown settings at once.
    """
    missing = sorted(_missing(values))
    if missing:
        raise ConfigError([f"{key}: has no value yet (???). Give it one: {key}=..." for key in missing])
    try:
        # JSON mode is pydantic's strict mode for plain data: "4" is no number, and dataclasses are built from mappings.
        return _adapter().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_in_words(error, values)) from error


def load(path: str | Path) -> Config:
    """Read a run's ``config.yaml``.

    Raises:
        ConfigError: There is no such file, it is not YAML, or a value is not legal.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. A run folder holds a config.yaml; give its path.")
    try:
        cfg = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path}: holds no settings. A run's config.yaml starts with model:, method:, data: ...")
    return to_config(cfg)


def dump(config: Config) -> str:
    """The configuration as YAML; `load` reads it back to an equal `Config`."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Hydra keeps one global state; inside ``@hydra.main`` it is taken, so it is put aside and put back."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base=HYDRA_VERSION_BASE, config_dir=str(conf_dir())):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _missing(values: Any, above: str = "") -> Iterator[str]:
    """`OmegaConf.missing_keys` of what is plain already, which takes no time; a sweep checks many points."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _missing(value, f"{above}.{key}" if above else str(key))
    elif values == MISSING:
        yield above


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def _in_words(error: ValidationError, values: Any) -> list[str]:
    """One sentence per setting; pydantic reports one per member of a union."""
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        # pydantic puts the chosen method into the path (method, lora, rank): it is no part of the key.
        place = [str(part) for part in item["loc"]]
        if place[:1] == ["method"] and place[1:2] and place[1] in METHOD_SCHEMAS:
            del place[1]
        key = ".".join(place[:2])
        method = values["method"].get("name") if isinstance(values.get("method"), dict) else None
        problems.setdefault(key, _one_in_words(key, str(item["type"]), values, method, str(item["msg"])))
    return list(problems.values())


def _one_in_words(key: str, kind: str, values: Any, method: Any, message: str) -> str:
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: is missing. conf/{CONFIG_NAME}.yaml and the groups in conf/ give every setting a value."
    if kind == "unexpected_keyword_argument":
        return f"{key}: no such setting{f' with method={method}' if key.startswith('method.') else ''}. Take it out."
    if kind.startswith("union_tag"):
        return f"method.name={method}: no such method. Allowed: {', '.join(sorted(METHOD_SCHEMAS))}"
    annotation = field_type(key, method) if method in METHOD_SCHEMAS else None
    section, _, field = key.partition(".")
    seen = json.dumps(values[section][field] if field else values[section])
    if section in sections() and not field:
        return f"{key}={seen}: must be a mapping, with the fields {', '.join(fields_of(sections()[section]))}."
    return f"{key}={seen}: {message if annotation is None else f'must be {describe(annotation)}'}."
