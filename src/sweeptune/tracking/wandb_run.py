"""Weights & Biases as a `Tracker`: one W&B run for each attempt at a run.

Every row carries its place in metrics.jsonl as W&B's ``_step``. A run that is opened again says which step it has
reached, so that what arrived is never sent twice, whoever sent it and however that ended.
"""

from __future__ import annotations

import netrc
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeptune.tracking.tracker import Card

CLOUD = "https://api.wandb.ai"
INIT_S, FINISH_S, ASK_S = 20.0, 60.0, 20
"""Seconds that opening a run, waiting until all has arrived, and asking what arrived may take."""
OURS = (
    "WANDB_RUN_ID",
    "WANDB_RESUME",
    "WANDB_SWEEP_ID",
    "WANDB_RUN_GROUP",
    "WANDB_NAME",
    "WANDB_JOB_TYPE",
    "WANDB_TAGS",
)
"""Variables that would give every run of a study the same identity."""


CLOSE_S = 5.0


class NotArrived(RuntimeError):
    """The server has less than was sent."""


class WandbTracker:
    """One run at a time; see `sweeptune.tracking.tracker.Tracker` for the methods.

    Args:
        folder: The run folder; offline its ``wandb/`` keeps the .wandb file.
        online: Send to the server, and see that it arrived.

    Example:
        >>> tracker = WandbTracker(folder, online=True)
        >>> first = tracker.start(card(folder))
        >>> tracker.log({"train/tokens": 2048, "train/loss": 2.0}, first)
        >>> tracker.summary({"result/eval_loss": 1.9})
        >>> tracker.finish(ok=True)
    """

    def __init__(self, folder: Path, *, online: bool) -> None:
        self.folder, self.online = folder, online
        self.url: str | None = None
        self.path = ""
        self._logged = 0
        self._run: Any = None
        # Online the .wandb file is of no use, since metrics.jsonl has the rows: it is not kept.
        self._scratch = tempfile.mkdtemp(prefix="sweeptune-wandb-") if online else None

    def start(self, card: Card) -> int:
        """Open the run, or go on with it; `Tracker.start`.

        Raises:
            wandb.Error: The server cannot be reached in time, or refuses.
        """
        import wandb

        for name in OURS:
            os.environ.pop(name, None)
        os.environ["WANDB_SILENT"] = "true"  # what matters is said by those who call us
        settings = wandb.Settings(
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1,  # 15 s by default, which a killed process would lose
            x_disable_stats=True,  # its samples would be of the sending process, not of the training
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            console="off",
            silent=True,
        )
        self._run = wandb.init(
            project=card.project,
            entity=card.entity,
            group=card.group,
            job_type=card.job_type,
            name=card.name,
            id=card.id,
            tags=list(card.tags),
            config=card.config,
            mode="online" if self.online else "offline",
            resume="allow" if self.online else None,
            reinit="finish_previous",  # by default a second init in one process returns the first run
            dir=self._scratch or str(self.folder),
            settings=settings,
        )
        self._run.define_metric("train/tokens", hidden=True)
        for part in ("train", "eval", "mem", "perf"):
            self._run.define_metric(f"{part}/*", step_metric="train/tokens")
        self.url = self._run.url if self.online else None
        self.path = f"{self._run.entity}/{self._run.project}/{self._run.id}"
        self._logged = int(self._run.starting_step) if self.online else 0
        return self._logged

    def log(self, row: dict[str, Any], index: int) -> None:
        """Send a row; returns at once, W&B's own process does the rest."""
        self._run.log(row, step=index)
        self._logged = index + 1

    def summary(self, figures: dict[str, Any]) -> None:
        """Write final figures under their own names, so that no aggregate of a metric stands in their place.

        Those that an earlier end of the same run left, and this one has not, are taken away.
        """
        known = list(self._run.summary.keys())
        for key in known:
            if key.startswith("result/") and key not in figures:
                del self._run.summary[key]
        self._run.summary.update(figures)

    def artifact(self, path: Path) -> None:
        """Keep a file of the run folder with the run."""
        with suppress(FileNotFoundError):
            # A copy: W&B links what it is given, and a link into the run folder would follow later attempts.
            copy = Path(self._run.dir) / path.name
            shutil.copyfile(path, copy)
            self._run.save(str(copy), base_path=str(copy.parent), policy="now")

    def finish(self, *, ok: bool) -> None:
        """Wait, for at most a minute, until everything has arrived.

        Raises:
            TimeoutError: It has not.
            NotArrived: W&B gave up on it.
        """
        run, self._run = self._run, None
        try:
            if run is None:
                return
            run.finish(exit_code=0 if ok else 1)
            if self.online:
                self._check_arrival()
        finally:
            self._tidy()

    def close(self) -> None:
        """Leave the run as it is; what it has not got is sent when it is opened again.

        W&B's own process is ended with it, because it would call the run's id in use; that tries to send what is left,
        so it is not waited for longer than a moment.
        """
        ending = threading.Thread(target=_end_wandb, daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        self._tidy()

    def _tidy(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _check_arrival(self) -> None:
        import wandb

        found = wandb.Api(timeout=ASK_S).run(self.path)
        arrived = int(found.lastHistoryStep) + 1
        if arrived < self._logged:
            raise NotArrived(f"{arrived} of {self._logged} rows have arrived")


def _end_wandb() -> None:
    with suppress(Exception):
        import wandb

        wandb.teardown(exit_code=1)


def server() -> str:
    """Address of the W&B server that is used."""
    return os.environ.get("WANDB_BASE_URL") or CLOUD


def has_key() -> bool:
    """Whether there is a key for it: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    with suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc(str(path))
        address = urlsplit(server())
        return any(known.authenticators(host or "") for host in (address.netloc, address.hostname))
    return False


def goes_online(name: str) -> bool:
    """Whether a run with this tracker is sent while it trains: not without a key, nor where WANDB_MODE says so."""
    wanted = os.environ.get("WANDB_MODE", "online") in ("online", "shared")
    return name == "wandb" and wanted and has_key()
