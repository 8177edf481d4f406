"""Damaged inputs of every kind: the right result, or one message and exit status 2; never a traceback or a hang.

A case that fails while others go on is exit status 1. What was damaged and passes must not change masks where a check
exists: weights in a zip or a checkpoint.
"""

from __future__ import annotations

import dataclasses
import random
import resource
import shutil
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.torture import mutators
from tests.torture.commands import Limits, Outcome, run
from tests.torture.stages import NETWORK, PREPROCESS, STAGES, TASK, prepare
from tests.torture.trees import put_back

LIMIT_S = 90.0
MEMORY_ABOVE = 3 << 30
"""Address space that a command may take beyond what it begins with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Files that are damaged, and the command that reads them.

    Attributes:
        needs: what of the finished way the command needs, files and folders.
        files: patterns below the working folder; one of what they find is damaged.
        same: file that must not change where the command succeeds all the same.
        weight: how many of a hundred trials it gets.
        after: the last stage of the way that it needs; None: the data only.
    """

    name: str
    module: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    files: tuple[str, ...]
    mutate: mutators.Mutator
    weight: int
    same: str | None = None
    after: str | None = None


def _words(text: str, *more: str) -> tuple[str, ...]:
    return (*text.split(), *more)


_PREDICT = "--input {work}/scans --output {work}/masks --gpus 0 --no_report"
_TRAIN = _words(
    f"--exec_mode train --task {TASK} --dim 3 --fold 0 --prepared {{work}}/prepared --results {{work}}/new "
    "--accelerator cpu --max_epochs 1 --no_save_ckpt", *NETWORK,
)  # fmt: skip
_EVALUATE = "--preds {work}/labelled --lbls {work}/labels --no_report"
TARGETS = (
    Target(
        name="scan",
        after="export-model",
        module="scripts.inference",
        words=_words(f"{_PREDICT} --model {{work}}/model.zip"),
        weight=12,
        needs=("model.zip", "scans"),
        files=("scans/*.nii.gz",),
        mutate=mutators.nifti_gz,
    ),
    Target(
        name="training scan",
        module="preprocess",
        words=_words(PREPROCESS, "--n_jobs", "1"),
        weight=14,
        needs=("raw",),
        files=("raw/*/*Tr/*.nii.gz",),
        mutate=mutators.nifti_gz,
    ),
    Target(
        name="mask",
        module="evaluate",
        words=_words(_EVALUATE),
        weight=14,
        needs=("labelled", "labels"),
        files=("labelled/*.nii.gz", "labels/*.nii.gz"),
        mutate=mutators.nifti_gz,
    ),
    Target(
        name="dataset.json",
        module="preprocess",
        words=_words(PREPROCESS, "--n_jobs", "1"),
        weight=14,
        needs=("raw",),
        files=("raw/*/dataset.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="shards' JSON",
        after="preprocess",
        module="main",
        words=_TRAIN,
        weight=6,
        needs=("prepared",),
        files=("prepared/77_3d/*.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="shards",
        after="preprocess",
        module="main",
        words=_TRAIN,
        weight=3,
        needs=("prepared",),
        files=("prepared/77_3d/*.npy",),
        mutate=mutators.blind,
    ),
    Target(
        name="shards' JSON, again",
        after="preprocess",
        module="preprocess",
        words=_words(PREPROCESS, "--n_jobs", "1"),
        weight=8,
        needs=("raw", "prepared"),
        files=("prepared/77_3d/*.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="checkpoint",
        after="train",
        module="scripts.inference",
        weight=6,
        needs=("single", "scans"),
        same="masks/new4.nii.gz",
        words=_words(f"{_PREDICT} --model {{work}}/single/checkpoints/last.ckpt"),
        files=("single/checkpoints/last.ckpt",),
        mutate=mutators.zip_file,
    ),
    Target(
        name="model.zip",
        after="export-model",
        module="scripts.inference",
        words=_words(f"{_PREDICT} --model {{work}}/model.zip"),
        weight=9,
        needs=("model.zip", "scans"),
        files=("model.zip",),
        mutate=mutators.zip_file,
    ),
    Target(
        name="records",
        after="find-best",
        module="scripts.find_best_configuration",
        weight=4,
        needs=("prepared", "results", "raw"),
        words=_words(f"--task {TASK} --prepared {{work}}/prepared --results {{work}}/results --no_report"),
        files=("results/*.json", "results/77_3d_lowres/*.json", "results/77_3d_lowres/*/*.json"),
        mutate=mutators.text_json,
    ),
    Target(
        name="decision",
        after="find-best",
        module="scripts.export_model",
        weight=5,
        needs=("results",),
        mutate=mutators.text_json,
        words=_words(f"--model {{work}}/results/{TASK}_best --output {{work}}/new.zip"),
        files=("results/77_best/*.json", "results/77_3d_lowres/doubt.json"),
    ),
    Target(
        name="masks' records",
        after="predict",
        module="scripts.inference",
        weight=5,
        needs=("model.zip", "scans", "masks"),
        words=_words(f"{_PREDICT} --model {{work}}/model.zip"),
        files=("masks/*.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="page",
        after="predict",
        module="scripts.report",
        words=_words("{work}/masks --output {work}/new.html"),
        weight=5,
        needs=("masks",),
        files=("masks/*.json", "masks/*.csv"),
        mutate=mutators.blind,
    ),
    Target(
        name="tar",
        module="tests.torture.unpacking",
        weight=6,
        needs=("archives",),
        files=("archives/a.tar",),
        words=_words("{work}/archives/a.tar {work}/archives/Task04_Hippocampus"),
        mutate=mutators.tar_file,
    ),
    Target(
        name="zip",
        module="tests.torture.unpacking",
        weight=4,
        needs=("archives",),
        files=("archives/a.zip",),
        words=_words("{work}/archives/a.zip {work}/archives/unpacked"),
        mutate=mutators.zip_file,
    ),
)


def run_fuzz(
    root: Path, *, number: int, seed: int, seconds: float, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Damage inputs until there were `number` trials, or the time is over."""
    until = time.monotonic() + seconds
    targets = [target for target in TARGETS if names is None or target.name in names]
    needed = [stage.name for stage in STAGES if stage.name in {target.after for target in targets}]
    undisturbed = prepare(root, needed[-1:], once=True)[1]
    if undisturbed:
        return {"seed": seed, "undisturbed": undisturbed, "trials": 0, "left_out": number, "targets": {}, "faults": []}
    whole = root / "whole"
    put_back(root / "work", whole)
    _further(whole)
    boxes = {target.name: _box(root, whole, target, index) for index, target in enumerate(targets)}
    undisturbed += [wrong for target in targets for wrong in _undamaged(root, boxes[target.name], target)]
    counts: dict[str, dict[str, int]] = {target.name: {"trials": 0, "passed": 0, "refused": 0} for target in targets}
    faults, done = [], 0
    plan = [
        target for target in targets for _ in range(max(1, number * target.weight // sum(t.weight for t in targets)))
    ]
    random.Random(seed).shuffle(plan)
    for trial, target in enumerate(plan):
        if time.monotonic() > until:
            break
        outcome, wrong, what = _trial(root, boxes[target.name], target, random.Random(f"{seed} {trial} {target.name}"))
        counts[target.name]["trials"] += 1
        counts[target.name]["passed" if outcome.status == 0 else "refused"] += 1
        done += 1
        if wrong:
            faults.append({"target": target.name, "trial": trial, "damaged": what, "faults": wrong})
    return {"seed": seed, "undisturbed": undisturbed, "trials": done, "left_out": len(plan) - done, "targets": counts,
            "faults": faults}  # fmt: skip


def _further(whole: Path) -> None:
    """What the way does not leave by itself: labels of the masks, and an archive."""
    folder = next((whole / "raw").iterdir())
    for name in ("labels", "labelled"):
        shutil.copytree(folder / "labelsTr", whole / name)
    (whole / "archives").mkdir()
    with tarfile.open(whole / "archives/a.tar", "w") as archive:
        archive.add(folder, "Task04_Hippocampus")
    shutil.make_archive(str(whole / "archives/a"), "zip", folder)


def _box(root: Path, whole: Path, target: Target, index: int) -> Path:
    """The state that a target's trials start from."""
    box = root / f"box_{index}"
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    for need in target.needs:
        if (whole / need).is_dir():
            shutil.copytree(whole / need, box / need)
        else:
            shutil.copy2(whole / need, box / need)
    return box


def _undamaged(root: Path, box: Path, target: Target) -> list[str]:
    """Run the command on sound files, and keep what must stay the same."""
    work = root / "work"
    put_back(box, work)
    outcome = run(target.module, [word.format(work=work) for word in target.words], folder=root)
    if target.same and (work / target.same).exists():
        shutil.copy2(work / target.same, _reference(box, target))
    # An archive whose checksum is known is refused if it is another one.
    return (
        [] if outcome.status == 0 or target.module == "download" else [f"{target.name}, sound: {outcome.text[-1500:]}"]
    )


def _reference(box: Path, target: Target) -> Path:
    assert target.same is not None
    return box.with_name(f"{box.name}_{Path(target.same).name}")


def _trial(root: Path, box: Path, target: Target, rng: random.Random) -> tuple[Outcome, list[str], str]:
    work = root / "work"
    put_back(box, work)
    path = rng.choice(sorted(found for pattern in target.files for found in work.glob(pattern)))
    sound = path.read_bytes()
    damaged = target.mutate(sound, rng)
    path.write_bytes(damaged)
    what = f"{path.relative_to(work)}"
    before = {entry.name for entry in root.iterdir()}
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limits = Limits(seconds=LIMIT_S, memory_bytes=pages * resource.getpagesize() + MEMORY_ABOVE)
    words = [word.format(work=work) for word in target.words]
    outcome = run(target.module, words, folder=root, limits=limits)
    faults = judge(outcome)
    if escaped := {entry.name for entry in root.iterdir()} - before - {"output.txt"}:
        faults.append(f"wrote outside of its folders: {escaped}")
    if (Path("/tmp/escaped")).exists():
        faults.append("wrote to /tmp/escaped")
        Path("/tmp/escaped").unlink()
    # Weights that were written anew with their checksums are another network.
    compared = outcome.status == 0 and target.same is not None and _is_broken(path)
    if compared and _voxels(_reference(box, target)) != _voxels(work / str(target.same)):
        faults.append("passed, and the masks are others")
    if faults:
        keep = root / "found" / f"{target.name.replace(' ', '_')}_{rng.randrange(10**6)}_{path.name}"
        keep.parent.mkdir(exist_ok=True)
        keep.write_bytes(damaged)
        what += f" (kept as {keep.name})"
    return outcome, faults, what


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
        return [f"did not end within {LIMIT_S:g} s: {outcome.text[-500:]}"]
    if outcome.status not in (0, 1, 2):
        faults.append(f"ended with {outcome.status}: {outcome.text[-1500:]}")
    if outcome.has_traceback:
        faults.append(f"traceback: {outcome.text[-1500:]}")
    if outcome.status == 2 and sum(line.startswith("error: ") for line in outcome.text.splitlines()) != 1:
        faults.append(f"not one message: {outcome.text[-1500:]}")
    if outcome.status == 1 and not outcome.text.strip():
        faults.append("says nothing")
    if outcome.orphans:
        faults.append(f"there still runs {outcome.orphans}")
    return faults
