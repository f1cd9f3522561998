"""Whether the kernel has killed processes here because memory ran out.

A worker that such a kill ends leaves nothing but SIGKILL. The count of its control group tells it apart from every
other SIGKILL: it has risen. Linux has two generations of control groups; machines with the first or both still exist.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def oom_kills(proc: Path = PROC) -> int | None:
    """How many processes of this process's control group the kernel has killed for want of memory.

    A worker stays in the group of the process that started it. What counts is that the number has risen between its
    start and its end; two workers of one group that end together cannot be told apart.

    Args:
        proc: The process's folder in /proc.

    Returns:
        The count, or None where nothing says (not Linux, or no memory controller).

    Example:
        >>> before = oom_kills()
        >>> worker.wait()
        -9
        >>> oom = before is not None and (oom_kills() or 0) > before
    """
    for kind, name in (("memory", "memory.oom_control"), ("", "memory.events")):
        folder = _group(proc, kind)
        while folder is not None:
            count = _count(folder / name)
            if count is not None:
                return count
            # Where a group has no memory controller of its own, its processes count for the one above.
            folder = folder.parent if _group_file(folder.parent) else None
    return None


def _group(proc: Path, kind: str) -> Path | None:
    """The folder of this process's control group: of the memory hierarchy of v1, or of v2 (``kind`` is empty)."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    paths = [path for _, controllers, path in groups if kind in controllers.split(",")]
    for line in mounts if paths else ():
        place, _, filesystem = line.partition(" - ")
        root, point = (part.replace("\\040", " ") for part in place.split()[3:5])
        type_, _, options = filesystem.split(" ", 2)
        if (type_ == "cgroup" and kind in options.split(",")) if kind else type_ == "cgroup2":
            # In a container the mount may begin below the machine's root: at the container's own group.
            path = PurePosixPath(paths[0])
            inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            return Path(point) / inside
    return None


def _group_file(folder: Path) -> bool:
    return (folder / "cgroup.procs").exists()


def _count(file: Path) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(line[1]) for line in lines if line[:1] == ["oom_kill"]), None)
