"""Send a run to Weights & Biases while it trains, from a process beside it.

``python -m sweeptune.tracking.follow RUN_FOLDER ATTEMPT`` reads what the run writes anyway (metrics.jsonl, result.json)
and sends it. Whatever happens to the network, to W&B or to this process can then neither stop the training nor slow it,
and W&B's memory is not counted as the training's. A run that is killed still has its rows, since its sender lives on.

The run holds the other end of our stdin: a line, or its end, means that the training is over. What the user should know
is a line on our stdout, which the run logs; everything else is in the folder's wandb.log.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sweeptune.config.errors import ConfigError
from sweeptune.config.schema import Config
from sweeptune.tracking.delivery import LOCK, LOG, Rows, conclude, is_complete, write_note
from sweeptune.tracking.describe import attempts, card, read_settings
from sweeptune.tracking.record import RECORD
from sweeptune.tracking.tracker import Card
from sweeptune.tracking.wandb_run import WandbTracker, goes_online, has_key, server

log = logging.getLogger("sweeptune")

POLL_S = 1.0
RETRY_S = 20.0
"""Between two tries to reach the server; grows tenfold."""
AGAIN_S = 60.0
"""A server that did not answer so shortly before the end of the run is not asked again."""
RECORD_S = 60.0
"""How long, after a worker was killed, its launcher's record or the next attempt is waited for, which imports torch."""
LAST_S = 200.0
"""How long the sender may live after the training, whatever W&B does."""
WAIT_S = 15.0
"""How long a command waits at its end for its senders."""


