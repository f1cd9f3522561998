"""Start a run in its own process, wait for it, and make sure that it leaves a record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from sweeptune.config.compose import dump, load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.launch.worker import PARENT
from sweeptune.tracking.files import write_text
from sweeptune.tracking.record import empty_record, read_record, write_record


def spawn(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """Run in a fresh process (several under torchrun) and return the record.

    A folder with the same settings is continued, and a completed one kept.

    Args:
        config: The run's settings, frozen into ``folder / "config.yaml"``.
        folder: The run folder.
        command: The command line that reproduces the run.

    Raises:
        ConfigError: The folder belongs to other settings or cannot be written.
    """
    freeze(config, folder)
    before = read_if_there(folder)
    if before is not None and before["status"] == "completed":
        return before
    environment = {**os.environ, PARENT: str(os.getpid())}
    ranks = config.hardware.gpus_per_trial
    if ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    with terminate_like_ctrl_c():
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeptune.launch.worker", str(folder), f"--command={command}", f"--ranks={ranks}"],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
        )
        interrupted = wait(process, ranks)
    record = read_if_there(folder)
    if record is None or record == before:
        record = empty_record(config) | {"command": command}
        record["status"] = "interrupted" if interrupted else "crashed"
        record["reason"] = f"the worker {ending(process.returncode)} without a record; see train.log"
        write_record(folder, record)
    return record


def freeze(config: Config, folder: Path) -> None:
    """Write the settings that the worker reads, unless the folder has them already.

    Raises:
        ConfigError: It has others, or cannot be written.
    """
    settings = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            write_text(settings, dump(config))
    except OSError as error:
        raise ConfigError(f"{folder}: this folder cannot be written ({error.strerror or error})") from error
    if load(settings) != config:
        raise ConfigError(
            f"{folder}: holds a run with other settings; choose another study with study.name=<name> or remove it"
        )


@contextmanager
def terminate_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which schedulers send before they kill, stop a run with a checkpoint as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait(process: subprocess.Popen[bytes], ranks: int) -> bool:
    """Wait for the worker; return whether the user interrupted it. A second Ctrl-C kills it."""
    interrupted = False
    while True:
        try:
            process.wait()
            return interrupted
        except KeyboardInterrupt:
            if interrupted:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                ask_to_stop(process.pid, ranks)
            interrupted = True


def ask_to_stop(pid: int, ranks: int) -> None:
    """Pass Ctrl-C on to what trains: under torchrun to its ranks, since it would kill them after 30 seconds itself."""
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        worker = psutil.Process(pid)
        trains = worker.children() if ranks > 1 else []
        for one in trains or [worker]:  # torchrun alone is stopped before it has started any rank
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGINT)


def ending(code: int) -> str:
    """Say in words how a process ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def read_if_there(folder: Path) -> dict[str, Any] | None:
    """The folder's record, or None while there is none."""
    return read_record(folder) if (folder / "result.json").exists() else None
