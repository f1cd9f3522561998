"""The kernel's count of processes killed for want of memory, as each generation of control groups tells it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeptune.launch.oomkill import oom_kills

Machine = Callable[..., Path]
V1 = "35 31 0:32 {root} {mount} rw,relatime - cgroup cgroup rw,memory\n"
V1_BESIDE = "32 31 0:29 / {mount} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
EVENTS = "low 0\nhigh 0\nmax 7\noom 5\noom_kill {}\noom_group_kill 9\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A process's folder of /proc: ``machine("0::/job\\n", V2, {"job/memory.events": EVENTS.format(3)})``."""

    def make(groups: str, mounts: str, files: dict[str, str], root: str = "/") -> Path:
        proc, mount = tmp_path / "self", tmp_path / "sys fs"
        proc.mkdir()
        (proc / "cgroup").write_text(groups)
        (proc / "mountinfo").write_text(
            "23 1 8:1 / / rw - ext4 /dev/sda rw\n" + mounts.format(root=root, mount=str(mount).replace(" ", "\\040"))
        )
        for name, text in files.items():
            (mount / name).parent.mkdir(parents=True, exist_ok=True)
            (mount / name).write_text(text)
        return proc

    return make


def test_version_2(machine):
    events = {"job/memory.events": EVENTS.format(3), "memory.events": EVENTS.format(8)}
    assert oom_kills(machine("0::/job\n", V2, events)) == 3


def test_version_1(machine):
    groups = "9:name=systemd:/\n4:memory:/job/1\n1:cpu,cpuacct:/other\n0::/\n"
    files = {"job/1/memory.oom_control": CONTROL.format(2), "other/memory.oom_control": CONTROL.format(7)}
    assert oom_kills(machine(groups, V1_BESIDE + V1, files)) == 2


def test_a_machine_with_both_where_only_one_counts_memory(machine):
    groups = "4:cpu:/job\n0::/job\n"
    assert oom_kills(machine(groups, V1_BESIDE + V2, {"job/memory.events": EVENTS.format(1)})) == 1


def test_a_container_that_sees_its_own_group_as_the_root(machine):
    groups = "4:memory:/docker/abc\n"
    assert oom_kills(machine(groups, V1, {"memory.oom_control": CONTROL.format(4)}, root="/docker/abc")) == 4


def test_a_mount_that_begins_elsewhere(machine):
    groups = "0::/../other\n"
    assert oom_kills(machine(groups, V2, {"memory.events": EVENTS.format(5)}, root="/docker/abc")) == 5


def test_a_group_without_a_memory_controller_counts_for_the_one_above(machine):
    files = {
        "a/memory.events": EVENTS.format(6),
        "a/cgroup.procs": "",
        "a/b/cgroup.procs": "",
        "a/b/c/cgroup.procs": "",
    }
    assert oom_kills(machine("0::/a/b/c\n", V2, files)) == 6


@pytest.mark.parametrize("files", [{}, {"job/memory.events": "low 0\noom 5\n"}])
def test_nothing_says(machine, files):
    assert oom_kills(machine("0::/job\n", V2, files)) is None


def test_a_system_without_proc(tmp_path):
    assert oom_kills(tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_this_machine_can_be_asked():
    count = oom_kills()
    assert count is None or count >= 0
