"""Soft maps: the probabilities of a target, voxel by voxel, on the scan's own grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from inference.soft_output import soft_folders, write_soft
from tests.models.builders import BRATS, TWO_CLASSES
from tests.scripts.trained import decide, predict, train
from tests.tiny_task import write_scan
from utils.errors import UserError
from utils.schema import Geometry, LabelScheme


def test_targets_are_outputs_and_unknown_ones_are_named(tmp_path):
    assert soft_folders(tmp_path, ["posterior", "posterior"], TWO_CLASSES) == {2: tmp_path / "soft_posterior"}
    assert soft_folders(tmp_path, ["WT", "ET"], BRATS) == {0: tmp_path / "soft_WT", 2: tmp_path / "soft_ET"}
    assert soft_folders(tmp_path, [], TWO_CLASSES) == {1: tmp_path / "soft_anterior", 2: tmp_path / "soft_posterior"}
    assert soft_folders(tmp_path, None, TWO_CLASSES) == {}
    with pytest.raises(UserError, match="--save_soft liver: the model's targets are anterior, posterior"):
        soft_folders(tmp_path, ["liver"], TWO_CLASSES)


def test_no_two_targets_have_one_folder(tmp_path):
    organs = LabelScheme(names=("background", "肝", "脾", "left lung", "left/lung"), values=(0, 1, 2, 3, 4))
    assert soft_folders(tmp_path, ["肝", "脾"], organs) == {1: tmp_path / "soft_肝", 2: tmp_path / "soft_脾"}
    assert soft_folders(tmp_path, ["left/lung"], organs) == {4: tmp_path / "soft_left_lung"}
    with pytest.raises(UserError, match="'left lung' and 'left/lung' would both go to soft_left_lung/; name one"):
        soft_folders(tmp_path, [], organs)


def test_values_lie_where_the_scan_has_them(tmp_path):
    affine = ((-1.0, 0.0, 0.0, 5.0), (0.0, 0.0, 2.0, -3.0), (0.0, 3.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(shape_xyz=(4, 3, 2), affine=affine, qform_code=1, sform_code=1, xyzt_units=2)
    stored = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) / 24
    write_soft({0: tmp_path / "soft_a"}, "case", stored, geometry, lambda path: path)
    written = nib.load(tmp_path / "soft_a/case.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), stored[0].T)
    np.testing.assert_array_equal(written.affine, affine)
    assert written.get_data_dtype() == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("names", [("3d_fullres",), ("2d", "3d_fullres")], ids=["one", "ensemble"])
def test_maps_equal_the_saved_probabilities(tmp_path, names, capsys):
    train(tmp_path, *names, folds=(0,))
    affine = np.diag([-1.0, 1.2, 0.9, 1.0])
    image = np.random.default_rng(0).uniform(1, 9, (9, 10, 11)).astype(np.float32)
    write_scan(tmp_path / "scans/a.nii.gz", image, affine)
    words = ["--input", tmp_path / "scans", "--model", decide(tmp_path, *names)]
    soft = [*words, "--save_soft", "posterior"]
    assert predict(*soft, "--output", tmp_path / "soft") == 0
    assert predict(*words, "--output", tmp_path / "all", "--save_probabilities") == 0
    written = nib.load(tmp_path / "soft/soft_posterior/a.nii.gz")
    np.testing.assert_allclose(written.get_fdata(), np.load(tmp_path / "all/a.npy")[2].T, atol=1e-6)
    np.testing.assert_allclose(written.affine, affine)
    # The room that the probabilities took is given back.
    assert not list((tmp_path / "soft").glob("*.npy")) and not list((tmp_path / "soft").glob(".*"))
    # What was predicted before has no map, and that is said.
    capsys.readouterr()
    assert predict(*soft[:-1], "anterior", "--output", tmp_path / "soft") == 0
    assert "no --save_soft map of a, predicted before; --overwrite" in capsys.readouterr().err
    # A map of another prediction does not stay beside the new mask, nor goes one of the same prediction.
    # Without a name all targets are meant.
    assert predict(*soft[:-1], "--output", tmp_path / "soft", "--overwrite") == 0
    assert len(list((tmp_path / "soft").glob("soft_*/a.nii.gz"))) == 2
    assert predict(*words, "--overlap", "0.25", "--output", tmp_path / "soft") == 0
    assert not list((tmp_path / "soft").glob("soft_*/*"))
