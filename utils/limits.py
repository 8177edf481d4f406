"""How much memory and how many CPU cores this process may take: of the machine, and of each control group around it.

A container, a Slurm step or a systemd unit limits a group of processes; groups lie in each other, and each has a limit
of its own. Version 1 has a tree for memory and one for CPUs, version 2 one for both, and a machine may have all three.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mount:
    """Where a tree of groups can be seen: `point` shows the group `root` and what lies below it."""

    point: Path
    root: str
    version: int
    controllers: frozenset[str]


def free_memory_bytes(proc: Path = PROC) -> int:
    """Memory that this process may still take: of the machine, or of a group around it where that is less.

    Args:
        proc: where the kernel says it; a test has a folder of its own.
    """
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for version, folder in _groups(proc, "memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read(folder / name).strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            # Files that the kernel keeps in memory and that nobody has used lately give way.
            kept = _statistic(folder, "inactive_file" if version == 2 else "total_inactive_file")
            free = min(free, max(int(limit) - max(int(used) - kept, 0), 0))
    return free


def cpu_quota(proc: Path = PROC) -> int | None:
    """CPU cores whose time this process may use up, rounded up; None where no group limits it."""
    shares = []
    for version, folder in _groups(proc, "cpu"):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            shares.append(int(quota) / int(period))
    return max(math.ceil(min(shares)), 1) if shares else None


def _groups(proc: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of every group around this process that may limit `controller`, the innermost first."""
    mounts = list(_mounts(proc))
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for mount in mounts:
            if mount.version != version or (version == 1 and controller not in mount.controllers):
                continue
            folder = mount.point / _below(group, mount.root)
            yield version, folder
            while folder != mount.point:
                folder = folder.parent
                yield version, folder


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _read(proc / "self" / "mountinfo").splitlines():
        first, separator, last = line.partition(" - ")
        fields, kind = first.split(), last.split()
        if not separator or len(fields) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        yield _Mount(
            point=Path(_unescaped(fields[4])), root=_unescaped(fields[3]), version=2 if kind[0] == "cgroup2" else 1,
            controllers=frozenset(kind[-1].split(",")),
        )  # fmt: skip


def _below(group: str, root: str) -> str:
    """Path of a group under the one that a mount shows; of the latter itself where the group lies outside of it.

    A container without a namespace of its own is told the machine's path and shown its own group alone.
    """
    parts, seen = Path(group.lstrip("/")).parts, Path(root.lstrip("/")).parts
    if ".." in parts or parts[: len(seen)] != seen:
        return ""
    return "/".join(parts[len(seen) :])


def _unescaped(text: str) -> str:
    """The kernel writes a blank in a path as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _statistic(folder: Path, name: str) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
