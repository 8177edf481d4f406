"""Scores and post-processing of pictures drawn with letters: a and b are classes, a dot is background."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cross_validation.candidates import OutOfFold, choose_postprocessing, score_candidates
from inference.decision import PostProcessing
from tests.models.builders import make_plan
from tests.tilted import NOISE, PLANES, tilted
from utils.errors import UserError
from utils.files import write_json
from utils.schema import LabelScheme, Region
from utils.workers import Workers

PLAIN = LabelScheme(names=("background", "a", "b"), values=(0, 1, 2))
REGIONS = LabelScheme(
    names=PLAIN.names,
    values=PLAIN.values,
    regions=(
        Region(name="whole", classes=(1, 2), write_class=1),
        Region(name="core", classes=(2,), write_class=2),
    ),
)


def picture(text: str) -> np.ndarray:
    """Class indices (z, y, x) of one plane; rows are separated by blanks."""
    return np.array([[[".ab".index(letter) for letter in row] for row in text.split()]], dtype=np.uint8)


def write_mask(path: Path, classes: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(classes.swapaxes(-1, -3), affine), path)


def make_study(root: Path, labels: LabelScheme, cases: list[tuple], affine: np.ndarray | None = None) -> OutOfFold:
    """Cases are (label, prediction of 3d_fullres, ...) as class indices (z, y, x)."""
    affine = np.eye(4) if affine is None else affine
    names = ("3d_fullres", "2d")[: len(cases[0]) - 1]
    folders = {name: root / name for name in names}
    label_files = {f"case{index}": root / f"label{index}.nii.gz" for index in range(len(cases))}
    for folder in folders.values():
        folder.mkdir()
        write_json(make_plan(labels=labels), folder / "plan.json")
    parts = [region.classes for region in labels.regions] or [(k,) for k in range(labels.num_classes)]
    for (case, label_file), (label, *predictions) in zip(label_files.items(), cases):
        write_mask(label_file, label, affine)
        for folder, classes in zip(folders.values(), predictions):
            write_mask(folder / f"{case}.nii.gz", classes, affine)
            np.save(folder / f"{case}.npy", np.stack([np.isin(classes, part) for part in parts]).astype(np.float32))
    return OutOfFold(folders=folders, label_files=label_files, labels=labels)


def choose(data: OutOfFold):
    with Workers(1) as workers:
        return choose_postprocessing(data, ("3d_fullres",), workers)


def test_all_foreground_is_left_alone_where_the_mean_rises_but_one_class_falls(tmp_path):
    # The far piece of a is wrong; the far voxel of b is right, and would go with it.
    label = "aaaaaaaaaabbbbbbbbbb..b......."
    found = "aaaaaaaaaabbbbbbbbbb..b..aaaaa"
    chosen, before, after = choose(make_study(tmp_path, PLAIN, [(picture(label), picture(found))]))
    assert before.dice == pytest.approx((20 / 25, 1))
    # With all foreground it would be (1, 20 / 21).
    assert chosen == PostProcessing(classes=("a",))
    assert after.dice == (1, 1) and after.mean == 1


def test_all_foreground_is_cleaned_where_no_class_falls(tmp_path):
    data = make_study(tmp_path, PLAIN, [(picture("aaaabb..."), picture("aaaabb.ab"))])
    chosen, before, after = choose(data)
    assert before.dice == pytest.approx((8 / 9, 4 / 5))
    assert (chosen, after.dice) == (PostProcessing(foreground=True), (1, 1))


def test_the_reported_scores_are_those_of_the_chosen_post_processing(tmp_path):
    data = make_study(
        tmp_path, PLAIN, [(picture("aaabbb.bb"), picture("aaabbb.bb")), (picture("aaa.b."), picture("aaabaa"))]
    )
    chosen, before, after = choose(data)
    # a: 1 and 6 / 8, cleaned 1 and 1. b has nothing but right voxels in case0, of which cleaning would take two.
    assert before.dice == pytest.approx(((1 + 6 / 8) / 2, (1 + 0) / 2))
    assert chosen == PostProcessing(classes=("a",))
    assert after.dice == pytest.approx((1, 1 / 2))


def test_with_regions_a_class_must_help_on_top_of_those_before(tmp_path):
    cases = [
        # Of a, two pieces are wrong: whole 28 / 32, without them 1.
        ("bbbbbbbbbb aaaa......", "bbbbbbbbbb aaaa.aa.aa"),
        # All is right. Each class alone takes two voxels, whole 16 / 18; both together take four, 12 / 16.
        ("aaabbbaabb", "aaabbbaabb"),
        # The same as case0 for b.
        ("aaaaaaaaaaa bbb........", "aaaaaaaaaaa bbb.bb.bb.."),
    ]
    data = make_study(tmp_path, REGIONS, [tuple(map(picture, case)) for case in cases])
    chosen, before, after = choose(data)
    assert chosen == PostProcessing(classes=("a",))
    assert before.dice == pytest.approx(((28 / 32 + 1 + 28 / 32) / 3, (1 + 1 + 6 / 10) / 3))
    assert after.dice == pytest.approx(((1 + 16 / 18 + 28 / 32) / 3, (1 + 1 + 6 / 10) / 3))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)], ids=["RAS", "LPS", "RPI"])
def test_candidates_are_scored_plane_by_plane_in_any_orientation(tmp_path, monkeypatch, signs):
    monkeypatch.setattr("inference.saved.SLAB_VALUES", 1)
    label = np.concatenate([picture("aab. ...."), picture("..bb a..."), picture(".... ..ab")])
    half = label.copy()
    half[0] = 0
    data = make_study(tmp_path, PLAIN, [(label, label, half)], np.diag([*map(float, signs), 1.0]))
    with Workers(1) as workers:
        scores = score_candidates(data, [("3d_fullres",), ("2d",), ("3d_fullres", "2d")], workers)
    assert scores[("3d_fullres",)].dice == (1, 1)
    # Two of four voxels of a are missed, one of four of b.
    assert scores[("2d",)].dice == pytest.approx((4 / 6, 6 / 7))
    # Where they disagree, background and class have 1/2 each, and the lower index wins.
    assert scores[("3d_fullres", "2d")].dice == scores[("2d",)].dice


@pytest.mark.parametrize(
    ("text", "shift_mm", "reason"),
    [("aab", 3.0, "3 mm off its prediction"), ("aabb", 0.0, r"has shape \(4, 1, 1\)")],
    ids=["affine", "shape"],
)
def test_labels_on_another_grid_are_listed(tmp_path, text, shift_mm, reason):
    data = make_study(tmp_path, PLAIN, [(picture("aab"), picture("aab"))] * 2)
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    for path in data.label_files.values():
        write_mask(path, picture(text), affine)
    with Workers(1) as workers, pytest.raises(UserError, match=reason) as caught:
        score_candidates(data, [("3d_fullres",)], workers)
    assert "label0" in str(caught.value) and "label1" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("plane", PLANES, ids=str)
@pytest.mark.parametrize("noise", [NOISE, -NOISE])
def test_near_45_degrees_labels_are_turned_as_predictions_are(tmp_path, plane, noise):
    label = np.random.default_rng(0).integers(0, 3, (4, 4, 4)).astype(np.uint8)
    data = make_study(tmp_path, PLAIN, [(label, label)] * 2, tilted(plane, noise))
    for path in data.label_files.values():
        write_mask(path, label, tilted(plane, -noise))
    with Workers(1) as workers:
        assert score_candidates(data, [("3d_fullres",)], workers)[("3d_fullres",)].dice == (1, 1)
    _, before, _ = choose(data)
    assert before.dice == (1, 1)