class Follower:
    """The sender of a run, as the run sees it.

    Args:
        process: The sender.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        threading.Thread(target=self._pass_on, daemon=True).start()

    def end(self) -> None:
        """Say that the training is over and its record written; returns at once."""
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write("over\n")
            self._process.stdin.close()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):
            for line in self._process.stdout:
                log.warning("%s", line.rstrip())
        self._process.wait()


def follow(config: Config, folder: Path, attempt: int) -> Follower | None:
    """Start the sender of a run, where its tracker asks for one.

    Args:
        config: The run's settings.
        folder: The run folder, with its config.yaml.
        attempt: Which start this is, from 1.

    Returns:
        None where nothing is sent, also where the sender cannot be started: that is logged and the run goes on.

    Example:
        >>> follower = follow(config, folder, attempt=1)
        >>> ...  # train
        >>> if follower is not None:
        ...     follower.end()
    """
    if config.tracker.name == "none" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    program = [sys.executable, "-m", "sweeptune.tracking.follow", str(folder), str(attempt), str(_mtime(folder))]
    try:
        with (folder / LOG).open("ab") as said:
            process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,  # whoever kills the run with all its processes leaves us to say so
            )
    except OSError as error:
        log.warning("W&B: the sender cannot be started (%s); `sweeptune sync %s` sends the run later", error, folder)
        return None
    return Follower(process)


def wait_for_senders(folders: Sequence[Path], seconds: float = WAIT_S) -> list[Path]:
    """Wait, at the end of a command, until what its runs left is sent.

    Args:
        folders: Run folders.
        seconds: For all of them together.

    Returns:
        Those whose sender still works; it goes on by itself for a while.
    """
    deadline, left = time.monotonic() + seconds, []
    for folder in folders:
        if not (folder / LOG).exists():  # nothing was ever sent while it trained
            continue
        try:
            with FileLock(folder / LOCK, timeout=max(0.0, deadline - time.monotonic())):
                pass
        except Timeout:
            left.append(folder)
    return left


def await_senders(folders: Sequence[Path], root: Path, seconds: float = WAIT_S) -> None:
    """Wait for senders, and say what has not arrived by then.

    A sender that gave up or was killed holds no lock any more, and may have found nobody to tell: so the note of what
    the server has confirmed is asked, which is each run's own.

    Args:
        folders: Run folders.
        root: What the user would give to ``sweeptune sync``.
        seconds: How long to wait for all of them together.
    """
    busy = wait_for_senders(folders, seconds)
    if not goes_online("wandb"):  # nothing was to be sent now, which has been said
        return
    wanted = {folder: known for folder in folders if (known := _wants_wandb(folder)) is not None}
    missing = [folder for folder, known in wanted.items() if not is_complete(folder, known, server())]
    if not missing:
        return
    untrained = sum(_never_trained(folder) for folder in missing)
    counts = {
        "still being sent": sum(folder in busy for folder in missing),
        "ended without training, so without a sender": untrained,
    }
    log.log(
        logging.INFO if untrained == len(missing) else logging.WARNING,
        "W&B: %d of %d runs are not on %s%s. sweeptune sync %s sends what is missing (%s in a run folder says why)",
        len(missing),
        len(wanted),
        server(),
        "".join(f", {count} of them {what}" for what, count in counts.items() if count),
        root,
        LOG,
    )


def _never_trained(folder: Path) -> bool:
    """Whether its study ended it before a worker began, as one that cannot keep a limit."""
    return (folder / RECORD).exists() and not any((folder / name).exists() for name in (LOG, "attempts.jsonl"))


def _wants_wandb(folder: Path) -> Card | None:
    """What a run is for W&B, where it was to be sent while it trained."""
    try:
        wanted = (read_settings(folder).get("tracker") or {}).get("name") == "wandb"
        return card(folder) if wanted else None
    except ConfigError:
        return None  # `sweeptune sync` names it


def offline_words(root: Path) -> str:
    """Why ``tracker=wandb`` sends nothing now, and what sends it later."""
    why = f"no key for {server()}" if not has_key() else f"WANDB_MODE={os.environ.get('WANDB_MODE')}"
    return f"W&B: {why}, so runs are kept in their folders; `wandb login`, then `sweeptune sync {root}` sends them"


def main(arguments: Sequence[str]) -> int:
    """Be the sender."""
    folder, attempt, began = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    with suppress(OSError):
        os.nice(10)  # the training goes first
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    name = read_settings(folder)["tracker"]["name"]
    online = goes_online(name)
    if name == "wandb" and not online:
        say(offline_words(folder))
    try:
        with FileLock(folder / LOCK, timeout=LAST_S):  # the sender of an earlier attempt may still be at its end
            sent = Sender(folder, attempt, began, over, online=online).run()
    except Timeout:
        sent = False
    return 0 if sent else 1


class Sender:
    """Follows one attempt to its end, through any number of failures of W&B.

    Args:
        folder: The run folder.
        attempt: Which start of the run this is; a later one ends us.
        began: When its record was written that was there at the start, in ns; 0 where there was none.
        over: Set when the training has ended.
        online: Send to the server; else write a .wandb file.
    """

    def __init__(self, folder: Path, attempt: int, began: int, over: threading.Event, *, online: bool) -> None:
        self.folder, self.attempt, self.began, self.over, self.online = folder, attempt, began, over, online
        self._told = False

    def run(self) -> bool:
        """Send until the run has ended; return whether everything has arrived."""
        pause = RETRY_S
        while True:
            tracker = WandbTracker(self.folder, online=self.online)
            ended = self.over.is_set()
            try:
                self._deliver(tracker)
                return True
            except Exception as error:  # W&B's own, of any kind
                tracker.close()
                print(f"{time.ctime()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                self._tell_once(error)
            failed = time.monotonic()
            self.over.wait(pause)
            if self.over.is_set() and (ended or time.monotonic() - failed < AGAIN_S):
                return False
            pause = min(10 * RETRY_S, 2 * pause)

    def _deliver(self, tracker: WandbTracker) -> None:
        known = card(self.folder, attempt=self.attempt)
        rows = Rows(self.folder, tracker.start(known))
        while True:
            ended = self.over.is_set() or self._followed() is not None  # asked first: what was written before is read
            for index, line in rows.fresh():
                tracker.log(line, index)
            if ended:
                break
            self.over.wait(POLL_S)
        gone_on = self._await_record()
        own = gone_on is None and _mtime(self.folder) != self.began
        conclude(self.folder, tracker, own=own, gone_on=gone_on)
        if self.online and own:
            write_note(self.folder, known, server(), tracker.path, tracker.url, rows.sent)

    def _followed(self) -> int | None:
        """The later attempt at the run, where there is one."""
        now = attempts(self.folder)
        return now if now > self.attempt else None

    def _await_record(self) -> int | None:
        """Wait for the record of a worker that was killed, which its launcher writes; or for a later attempt."""
        deadline = time.monotonic() + RECORD_S
        while time.monotonic() < deadline:
            if (later := self._followed()) is not None:
                return later
            written = _mtime(self.folder)
            if written != self.began and time.time_ns() - written > 0.5e9:
                return None  # it has stood for a moment: a launcher may correct what it has written at first
            time.sleep(0.1)
        return self._followed()

    def _tell_once(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            words = str(error).strip().splitlines() or [""]
            say(
                f"W&B: {server()} does not take this run ({type(error).__name__}: {words[0][:200]}). Training goes on; "
                f"what is missing at its end is sent by `sweeptune sync {self.folder}`"
            )


def say(text: str) -> None:
    """Tell the run's user, if the run still lives."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


def _watch(over: threading.Event, leave: Callable[[int], None] = os._exit) -> None:
    """Note the end of the training; some time after it this process ends, even where W&B hangs."""
    sys.stdin.readline()
    over.set()
    time.sleep(LAST_S)
    print(f"{time.ctime()}: gave up {LAST_S:.0f} s after the run", file=sys.stderr, flush=True)
    leave(1)


def _mtime(folder: Path) -> int:
    try:
        return (folder / RECORD).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
