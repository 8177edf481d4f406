"""Full disks, folders that cannot be written to, files that change: a message, nothing half-written, and on it goes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.torture.commands import MARK, Limits, Outcome, run
from tests.torture.stages import Prepared, prepare, run_stage
from tests.torture.trees import put_back, read_tree

SIZES = 20
_PAGE = 4096
NOT_FOR_DISK = ("cross-validate",)
"""Its jobs are the commands `train` and `predict`."""


def can_mount(root: Path) -> bool:
    """Whether a small file system can be made here (in a container, mostly not)."""
    point = root / "probe"
    point.mkdir(parents=True, exist_ok=True)
    try:
        with small_disk(point, 1 << 20):
            return True
    except subprocess.CalledProcessError:
        return False
    finally:
        point.rmdir()


@contextlib.contextmanager
def small_disk(point: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A file system in memory of so many bytes; what is yielded mounts it anew with other options."""

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(point)], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", f"size={size}", "none")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True, capture_output=True)


def run_disk(root: Path, *, seed: int, seconds: float, names: Sequence[str] | None = None) -> dict[str, Any]:
    """All trials of this kind, as far as the time allows."""
    until, rng = time.monotonic() + seconds, random.Random(seed)
    stages, undisturbed = prepare(root, names)
    stages = [each for each in stages if each.stage.name not in NOT_FOR_DISK]
    shutil.rmtree(root / "work")
    (root / "work").mkdir()
    mountable = can_mount(root)
    trials: list[tuple[str, Callable[[], list[str]]]] = []
    for number in range(SIZES):
        prepared = stages[number % len(stages)]
        share = (number + rng.random()) / SIZES
        trials.append(
            (f"full disk, {prepared.stage.name}, {share:.2f}", _bind(full_disk, root, prepared, share, mountable))
        )
    for prepared in stages:
        name = prepared.stage.name
        if mountable:
            trials.append((f"read-only, {name}", _bind(read_only, root, prepared)))
            trials.append((f"no temporary room, {name}", _bind(no_temporary_room, root, prepared)))
    pools = [each for each in stages if each.stage.name == "preprocess-lowres"]
    trials += [("worker killed", _bind(worker_killed, root, each, rng.random())) for each in pools for _ in range(4)]
    done = {name: trial() for name, trial in trials if time.monotonic() < until}
    return {
        "seed": seed, "undisturbed": undisturbed, "disks": "tmpfs" if mountable else "limit on the size of a file",
        "trials": len(done), "left_out": len(trials) - len(done),
        "faults": {name: faults for name, faults in done.items() if faults},
    }  # fmt: skip


def _bind(function: Callable[..., list[str]], *values: Any) -> Callable[[], list[str]]:
    return lambda: function(*values)


def _refused(outcome: Outcome, *, may_finish: bool) -> list[str]:
    """What is wrong about how a command ended that could not write."""
    faults = []
    if outcome.timed_out or outcome.orphans:
        faults.append(f"does not end, or leaves {outcome.orphans}")
    if outcome.has_traceback:
        faults.append(f"traceback: {outcome.text[-1500:]}")
    allowed = (0, 1, 2) if may_finish else (1, 2)
    if not outcome.timed_out and outcome.status not in allowed:
        faults.append(f"ends with {outcome.status}: {outcome.text[-1500:]}")
    if outcome.status in (1, 2) and not outcome.text.strip():
        faults.append("says nothing")
    return faults


def _goes_on(root: Path, prepared: Prepared) -> list[str]:
    """Whether the command succeeds once nothing is in its way, and leaves what it should."""
    last = run_stage(prepared.stage, root / "work", root)
    faults = [] if last.status == 0 else [f"run again it ends with {last.status}: {last.text[-1500:]}"]
    return faults + prepared.expected.faults(read_tree(root / "work"))[:5]


def _bytes_of(folder: Path) -> int:
    return sum(_PAGE * (1 + path.lstat().st_size // _PAGE) for path in folder.rglob("*"))


def full_disk(root: Path, prepared: Prepared, share: float, mountable: bool) -> list[str]:
    """A disk that takes so much of what the command writes."""
    work, stage = root / "work", prepared.stage
    if not mountable:
        put_back(prepared.before, work)
        limits = Limits(seconds=stage.limit_s, file_bytes=int(share * _largest(root, prepared)))
        return _refused(run_stage(stage, work, root, limits), may_finish=True) + _goes_on(root, prepared)
    there, after = _bytes_of(prepared.before), _bytes_of_expected(root, prepared)
    with small_disk(work, there + int(share * max(after - there, 0)) + 2 * _PAGE) as remount:
        shutil.copytree(prepared.before, work, symlinks=True, dirs_exist_ok=True)
        faults = _refused(run_stage(stage, work, root), may_finish=True)
        remount("size=1g")
        return faults + _goes_on(root, prepared)


def _bytes_of_expected(root: Path, prepared: Prepared) -> int:
    """Of what the stage leaves: the state before the next one, or a run of it."""
    number = int(prepared.before.name.rpartition("_")[2])
    following = root / f"before_{number + 1}"
    if not following.exists():
        with small_disk(root / "work", 1 << 30):
            shutil.copytree(prepared.before, root / "work", symlinks=True, dirs_exist_ok=True)
            run_stage(prepared.stage, root / "work", root)
            shutil.copytree(root / "work", following, symlinks=True)
    return _bytes_of(following)


def _largest(root: Path, prepared: Prepared) -> int:
    put_back(prepared.before, root / "work")
    old = {path for path in (root / "work").rglob("*")}
    run_stage(prepared.stage, root / "work", root)
    return max((path.lstat().st_size for path in (root / "work").rglob("*") if path not in old), default=1)


def read_only(root: Path, prepared: Prepared) -> list[str]:
    """A file system that nobody can write to."""
    with small_disk(root / "work", 1 << 30) as remount:
        shutil.copytree(prepared.before, root / "work", symlinks=True, dirs_exist_ok=True)
        remount("ro")
        faults = _refused(run_stage(prepared.stage, root / "work", root), may_finish=False)
        remount("rw")
        return faults + _goes_on(root, prepared)


def no_temporary_room(root: Path, prepared: Prepared) -> list[str]:
    """A folder for temporary files that is full: it matters only to commands that need it."""
    point, stage = root / "tmp", prepared.stage
    point.mkdir(exist_ok=True)
    with small_disk(point, _PAGE), small_disk(root / "work", 1 << 30):
        (point / "full").write_bytes(bytes(_PAGE // 2))
        shutil.copytree(prepared.before, root / "work", symlinks=True, dirs_exist_ok=True)
        limits = Limits(seconds=stage.limit_s, temporary=point)
        faults = _refused(run_stage(stage, root / "work", root, limits), may_finish=True)
        return faults + _goes_on(root, prepared)


def worker_killed(root: Path, prepared: Prepared, moment: float) -> list[str]:
    """A process of a pool that the system kills, as it does when memory is short."""
    begin, hit = time.monotonic(), []
    put_back(prepared.before, root / "work")

    def strike() -> None:
        if hit or time.monotonic() - begin < 0.3 * prepared.seconds + 0.6 * moment * prepared.seconds:
            return
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes()
                if b"spawn_main" in words and MARK.encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
                    hit.append(entry.name)
                    return

    stage = prepared.stage
    outcome = run(stage.module, stage.command(root / "work"), folder=root, meanwhile=strike)
    return _refused(outcome, may_finish=True) + _goes_on(root, prepared)
