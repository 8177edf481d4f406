import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.dataset.synthetic_brats import (
    ENHANCING,
    NECROTIC,
    OEDEMA,
    SEQUENCES,
    SHAPE_XYZ,
    make_patient,
    write_brats,
)
from utils.errors import UserError


def test_files_are_called_as_in_the_download(tmp_path):
    folder = write_brats(tmp_path / "download", num_train=1, num_val=1)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz"))
    train, val = "BraTS2021_train/BraTS2021_00000/BraTS2021_00000", "BraTS2021_val/BraTS2021_00001/BraTS2021_00001"
    expected = [f"{train}_{name}.nii.gz" for name in (*SEQUENCES, "seg")]
    expected += [f"{val}_{name}.nii.gz" for name in SEQUENCES]
    assert files == sorted([*expected, "BraTS2021_val_labels/BraTS2021_00001.nii.gz"])
    image, label = nib.load(folder / f"{train}_t1.nii.gz"), nib.load(folder / f"{train}_seg.nii.gz")
    assert image.shape == label.shape == SHAPE_XYZ and nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(image.affine, label.affine)
    assert set(np.unique(np.asanyarray(label.dataobj))) == {0, NECROTIC, OEDEMA, ENHANCING}


def test_each_part_stands_out_where_the_challenge_shows_it():
    patient = make_patient(0, 0)
    means = {
        sequence: {value: float(scan[patient.label == value].mean()) for value in (NECROTIC, OEDEMA, ENHANCING)}
        for sequence, scan in patient.scans.items()
    }
    assert means["t1ce"][ENHANCING] > 2 * means["t1ce"][OEDEMA]
    assert means["flair"][OEDEMA] > 1.2 * means["flair"][ENHANCING] > 1.2 * means["flair"][NECROTIC]
    assert means["t1"][NECROTIC] < 0.7 * means["t1"][OEDEMA]


def test_nothing_but_zero_outside_of_the_brain_in_all_sequences():
    patient = make_patient(3, 1)
    outside = patient.scans["flair"] == 0
    assert 0.3 < outside.mean() < 0.8 and not patient.label[outside].any()
    assert all(((scan == 0) == outside).all() for scan in patient.scans.values())


def test_same_seed_same_voxels_and_every_fifth_tumour_takes_up_nothing():
    first, again, other = make_patient(0, 4), make_patient(0, 4), make_patient(1, 4)
    np.testing.assert_array_equal(first.scans["t2"], again.scans["t2"])
    assert (first.scans["t2"] != other.scans["t2"]).any()
    assert set(np.unique(first.label)) == {0, NECROTIC, OEDEMA}


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="left as it is"):
        write_brats(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
