"""What ``python train.py`` does: check every override, then compose with Hydra, then run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sweeptune.config.allocator import expand_segments
from sweeptune.config.check import check, ignored_by_one_run
from sweeptune.config.compose import conf_dir, load, to_config, with_free_keys
from sweeptune.config.errors import ConfigError
from sweeptune.config.read_space import default_name
from sweeptune.config.schema import Config
from sweeptune.config.secrets import masked
from sweeptune.config.space import as_override
from sweeptune.launch.spawn import read_if_there, spawn
from sweeptune.launch.worker import EXIT_CODES, run_here
from sweeptune.tracking.console import setup_logging
from sweeptune.tracking.files import DiskFull
from sweeptune.tracking.follow import await_senders

log = logging.getLogger("sweeptune")


@dataclass
class Outcome:
    """What this command left; Hydra hands nothing back to whoever calls it."""

    records: list[dict[str, Any]] = field(default_factory=list)
    study: Any = None
    """Of a sweep: `sweeptune.study.command.Ended`."""


OUTCOME = Outcome()


def main(argv: Sequence[str] | None = None, show: Callable[[Path], None] | None = None) -> int:
    """Run the command line; return its exit status.

    0: every run completed. 1: a run failed, its record says why. 2: a setting is wrong and nothing was started.
    130: interrupted. Of a search, whose failed trials are part of its answer, 0 is that a trial completed.

    Args:
        argv: Overrides and Hydra's own flags; the process's by default.
        show: Prints the comparison of a study's folder, after a sweep.
    """
    expand_segments()  # here, before anything asks CUDA for its devices; workers and ranks inherit it
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = get_args_parser().parse_args(arguments)  # Hydra's own: only it knows which flags take a value
    overrides, multirun = flags.overrides, flags.multirun
    setup_logging(None)
    OUTCOME.records, OUTCOME.study = [], None
    try:
        problems = check(overrides, multirun=multirun)
        if problems:
            raise ConfigError(problems)
        vain = None if multirun else ignored_by_one_run(overrides)
        if vain:
            log.warning("%s", vain)
        resume = [value.removeprefix("resume=") for value in overrides if value.startswith("resume=")]
        if resume:
            continue_run(Path(resume[0]))
        else:
            compose_and_run(with_more(arguments, overrides, study_overrides(overrides) if multirun else []))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except DiskFull as error:
        print(error, file=sys.stderr)
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        print(ConfigError(str(error)), file=sys.stderr)
        return 2
    if OUTCOME.study is None:
        return max([EXIT_CODES.get(record["status"], 1) for record in OUTCOME.records], default=0)
    if show is not None and OUTCOME.study.lines:
        show(OUTCOME.study.folder)
    return study_status(OUTCOME.study)


def with_more(arguments: list[str], overrides: list[str], more: list[str]) -> list[str]:
    """Add overrides behind the last one: argparse takes them in one place only, and flags may follow.

    Example:
        >>> with_more(["method=full,lora", "-m"], ["method=full,lora"], ["study.name=a"])
        ['method=full,lora', 'study.name=a', '-m']
    """
    last = max((place for place, word in enumerate(arguments) if word in overrides), default=-1)
    return [*arguments[: last + 1], *more, *arguments[last + 1 :]]


def study_status(study: Any) -> int:
    """The exit status of a study that has ended."""
    statuses = [line["status"] for line in study.lines]
    if study.interrupted:
        return EXIT_CODES["interrupted"]
    if study.search:
        return 0 if "completed" in statuses else 1
    return max([EXIT_CODES.get(status, 1) for status in statuses if status != "pruned"], default=0)


def continue_run(folder: Path) -> None:
    """Go on with an interrupted run, with the settings that it began with."""
    record = read_if_there(folder)
    if record is not None and record["status"] == "completed":
        log.info("%s has completed: there is nothing to go on with", folder)
    OUTCOME.records.append(execute(load(folder / "config.yaml"), folder, ""))


def execute(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """Run here when one rank is enough, so that a debugger sees it; else under torchrun."""
    record = (spawn if config.hardware.gpus_per_trial > 1 else run_here)(config, folder, command)
    if config.tracker.name != "none":
        await_senders([folder], folder)
    return record


def compose_and_run(arguments: list[str]) -> None:
    """Let Hydra compose: it calls `task` for one run and the sweeper plugin for a study."""

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")  # type: ignore[untyped-decorator]
    def task(composed: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        command = masked(shlex.join(["python", "train.py", *arguments]))
        OUTCOME.records.append(execute(to_config(composed), folder, command))
        announce(OUTCOME.records[-1], folder)

    # Otherwise Hydra prints what is raised inside it and exits; here it is caught, like every other error, in main.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    sys.argv = ["train.py", *with_free_keys(arguments)]
    try:
        task()
    finally:
        sys.argv = before


def announce(record: dict[str, Any], folder: Path) -> None:
    """Say how a single run ended and what can be done with it."""
    if record["status"] != "completed":
        return
    result, memory, speed = record["eval"], record["memory"], record["speed"]
    rate = f"{speed['tokens_per_s']:,.0f} tokens/s" if speed["tokens_per_s"] else "too short to time"
    log.info(
        "eval loss %.3f -> %.3f, peak memory %.2f GiB, %s",
        result["initial_loss"],
        result["loss"],
        memory["peak_memory_gib"],
        rate,
    )
    log.info("next: sweeptune compare %s | chat %s | export %s --merge", folder.parent, folder, folder)


def study_overrides(overrides: Sequence[str]) -> list[str]:
    """What a sweep sets unless the user does: a name, and that compared runs never change their micro-batch."""
    given = {override.partition("=")[0] for override in overrides}
    added = []
    if "study.name" not in given:
        added.append(as_override("study.name", default_name(overrides)))
    if "hardware.on_oom" not in given:
        added.append("hardware.on_oom=stop")
    return added
