"""Limits of control groups, nested and of both versions, in a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils import limits, throughput
from utils.limits import cpu_quota, free_memory_bytes

GB = 10**9
V2_MOUNT = "30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"


def make_proc(folder: Path, groups: str, mounts: list[str], available_gb: int = 100) -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:   {available_gb * GB // 1024} kB\n")
    (folder / "self" / "cgroup").write_text(groups)
    (folder / "self" / "mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]) + "\n")
    return folder


def make_group(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")
    return folder


def v2(tmp_path: Path, group: str = "/slice/job/step", root: str = "/") -> tuple[Path, Path]:
    point = tmp_path / "sys"
    proc = make_proc(tmp_path / "proc", f"0::{group}\n", [V2_MOUNT.format(root=root, point=point)])
    return proc, point


@pytest.mark.parametrize("limited", ["", "slice", "slice/job", "slice/job/step"])
def test_each_level_of_version_2_counts(tmp_path, limited):
    proc, point = v2(tmp_path)
    for group in ("", "slice", "slice/job", "slice/job/step"):
        make_group(point / group, memory__max="max", memory__current=GB)
    make_group(point / limited, memory__max=6 * GB, memory__current=2 * GB)
    assert free_memory_bytes(proc) == 4 * GB


def test_the_tightest_level_decides(tmp_path):
    proc, point = v2(tmp_path)
    make_group(point / "slice", memory__max=9 * GB, memory__current=8 * GB)
    make_group(point / "slice/job/step", memory__max=5 * GB, memory__current=GB)
    # A limit of nine of which eight are taken leaves less than one of five.
    assert free_memory_bytes(proc) == GB


def test_levels_of_version_1_count_and_no_limit_is_none(tmp_path):
    point = tmp_path / "sys" / "memory"
    mount = V1_MOUNT.format(root="/", point=point, controllers="memory")
    proc = make_proc(tmp_path / "proc", "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n", [mount])
    make_group(point / "a/b", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GB)
    assert free_memory_bytes(proc) == 100 * GB // 1024 * 1024
    make_group(point / "a", memory__limit_in_bytes=3 * GB, memory__usage_in_bytes=GB)
    assert free_memory_bytes(proc) == 2 * GB


def test_both_versions_at_once(tmp_path):
    old, new = tmp_path / "sys/memory", tmp_path / "sys/unified"
    mounts = [V1_MOUNT.format(root="/", point=old, controllers="memory"), V2_MOUNT.format(root="/", point=new)]
    proc = make_proc(tmp_path / "proc", "4:memory:/a\n0::/b\n", mounts)
    make_group(old / "a", memory__limit_in_bytes=5 * GB, memory__usage_in_bytes=GB)
    make_group(new / "b", memory__max=4 * GB, memory__current=2 * GB)
    assert free_memory_bytes(proc) == 2 * GB


def test_a_container_that_sees_its_own_group_only(tmp_path):
    proc, point = v2(tmp_path, group="/docker/abc", root="/docker/abc")
    make_group(point, memory__max=3 * GB, memory__current=GB, cpu__max="150000 100000")
    assert free_memory_bytes(proc) == 2 * GB and cpu_quota(proc) == 2


def test_a_group_outside_of_what_is_shown_takes_the_top(tmp_path):
    proc, point = v2(tmp_path, group="/../other", root="/docker/abc")
    make_group(point, memory__max=3 * GB, memory__current=GB)
    assert free_memory_bytes(proc) == 2 * GB


def test_cached_files_are_free_and_more_than_the_limit_is_not_negative(tmp_path):
    proc, point = v2(tmp_path, group="/")
    make_group(point, memory__max=5 * GB, memory__current=4 * GB, memory__stat=f"anon 5\ninactive_file {3 * GB}")
    assert free_memory_bytes(proc) == 4 * GB
    make_group(point, memory__max=5 * GB, memory__current=6 * GB, memory__stat="anon 5")
    assert free_memory_bytes(proc) == 0


def test_blanks_in_paths(tmp_path):
    point = make_group(tmp_path / "a b", memory__max=3 * GB, memory__current=GB)
    mount = V2_MOUNT.format(root="/", point=str(point).replace(" ", r"\040"))
    assert free_memory_bytes(make_proc(tmp_path / "proc", "0::/\n", [mount])) == 2 * GB


def test_cpu_quota_of_both_versions(tmp_path):
    proc, point = v2(tmp_path / "new")
    assert cpu_quota(proc) is None
    make_group(point / "slice/job/step", cpu__max="max 100000")
    make_group(point / "slice", cpu__max="250000 100000")
    assert cpu_quota(proc) == 3
    old = tmp_path / "old"
    mount = V1_MOUNT.format(root="/", point=old / "sys", controllers="cpu,cpuacct")
    proc = make_proc(old / "proc", "1:cpu,cpuacct:/a/b\n", [mount])
    make_group(old / "sys/a/b", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert cpu_quota(proc) is None
    make_group(old / "sys/a", cpu__cfs_quota_us=20000, cpu__cfs_period_us=100000)
    assert cpu_quota(proc) == 1


def test_nothing_to_read_leaves_the_machine(tmp_path):
    assert free_memory_bytes(tmp_path) > 1e6 and cpu_quota(tmp_path) is None


def test_cores_are_no_more_than_the_quota(monkeypatch):
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(throughput, "cpu_quota", lambda: 3)
    assert throughput.num_cores() == 3
    monkeypatch.setattr(throughput, "cpu_quota", lambda: None)
    assert throughput.num_cores() == 64
