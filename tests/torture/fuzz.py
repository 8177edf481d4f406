"""Damaged inputs of every kind: the right result, or one message and exit status 2; never a traceback or a hang.

A case that fails while others go on is exit status 1. What was damaged and passes must not change masks where a check
exists: weights in a zip or a checkpoint. Nothing but the output changes, no memory is asked for that a header promises
only, and nothing from within a file runs.
"""

from __future__ import annotations

import dataclasses
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.torture.bombs import EXECUTED, bombs_of
from tests.torture.commands import Limits, Outcome, run
from tests.torture.fuzz_inputs import write_further
from tests.torture.fuzz_targets import TARGETS, Target, installed_targets
from tests.torture.stages import STAGES, prepare
from tests.torture.trees import put_back

LIMIT_S = 90.0
ADDRESSES_ABOVE = 3 << 30
"""Address space that a command may take beyond what it begins with."""
MEMORY_ABOVE = 1 << 30
"""Memory that it may take beyond what it takes for sound files."""


def run_fuzz(
    root: Path, *, number: int, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict[str, Any]:
    """Give each command the files made to do harm, then damaged ones until there were `number`, or the time is over."""
    until = time.monotonic() + seconds
    targets = [target for target in installed_targets() if names is None or target.name in names]
    absent = sorted({target.name for target in TARGETS} - {target.name for target in installed_targets()})
    needed = [stage.name for stage in STAGES if stage.name in {target.after for target in targets}]
    undisturbed = prepare(root, needed[-1:], once=True, reuse=reuse)[1]
    if undisturbed:
        return {"seed": seed, "undisturbed": undisturbed, "trials": 0, "left_out": number, "targets": {}, "faults": []}
    whole = root / "whole"
    put_back(root / "work", whole)
    write_further(whole, {target.package for target in targets if target.package})
    boxes = [_box(root, whole, target, index) for index, target in enumerate(targets)]
    benches = {box.target.name: box for box in boxes}
    undisturbed += [wrong for box in boxes if (wrong := box.undamaged())]
    counts: dict[str, dict[str, int]] = {
        target.name: {"trials": 0, "passed": 0, "refused": 0, "made_to_harm": 0} for target in targets
    }
    faults, done = [], 0
    total = sum(target.weight for target in targets)
    drawn = [target for target in targets for _ in range(max(1, number * target.weight // total))]
    random.Random(seed).shuffle(drawn)
    made = [(target, words) for target in targets for words in bombs_of(target.name)]
    for trial, (target, words) in enumerate([*made, *((target, "") for target in drawn)]):
        if time.monotonic() > until:
            break
        rng = random.Random(f"{seed} {trial - len(made)} {target.name}")
        outcome, wrong, what = benches[target.name].trial(rng, words)
        count = counts[target.name]
        count["trials"] += 1
        count["passed" if outcome.status == 0 else "refused"] += 1
        count["made_to_harm"] += bool(words)
        done += 1
        if wrong:
            faults.append({"target": target.name, "trial": trial - len(made), "damaged": what, "faults": wrong})
            print(f"fuzz: {faults[-1]}"[:3000], flush=True)
    return {"seed": seed, "undisturbed": undisturbed, "trials": done, "left_out": len(made) + len(drawn) - done,
            "without_package": absent, "targets": counts, "faults": faults}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Box:
    """A target with the state that its trials start from.

    Attributes:
        root: folder of everything.
        state: what the folder of the command holds at first.
        peak_bytes: memory that the command takes for sound files; known once it ran.
    """

    root: Path
    state: Path
    target: Target
    peak_bytes: int = 0

    def undamaged(self) -> str | None:
        """Run the command on sound files, and keep what must stay the same; returns what is wrong."""
        work, target = self.root / "work", self.target
        put_back(self.state, work)
        before = self._not_to_be_changed()
        outcome = self._run()
        self.peak_bytes = outcome.peak_bytes
        if target.same and (work / target.same).exists():
            shutil.copy2(work / target.same, self._reference())
        if outcome.status != 0:
            return f"{target.name}, sound: {outcome.last_words}"
        changed = _differences(before, self._not_to_be_changed())
        return f"{target.name}, sound: changed {changed}" if changed else None

    def trial(self, rng: random.Random, bomb: str = "") -> tuple[Outcome, list[str], str]:
        """Damage a file as `rng` wants it, or put a bomb in its place; the outcome, what is wrong, what was damaged."""
        work, target = self.root / "work", self.target
        put_back(self.state, work)
        path = rng.choice(sorted(found for pattern in target.files for found in work.glob(pattern)))
        sound = path.read_bytes()
        damaged = bombs_of(target.name)[bomb](sound) if bomb else target.mutate(sound, rng)
        path.write_bytes(damaged)
        what = f"{path.relative_to(work)}{': ' * bool(bomb)}{bomb}"
        before = self._not_to_be_changed()
        outcome = self._run()
        faults = judge(outcome)
        if changed := _differences(before, self._not_to_be_changed()):
            faults.append(f"wrote outside of its output: {changed}")
        for outside in (EXECUTED, Path("/tmp/escaped")):
            if outside.exists():
                faults.append(f"wrote {outside}")
                outside.unlink()
        if outcome.peak_bytes > self.peak_bytes + MEMORY_ABOVE:
            faults.append(f"took {outcome.peak_bytes / 2**30:.1f} GB, for sound files {self.peak_bytes / 2**30:.1f} GB")
        # Weights that were written anew with their checksums are another network.
        compared = outcome.status == 0 and target.same is not None and _is_broken(path)
        if compared and _voxels(self._reference()) != _voxels(work / str(target.same)):
            faults.append("passed, and the masks are others")
        if faults:
            keep = self.root / "found" / f"{target.name.replace(' ', '_')}_{rng.randrange(10**6)}_{path.name}"
            keep.parent.mkdir(exist_ok=True)
            keep.write_bytes(damaged)
            what += f" (kept as {keep.name})"
        return outcome, faults, what

    def _run(self) -> Outcome:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limits = Limits(seconds=LIMIT_S, memory_bytes=pages * resource.getpagesize() + ADDRESSES_ABOVE)
        words = [word.format(work=self.root / "work") for word in self.target.words]
        return run(self.target.module, words, folder=self.root, limits=limits)

    def _reference(self) -> Path:
        assert self.target.same is not None
        return self.state.with_name(f"{self.state.name}_{Path(self.target.same).name}")

    def _not_to_be_changed(self) -> dict[str, tuple[int, int, int]]:
        """Files and folders that are none of the output's: size, time and mode of each."""
        work, found = self.root / "work", {}
        for path in (each for top in self.root.iterdir() if top.name in ("work", "whole") for each in top.rglob("*")):
            name = path.relative_to(work).as_posix() if path.is_relative_to(work) else ""
            if not any(f"{name}/".startswith(f"{each}/") for each in self.target.writes):
                facts = path.lstat()
                # What lies in a folder is seen by itself; its time changes where an output is made in it.
                found[str(path.relative_to(self.root))] = (
                    (0, 0, facts.st_mode) if path.is_dir() else (facts.st_size, facts.st_mtime_ns, facts.st_mode)
                )
        return found | {top.name: (0, 0, 0) for top in self.root.iterdir() if top.name != "output.txt"}


def _differences(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))[:5]


def _box(root: Path, whole: Path, target: Target, index: int) -> Box:
    """The state that a target's trials start from."""
    box = root / f"box_{index}"
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    for need in target.needs:
        if (whole / need).is_dir():
            shutil.copytree(whole / need, box / need)
        else:
            shutil.copy2(whole / need, box / need)
    return Box(root=root, state=box, target=target)


def _is_broken(path: Path) -> bool:
    """Whether a zip is no zip any more, or a member is not what its checksum says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except Exception:
        return True


def _voxels(path: Path) -> bytes | None:
    return np.asarray(nib.load(path).dataobj).tobytes() if path.exists() else None


def judge(outcome: Outcome) -> list[str]:
    """What is wrong about how a command ended that was given a damaged file."""
    faults = []
    if outcome.timed_out:
        return [f"did not end within {LIMIT_S:g} s: {outcome.last_words}"]
    if outcome.status not in (0, 1, 2):
        faults.append(f"ended with {outcome.status}: {outcome.last_words}")
    if outcome.has_traceback:
        faults.append(f"traceback: {outcome.last_words}")
    if outcome.status == 2 and sum(line.startswith("error: ") for line in outcome.text.splitlines()) != 1:
        faults.append(f"not one message: {outcome.last_words}")
    if outcome.status == 1 and not outcome.text.strip():
        faults.append("says nothing")
    if outcome.orphans:
        faults.append(f"there still runs {outcome.orphans}")
    return faults
