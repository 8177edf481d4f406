"""Classes, overlapping regions and ignored voxels, each from the scans to the scores: train, predict, evaluate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import evaluate
import main
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import run_cli

SHAPE = (16, 16, 16)
IGNORED = np.s_[4:12, 4:12, 9:11]
TRAINING = (
    "--depth", "2", "--filters", "4", "8", "8", "--nfolds", "3", "--learning_rate", "0.03", "--max_epochs", "3",
    "--batches_per_epoch", "30", "--skip_first_n_eval", "2", "--scheduler", "poly",
)  # fmt: skip
DECATHLON = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
BRATS21 = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
BRATS_TARGETS = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """A dataset.json, which tissue has which value in its labels, and which tissues make up each target.

    Tissues: 0 healthy, 1 oedema, 2 necrosis, 3 enhancing, one inside the other.
    """

    description: dict
    values: tuple[int, int, int, int]
    targets: dict[str, tuple[int, ...]]
    ignore: int | None = None
    preprocess_flags: tuple[str, ...] = ()
    train_flags: tuple[str, ...] = ()
    evaluate_flags: tuple[str, ...] = ()


SCHEMES = {
    "decathlon_brats_by_main": Scheme(
        description={"labels": DECATHLON}, values=(0, 1, 2, 3), targets=BRATS_TARGETS,
        train_flags=("--brats",), evaluate_flags=("--brats",),
    ),
    "brats21_with_ignore_by_preprocess": Scheme(
        description={"labels": BRATS21 | {"ignore": 3}}, values=(0, 2, 1, 4), targets=BRATS_TARGETS, ignore=3,
        preprocess_flags=("--brats",), evaluate_flags=("--brats",),
        train_flags=("--deep_supervision", "--deep_supr_num", "1", "--batch_dice", "never"),
    ),
    "regions_with_ignore": Scheme(
        description={
            "labels": {"background": 0, "all": [1, 2, 5], "inner": [2, 5], "innermost": [5], "ignore": 7},
            "regions_class_order": [1, 2, 5],
        },
        values=(0, 1, 2, 5), targets={"all": (1, 2, 3), "inner": (2, 3), "innermost": (3,)}, ignore=7,
    ),
    "classes_with_ignore": Scheme(
        description={"labels": {"background": 0, "rim": 1, "middle": 2, "heart": 3, "ignore": 255}},
        values=(0, 1, 2, 3), targets={"rim": (1,), "middle": (2,), "heart": (3,)}, ignore=255,
    ),
}  # fmt: skip

SLOW = ("decathlon_brats_by_main", "classes_with_ignore")


def make_tissues(index: int) -> np.ndarray:
    """Boxes inside each other, a little elsewhere in each scan."""
    tissues = np.zeros(SHAPE, np.uint8)
    start = 2 + index % 3
    for depth in range(3):
        tissues[tuple(slice(start + depth, start + 10 - depth) for _ in range(3))] = depth + 1
    return tissues


def make_scans(folder: Path, scheme: Scheme) -> Task:
    task = make_task(folder, num_cases=6, shape=SHAPE)
    rng = np.random.default_rng(0)
    for index in range(6):
        tissues = make_tissues(index)
        label = np.array(scheme.values, np.uint8)[tissues]
        if scheme.ignore is not None:
            label[IGNORED] = scheme.ignore
        image = 10 + 10 * tissues + rng.normal(0, 1, SHAPE)
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", image.astype(np.float32))
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", label)
    task.describe(**scheme.description)
    assert task.run("--nfolds", "3", *scheme.preprocess_flags) == 0
    return task


@dataclasses.dataclass(frozen=True)
class Run:
    """One scheme, trained and used for prediction."""

    scheme: Scheme
    task: Task
    trained: Path
    predicted: Path

    @property
    def masks(self) -> dict[str, np.ndarray]:
        return {path.name: load(path) for path in self.folder.glob("*.nii.gz")}

    @property
    def folder(self) -> Path:
        return self.predicted / "preds_task_77_dim_3_fold_0"


def load(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def outcome(results: Path) -> dict:
    return json.loads((results / "run.json").read_text())["outcome"]


def call(task: Task, results: Path, mode: str, *flags: str) -> int:
    words = ["--exec_mode", mode, "--task", "77", "--data", str(task.results), "--results", str(results)]
    return run_cli(lambda: main.main([*words, "--accelerator", "cpu", "--num_workers", "1", *flags]))


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SCHEMES]
)
def run(request, tmp_path_factory) -> Run:
    scheme = SCHEMES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    task = make_scans(folder, scheme)
    assert call(task, folder / "trained", "train", *TRAINING, *scheme.train_flags) == 0
    # What the network predicts comes from the checkpoint, so --brats need not be said again.
    predicting = ("--nfolds", "3", "--ckpt_path", str(folder / "trained/checkpoints"), "--save_preds")
    assert call(task, folder / "predicted", "predict", *predicting, "--save_probabilities") == 0
    return Run(scheme, task, folder / "trained", folder / "predicted")


@pytest.mark.slow
def test_training_learns_the_targets(run):
    best = outcome(run.trained)
    assert all(best[f"best_dice_{name}"] > 0.6 for name in run.scheme.targets), best


@pytest.mark.slow
def test_masks_hold_the_file_s_values_and_never_the_ignored_one(run):
    assert len(run.masks) == 2
    found = {value for mask in run.masks.values() for value in np.unique(mask).tolist()}
    assert found == set(run.scheme.values)


@pytest.mark.slow
def test_ignored_voxels_are_predicted_from_the_others(run):
    # The tumour goes on there, and no label said that it does not.
    for name, mask in run.masks.items():
        truth = np.array(run.scheme.values)[make_tissues(int(name[4]))]
        assert np.mean((mask == truth)[IGNORED]) > 0.6


@pytest.mark.slow
def test_evaluation_counts_each_target_where_the_label_is_known(run):
    folder, labels = run.folder, run.task.folder / "labelsTr"
    assert evaluate.main(["--preds", str(folder), "--lbls", str(labels), *run.scheme.evaluate_flags]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    expected = []
    for tissues in run.scheme.targets.values():
        values = [run.scheme.values[tissue] for tissue in tissues]
        scores = []
        for name, mask in run.masks.items():
            label = load(labels / name)
            known = label != run.scheme.ignore
            found, true = np.isin(mask, values) & known, np.isin(label, values)
            scores.append(2 * np.sum(found & true) / (np.sum(found) + np.sum(true)))
        expected.append(np.mean(scores))
    assert summary["targets"] == list(run.scheme.targets)
    assert summary["dice"] == pytest.approx(expected)
    said = outcome(run.predicted)
    assert [said[f"dice_{name}"] for name in run.scheme.targets] == pytest.approx(expected)


@pytest.mark.slow
def test_validation_in_native_space_says_what_the_files_say(run, tmp_path):
    flags = ("--nfolds", "3", "--ckpt_path", str(run.trained / "checkpoints"), "--invert_resampled_y")
    assert call(run.task, tmp_path, "evaluate", *flags) == 0
    assert outcome(tmp_path)["dice"] == pytest.approx(outcome(run.predicted)["dice"])
    assert np.isfinite(outcome(tmp_path)["val_loss"])


@pytest.mark.slow
def test_probabilities_have_a_channel_per_output_and_evaluate_like_the_masks(run, tmp_path):
    names = [path.name for path in run.folder.glob("*.npy")]
    for name in names:
        probabilities = np.load(run.folder / name)
        regions = run.scheme.targets.keys() != {"rim", "middle", "heart"}
        assert probabilities.shape == (3 if regions else 4, *SHAPE)
        (tmp_path / name).symlink_to(run.folder / name)
    labels = str(run.task.folder / "labelsTr")
    assert evaluate.main(["--preds", str(tmp_path), "--lbls", labels, *run.scheme.evaluate_flags]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mean_dice"] == pytest.approx(outcome(run.predicted)["dice"], abs=1e-6)


@pytest.mark.slow
def test_checkpoint_keeps_the_scheme(run):
    [best] = (run.trained / "checkpoints").glob("epoch=*.ckpt")
    labels = torch.load(best, weights_only=True)["hyper_parameters"]["plan"]["labels"]
    assert labels["ignore_value"] == run.scheme.ignore
    if labels["regions"]:
        assert [region["name"] for region in labels["regions"]] == list(run.scheme.targets)


@pytest.mark.slow
def test_brats_of_main_and_of_preprocess_train_the_same_network(tmp_path):
    """main.py --brats is short for a plan with regions."""
    weights = []
    for name, flags in (("plan", ((), ("--brats",))), ("flag", (("--brats",), ()))):
        task = make_scans(tmp_path / name, Scheme(
            description={"labels": DECATHLON}, values=(0, 1, 2, 3), targets=BRATS_TARGETS, preprocess_flags=flags[1]
        ))  # fmt: skip
        short = (*TRAINING, "--max_epochs", "1", "--batches_per_epoch", "2", *flags[0])
        assert call(task, tmp_path / name / "r", "train", *short) == 0
        weights.append(torch.load(tmp_path / name / "r/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_brats_without_tumour_labels_is_refused(tmp_path, capsys):
    task = make_scans(tmp_path, SCHEMES["classes_with_ignore"])
    assert call(task, tmp_path / "r", "train", *TRAINING, "--brats") == 2
    assert "cannot be told apart" in capsys.readouterr().err
