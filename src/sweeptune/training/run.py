"""One run from settings to record: whatever happens, a result.json says how it ended."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch

from sweeptune.config.compose import dump, load
from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.tracking.console import setup_logging
from sweeptune.tracking.files import DiskFull, JsonLines, write_text
from sweeptune.tracking.follow import follow
from sweeptune.tracking.record import empty_record, environment, is_over, read_record, write_record
from sweeptune.training.loop import prove, save, train
from sweeptune.training.merge import judge_merged
from sweeptune.training.oom import OptimizerOutOfMemory, is_out_of_memory, release_memory
from sweeptune.training.proofs import ProofFailed
from sweeptune.training.result import measured
from sweeptune.training.scoring import evaluate_split, keep, score
from sweeptune.training.session import Session, open_session
from sweeptune.training.stop import Diverged, Pruned, Stop, stop_on_signal

log = logging.getLogger("sweeptune")


def run(config: Config, folder: Path, command: str = "") -> dict[str, Any]:
    """Train, evaluate and record one run in this process; a folder that holds an unfinished run is continued.

    Args:
        config: The run's settings.
        folder: The run folder; made if it is missing.
        command: The command line that reproduces the run.

    Returns:
        The record, also written to ``folder / "result.json"``. A run that was completed or pruned before is returned as
        it is.

    Raises:
        ConfigError: The folder cannot be written.

    Example:
        >>> record = run(compose(["model=tiny", "method=lora"]), Path("outputs/try"))
        >>> record["status"], record["eval"]["loss"]
    """
    main = os.environ.get("RANK", "0") == "0"
    known = read_record(folder) if (folder / "result.json").exists() else None
    attempts = prepare_folder(config, folder, main=main, start=not is_over(folder, known))
    if known is not None and is_over(folder, known):
        return known
    setup_logging(folder / "train.log" if main else None, main=main)
    record = empty_record(config) | {"command": command, "attempts": attempts}
    follower = follow(config, folder, attempts) if main else None
    holder: list[Session] = []
    try:
        with stop_on_signal() as stop:
            finished = train_to_the_end(config, folder, stop, holder, record)
        record["status"] = "completed" if finished else "interrupted"
        record["reason"] = None if finished else "stopped by a signal"
        if not finished:
            log.warning(
                "interrupted after step %d; go on with: python train.py resume=%s", holder[0].progress.step, folder
            )
    except Pruned as ended:
        record |= {"status": "pruned", "reason": str(ended), "pruned_by": ended.verdict}
        log.warning("pruned after step %d: %s", holder[0].progress.step, ended)
    except Exception as error:
        record["status"], record["reason"] = classify(error), reason(error)
        log.error("%s: %s", record["status"], record["reason"])
        if record["status"] == "crashed":
            log.debug("traceback", exc_info=error)
    except KeyboardInterrupt:
        record["status"], record["reason"] = "interrupted", "stopped by a second signal, without a checkpoint"
    if holder:
        record |= measured_so_far(holder[0])
        if record["status"] == "completed" and config.eval.merged and config.method.name == "qlora":
            add_merged(holder[0], record)
        holder.clear()
    if main:
        write_record(folder, record)
    if follower is not None:
        follower.end()
    return record


def train_to_the_end(config: Config, folder: Path, stop: Stop, holder: list[Session], record: dict[str, Any]) -> bool:
    """Train; after an out-of-memory in the optimiser begin again at the newest checkpoint with half the micro-batch."""
    micro_batch: int | None = None
    while True:
        holder[:] = [open_session(config, folder, micro_batch=micro_batch)]
        session = holder[0]
        record["environment"] = environment()
        try:
            if not train(session, stop):
                return False
            finish(session, record)
            return True
        except OptimizerOutOfMemory as error:
            size = session.progress.micro_batch
            if config.hardware.on_oom == "stop" or size == 1:
                raise torch.OutOfMemoryError(f"{error} (in the optimiser, micro_batch {size})") from None
            message = f"{error}"
        device, micro_batch = session.device, size // 2
        del session
        holder.clear()
        release_memory(device)
        log.warning(
            "out of memory in the optimiser: restarting from the last checkpoint with micro-batch %d (%s)",
            micro_batch,
            message,
        )


def finish(session: Session, record: dict[str, Any]) -> None:
    """Judge the trained model, prove once more, keep its weights."""
    session.watch.summary()  # the steady window ends with the last step
    session.progress.last_eval = evaluate_split(session, "after training")
    prove(session)
    if session.config.eval.test:
        record["test"] = keep(session, score(session, session.splits.test, "testing"), "test.jsonl")
    save(session, weights_only=True)


def measured_so_far(session: Session) -> dict[str, Any]:
    """The figures of a run however it ended; what cannot be computed any more must not hide how it ended."""
    session.meter.close()
    try:
        return measured(session)
    except Exception as error:
        log.debug("figures of the unfinished run are missing", exc_info=error)
        return {"memory": session.meter.summary()}


def add_merged(session: Session, record: dict[str, Any]) -> None:
    """Judge the merged model, last of all: it takes the trained one's place and, being bf16, much more memory."""
    if session.main:
        write_record(session.folder, record)  # should the host's memory run out now, the run is complete all the same
    record["eval"] |= judge_merged(session)
    record["memory"]["phases"] |= {"merge": session.meter.phases["merge"]}


def prepare_folder(config: Config, folder: Path, *, main: bool, start: bool) -> int:
    """Make the run folder and its config.yaml, and note this start if it is one; return the number of starts so far.

    Raises:
        ConfigError: The folder cannot be written, or belongs to other settings.
    """
    if not main:
        return 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "config.yaml"
        if not settings.exists():
            write_text(settings, dump(config))
        elif load(settings) != config:
            raise ConfigError(f"{folder}: this folder belongs to a run with other settings (its config.yaml differs)")
        if start:
            this = {"time": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}
            JsonLines(folder / "attempts.jsonl").append(this)
    except DiskFull:
        raise
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={folder}: this folder cannot be written ({error.strerror or error}); choose another with "
            "hydra.run.dir=<folder>"
        ) from error
    return len((folder / "attempts.jsonl").read_text().splitlines())


def classify(error: Exception) -> str:
    """The status of the record for an exception."""
    if is_out_of_memory(error):
        return "oom"
    if isinstance(error, ConfigError):
        return "invalid_config"
    if isinstance(error, ProofFailed):
        return "invalid_run"
    return "diverged" if isinstance(error, Diverged) else "crashed"


def reason(error: Exception) -> str:
    """One readable line on an exception."""
    if isinstance(error, ConfigError):
        return "; ".join(error.problems)
    text = str(error).strip() or type(error).__name__
    known = isinstance(error, Diverged | ProofFailed | DiskFull) or is_out_of_memory(error)
    return text if known else f"{type(error).__name__}: {text}"
