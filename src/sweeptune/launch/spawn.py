"""Start a run in its own process, watch it, and make sure that it leaves a record."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sweeptune.config.compose import dump, load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.launch.oomkill import oom_kills
from sweeptune.launch.worker import PARENT
from sweeptune.tracking.files import write_text
from sweeptune.tracking.record import empty_record, is_over, read_record, write_record

WORKER = "SWEEPTUNE_WORKER"
"""Environment variable with another command for `sweeptune.launch.worker`: a test's trainer, which fails to order."""


@dataclass
class Worker:
    """A run in a process of its own.

    Attributes:
        process: The worker; under torchrun its ranks are its children.
        before: The folder's record when it started.
        started: On the monotonic clock, in seconds.
    """

    config: Config
    folder: Path
    command: str
    process: subprocess.Popen[bytes]
    before: dict[str, Any] | None
    started: float = field(default_factory=time.monotonic)
    kills: int | None = field(default_factory=oom_kills)

    @property
    def ranks(self) -> int:
        return self.config.hardware.gpus_per_trial

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def stop(self) -> None:
        """Ask it to stop with a checkpoint."""
        ask_to_stop(self.process.pid, self.ranks)

    def kill(self) -> None:
        """End it, and all that it started, now."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def died(self) -> bool:
        """Whether SIGKILL ended it without a new record: the kernel, a person or a scheduler did that, not the run."""
        code = self.process.returncode
        return code is not None and code == -signal.SIGKILL and self.out_of_memory() is False and not self._told()

    def out_of_memory(self) -> bool:
        """Whether the kernel ended a process of this machine's group for want of memory since the worker started."""
        now = oom_kills()
        code = self.process.returncode
        killed = code == -signal.SIGKILL or (self.ranks > 1 and code not in (None, 0))  # torchrun: a rank was
        return killed and now is not None and now > (self.kills or 0)

    def record(self, *, interrupted: bool = False) -> dict[str, Any]:
        """The record of the ended run, also in its folder: the worker's, or the launcher's where it left none."""
        try:
            record = read_if_there(self.folder)
        except ConfigError as error:
            bad = self.folder / "result.json"
            bad.replace(self.folder / "result.json.unreadable")
            return self._write("crashed", "; ".join(error.problems))
        if record is not None and record != self.before:
            return record
        if self.out_of_memory():
            return self._write("oom", "the kernel ended the worker because the machine's memory was full")
        status = "interrupted" if interrupted else "crashed"
        said = "train.log" if (self.folder / "train.log").exists() else "output.log"
        return self._write(status, f"the worker {ending(self.process.returncode)} without a record; see {said}")

    def _told(self) -> bool:
        with suppress(ConfigError):
            record = read_if_there(self.folder)
            return record is not None and record != self.before
        return True

    def _write(self, status: str, reason: str) -> dict[str, Any]:
        record = empty_record(self.config) | {"command": self.command, "status": status, "reason": reason}
        write_record(self.folder, record)
        return read_record(self.folder)


def start(
    config: Config,
    folder: Path,
    command: str,
    *,
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> Worker:
    """Start a run in a fresh process (several under torchrun).

    Args:
        config: The run's settings, frozen into ``folder / "config.yaml"``, unless that exists.
        folder: The run folder; an unfinished run in it is continued.
        command: The command line that reproduces the run.
        environment: Variables beside our own, such as ``CUDA_VISIBLE_DEVICES``.
        output: Where what it prints goes; None is our own terminal.

    Raises:
        ConfigError: The folder belongs to other settings or cannot be written.
    """
    freeze(config, folder)
    variables = {**os.environ, PARENT: str(os.getpid()), **(environment or {})}
    ranks = config.hardware.gpus_per_trial
    if ranks > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    program = shlex.split(os.environ.get(WORKER, "")) or [sys.executable, "-m", "sweeptune.launch.worker"]
    before = None
    with suppress(ConfigError):
        before = read_if_there(folder)
    file = open(output, "ab") if output else None  # noqa: SIM115, handed to the process
    try:
        process = subprocess.Popen(
            [*program, str(folder), f"--command={command}", f"--ranks={ranks}"],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
        )
    finally:
        if file:
            file.close()
    return Worker(config, folder, command, process, before)


def spawn(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """Run in a process of its own, wait for it, and return the record; a run that is over is kept.

    Raises:
        ConfigError: As `start`.
    """
    freeze(config, folder)
    before = read_if_there(folder)
    if before is not None and is_over(folder, before):
        return before
    with terminate_like_ctrl_c():
        worker = start(config, folder, command)
        interrupted = wait(worker)
    return worker.record(interrupted=interrupted)


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
        raise ConfigError(f"{folder}: holds a run with other settings; choose another folder or remove it")


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


def wait(worker: Worker) -> bool:
    """Wait for the worker; return whether the user interrupted it. A second Ctrl-C kills it."""
    interrupted = False
    while True:
        try:
            worker.process.wait()
            return interrupted
        except KeyboardInterrupt:
            if interrupted:
                worker.kill()
            else:
                worker.stop()
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
