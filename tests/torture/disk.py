"""Full disks, folders that cannot be written to, files that change: a message, nothing half-written, and on it goes."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.torture.commands import Limits, Outcome, marked, run
from tests.torture.stages import STAGES, Prepared, prepare, run_stage
from tests.torture.trees import OF_DATES, put_back, read_tree

SIZES = 20
_PAGE = 4096
NOT_FOR_DISK = ("cross-validate",)
"""Its jobs are the commands `train` and `predict`."""
WITH_POOL, WORKERS_KILLED = "preprocess-lowres", 4
"""The stage whose processes of a pool are killed, and how often."""
CHANGING = {
    "preprocess": "raw/*/*Tr/*.nii.gz", "preprocess-lowres": "raw/*/*Tr/*.nii.gz",
    "find-best": "raw/*/labelsTr/*.nii.gz", "predict": "scans/*.nii.gz", "report": "masks/*.*",
}  # fmt: skip
"""What a stage reads while others change it. (A shard that shrinks under a memory map ends any program by SIGBUS.)"""
CHANGES = 4
"""How often for each of these stages."""


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


def run_disk(
    root: Path, *, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict[str, Any]:
    """All trials of this kind, as far as the time allows.

    Returns:
        numbers, and the faults of each trial that has some; `no_worker_hit` are trials that disturbed nothing.
    """
    until, rng = time.monotonic() + seconds, random.Random(seed)
    wanted = [stage.name for stage in STAGES if names is None or stage.name in names]
    stages, undisturbed = prepare(root, [name for name in wanted if name not in NOT_FOR_DISK], reuse=reuse)
    shutil.rmtree(root / "work")
    (root / "work").mkdir()
    mountable, missed = can_mount(root), []
    trials = _trials(root, stages, rng, mountable, missed)
    faults, done = [], 0
    for name, trial in trials:
        if time.monotonic() > until:
            break
        done += 1
        if found := trial():
            faults.append({"trial": name, "faults": found})
    return {
        "seed": seed, "undisturbed": undisturbed, "disks": "tmpfs" if mountable else "limit on the size of a file",
        "trials": done, "left_out": len(trials) - done, "no_worker_hit": len(missed), "faults": faults,
    }  # fmt: skip


def _trials(
    root: Path, stages: Sequence[Prepared], rng: random.Random, mountable: bool, missed: list[str]
) -> list[tuple[str, Callable[[], list[str]]]]:
    """Each with a name of its own."""
    trials: list[tuple[str, Callable[[], list[str]]]] = []
    if not stages:
        return trials
    for number in range(SIZES):
        prepared = stages[number % len(stages)]
        share = (number + rng.random()) / SIZES
        name = f"full disk {number + 1}, {prepared.stage.name}, {share:.2f}"
        trials.append((name, _bind(full_disk, root, prepared, share, mountable)))
    for prepared in stages:
        name = prepared.stage.name
        trials += [
            (f"file changes {number + 1}, {name}", _bind(file_changes, root, prepared, rng.random(), rng.random()))
            for number in range(CHANGES if name in CHANGING else 0)
        ]
        if mountable:
            trials.append((f"read-only, {name}", _bind(read_only, root, prepared)))
            trials.append((f"no temporary room, {name}", _bind(no_temporary_room, root, prepared)))
        if name == WITH_POOL:
            trials += [
                (f"worker killed {number + 1}, {name}", _bind(worker_killed, root, prepared, rng.random(), missed))
                for number in range(WORKERS_KILLED)
            ]
    return trials


def _bind(function: Callable[..., list[str]], *values: Any) -> Callable[[], list[str]]:
    return lambda: function(*values)


def _refused(outcome: Outcome, *, may_finish: bool) -> list[str]:
    """What is wrong about how a command ended that could not write."""
    faults = []
    if outcome.timed_out or outcome.orphans:
        faults.append(f"does not end, or leaves {outcome.orphans}")
    if outcome.has_traceback:
        faults.append(f"traceback: {outcome.last_words}")
    allowed = (0, 1, 2) if may_finish else (1, 2)
    if not outcome.timed_out and outcome.status not in allowed:
        faults.append(f"ends with {outcome.status}: {outcome.last_words}")
    if outcome.status in (1, 2) and not outcome.text.strip():
        faults.append("says nothing")
    return faults


def _goes_on(root: Path, prepared: Prepared, but: re.Pattern[str] | None = None) -> list[str]:
    """Whether the command succeeds once nothing is in its way, and leaves what it should."""
    last = run_stage(prepared.stage, root / "work", root)
    faults = [] if last.status == 0 else [f"run again it ends with {last.status}: {last.last_words}"]
    return faults + prepared.expected.faults(read_tree(root / "work"), but=but)[:5]


def _bytes_of(folder: Path) -> int:
    return sum(_PAGE * (1 + path.lstat().st_size // _PAGE) for path in folder.rglob("*"))


def full_disk(root: Path, prepared: Prepared, share: float, mountable: bool) -> list[str]:
    """A disk that takes so much of what the command writes."""
    work, stage = root / "work", prepared.stage
    if not mountable:
        largest = _largest_new(prepared.before, _state_after(root, prepared))
        put_back(prepared.before, work)
        limits = Limits(seconds=stage.limit_s, file_bytes=int(share * largest))
        return _refused(run_stage(stage, work, root, limits), may_finish=True) + _goes_on(root, prepared)
    there, after = _bytes_of(prepared.before), _bytes_of(_state_after(root, prepared))
    with small_disk(work, there + int(share * max(after - there, 0)) + 2 * _PAGE) as remount:
        shutil.copytree(prepared.before, work, symlinks=True, dirs_exist_ok=True)
        faults = _refused(run_stage(stage, work, root), may_finish=True)
        remount("size=1g")
        return faults + _goes_on(root, prepared)


def _state_after(root: Path, prepared: Prepared) -> Path:
    """What the stage leaves: the state before the next one, or after a run of it."""
    number = int(prepared.before.name.rpartition("_")[2])
    following = root / f"before_{number + 1}"
    if not following.exists():
        put_back(prepared.before, root / "work")
        run_stage(prepared.stage, root / "work", root)
        put_back(root / "work", following)
    return following


def _largest_new(before: Path, after: Path) -> int:
    """Bytes of the largest file that was not there before."""
    new = [path for path in after.rglob("*") if not (before / path.relative_to(after)).exists()]
    return max((path.lstat().st_size for path in new if path.is_file()), default=1)


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


def worker_killed(root: Path, prepared: Prepared, moment: float, missed: list[str]) -> list[str]:
    """A process of a pool that the system kills, as it does when memory is short; `missed`: none was there."""
    put_back(prepared.before, root / "work")
    begin, hit = time.monotonic(), []

    def strike(_: int, mark: str) -> None:
        if hit or time.monotonic() - begin < (0.3 + 0.6 * moment) * prepared.seconds:
            return
        for pid in marked(mark):
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    hit.append(pid)
                    return

    stage = prepared.stage
    limits = Limits(seconds=stage.limit_s)
    outcome = run(stage.module, stage.command(root / "work"), folder=root, limits=limits, meanwhile=strike)
    if not hit:
        missed.append(stage.name)
    return _refused(outcome, may_finish=True) + _goes_on(root, prepared)


def file_changes(root: Path, prepared: Prepared, moment: float, which: float) -> list[str]:
    """A file that somebody cuts in half while the command reads, and puts right after it has ended."""
    work, stage = root / "work", prepared.stage
    put_back(prepared.before, work)
    found = sorted(path for path in work.glob(CHANGING[stage.name]) if path.is_file())
    path = found[int(which * len(found))]
    sound, begin, changed = path.read_bytes(), time.monotonic(), []

    def change(_: int, mark: str) -> None:
        if not changed and time.monotonic() - begin > moment * prepared.seconds:
            os.truncate(path, len(sound) // 2)
            changed.append(mark)

    limits = Limits(seconds=stage.limit_s)
    outcome = run(stage.module, stage.command(work), folder=root, limits=limits, meanwhile=change)
    path.write_bytes(sound)
    return _refused(outcome, may_finish=True) + _goes_on(root, prepared, OF_DATES)
