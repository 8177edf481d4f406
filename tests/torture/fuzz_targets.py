"""What is damaged, and the commands that read it."""

from __future__ import annotations

import dataclasses
import importlib.util

from tests.torture import mutators
from tests.torture.stages import NETWORK, PREPROCESS, TASK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Files that are damaged, and the command that reads them.

    Attributes:
        needs: what of the finished way the command needs, files and folders.
        files: patterns below the working folder; one of what they find is damaged.
        same: file that must not change where the command succeeds all the same.
        weight: how many of a hundred trials it gets.
        after: the last stage of the way that it needs; None: the data only.
        writes: what the command may write, below the working folder; nothing else there may change.
        package: that the command needs; without it the target is left out.
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
    writes: tuple[str, ...] = ()
    package: str | None = None


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
        writes=("masks",),
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
        writes=("prepared",),
        module="preprocess",
        words=_words(PREPROCESS, "--n_jobs", "1"),
        weight=14,
        needs=("raw",),
        files=("raw/*/*Tr/*.nii.gz",),
        mutate=mutators.nifti_gz,
    ),
    Target(
        name="mask",
        writes=("labelled",),
        module="evaluate",
        words=_words(_EVALUATE),
        weight=14,
        needs=("labelled", "labels"),
        files=("labelled/*.nii.gz", "labels/*.nii.gz"),
        mutate=mutators.nifti_gz,
    ),
    Target(
        name="dataset.json",
        writes=("prepared",),
        module="preprocess",
        words=_words(PREPROCESS, "--n_jobs", "1"),
        weight=14,
        needs=("raw",),
        files=("raw/*/dataset.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="shards' JSON",
        writes=("new",),
        after="preprocess",
        module="main",
        words=_TRAIN,
        weight=6,
        needs=("prepared",),
        files=("prepared/77_3d/*.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="plan",
        after="preprocess",
        writes=("new",),
        module="main",
        words=_TRAIN,
        weight=6,
        needs=("prepared",),
        files=("prepared/77_3d/plan.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="splits",
        after="preprocess",
        writes=("new",),
        module="main",
        words=_TRAIN,
        weight=4,
        needs=("prepared",),
        files=("prepared/77_3d/splits.json",),
        mutate=mutators.text_json,
    ),
    Target(
        name="options",
        after="preprocess",
        writes=("new",),
        module="main",
        words=(*_TRAIN, "--config", "{work}/options.yaml"),
        weight=3,
        needs=("prepared", "options.yaml"),
        files=("options.yaml",),
        mutate=mutators.text_lines,
    ),
    Target(
        name="shards",
        writes=("new",),
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
        writes=("prepared",),
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
        writes=("masks",),
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
        writes=("masks",),
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
        writes=("results",),
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
        writes=("new.zip",),
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
        writes=("masks",),
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
        writes=("new.html",),
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
        writes=("archives/Task04_Hippocampus",),
        module="tests.torture.unpacking",
        weight=6,
        needs=("archives",),
        files=("archives/a.tar",),
        words=_words("{work}/archives/a.tar {work}/archives/Task04_Hippocampus"),
        mutate=mutators.tar_file,
    ),
    Target(
        name="zip",
        writes=("archives/unpacked",),
        module="tests.torture.unpacking",
        weight=4,
        needs=("archives",),
        files=("archives/a.zip",),
        words=_words("{work}/archives/a.zip {work}/archives/unpacked"),
        mutate=mutators.zip_file,
    ),
    Target(
        name="packed tar",
        module="tests.torture.unpacking",
        weight=3,
        needs=("archives",),
        files=("archives/a.tar.gz",),
        words=_words("{work}/archives/a.tar.gz {work}/archives/Task04_Hippocampus"),
        writes=("archives/Task04_Hippocampus",),
        mutate=mutators.blind,
    ),
    Target(
        name="model of nnU-Net v2",
        module="scripts.import_model",
        weight=4,
        needs=("v2.zip",),
        files=("v2.zip",),
        words=_words("{work}/v2.zip {work}/new.zip"),
        writes=("new.zip",),
        mutate=mutators.zip_file,
    ),
    Target(
        name="folder of nnU-Net v2",
        module="scripts.import_model",
        weight=6,
        needs=("v2",),
        files=("v2/*.json",),
        words=_words("{work}/v2 {work}/new.zip"),
        writes=("new.zip",),
        mutate=mutators.text_json,
    ),
    Target(
        name="checkpoint of nnU-Net v2",
        module="scripts.import_model",
        weight=3,
        needs=("v2",),
        files=("v2/fold_0/checkpoint_final.pth",),
        words=_words("{work}/v2 {work}/new.zip"),
        writes=("new.zip",),
        mutate=mutators.zip_file,
    ),
    *(
        Target(
            name=kind,
            after="export-model",
            module="scripts.inference",
            words=_words(f"--input {{work}}/{kind} {_PREDICT.partition('scans ')[2]} --model {{work}}/model.zip"),
            weight=5,
            needs=("model.zip", kind),
            files=(f"{kind}/*",),
            writes=("masks",),
            mutate=mutators.blind if kind == "dicom" else mutators.headed,
            package="pydicom" if kind == "dicom" else "SimpleITK",
        )
        for kind in ("nrrd", "mha", "dicom")
    ),
)


def installed_targets() -> list[Target]:
    """Those whose packages are there."""
    return [each for each in TARGETS if each.package is None or importlib.util.find_spec(each.package) is not None]
