"""Masks of prepared cases in one folder are of one network, its settings and its cases."""

from __future__ import annotations

import dataclasses

import pytest

from inference.mask_stamps import MadeBy
from inference.shard_masks import MADE_BY, MadeMasks, masks_folder
from utils.errors import UserError

BY = MadeBy(model="a", name="3d_fullres", settings={"--overlap": "0.5"})
NOW = MadeMasks(made_by=BY, cases={"training": {"x": "1", "y": "2"}})


def made(**changes) -> MadeMasks:
    return dataclasses.replace(NOW, made_by=dataclasses.replace(NOW.made_by, **changes))


def begin(folder, by=NOW):
    with masks_folder(folder, by, is_first_process=True) as output:
        (output / "x.nii.gz").write_text(by.made_by.model)


def test_masks_of_the_same_origin_are_written_over(tmp_path):
    folder = tmp_path / "preds"
    begin(folder)
    (folder / "y.nii.gz").write_text("y")
    begin(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preds"]
    assert sorted(path.name for path in folder.iterdir()) == [MADE_BY, "x.nii.gz", "y.nii.gz"]


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (made(model="b"), "made by other weights"),
        (made(settings={"--overlap": "0"}), "--overlap was"),
        (MadeMasks(made_by=BY, cases={"training": {"x": "1", "y": "9"}}), "other scans or shards, such as those of y"),
        (MadeMasks(made_by=BY, cases={"training": {"x": "1", "z": "3"}}), "of other cases, such as z"),
    ],
    ids=["weights", "settings", "shards", "cases"],
)
def test_masks_of_another_origin_are_moved_aside(tmp_path, capsys, before, why):
    folder = tmp_path / "preds"
    begin(folder, before)
    (folder / "y.npy").write_text("old")
    begin(folder)
    assert why in (said := capsys.readouterr().out) and str(tmp_path / "earlier_preds_1") in said
    assert sorted(path.name for path in folder.iterdir()) == [MADE_BY, "x.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "earlier_preds_1").iterdir()) == [MADE_BY, "x.nii.gz", "y.npy"]


@pytest.mark.parametrize("record", [None, "{", "{}"], ids=["none", "cut", "empty"])
def test_masks_of_unknown_origin_are_moved_aside(tmp_path, record):
    folder = tmp_path / "preds"
    folder.mkdir()
    (folder / "x.nii.gz").write_text("whose?")
    if record is not None:
        (folder / MADE_BY).write_text(record)
    (tmp_path / "earlier_preds_1").mkdir()
    begin(folder)
    assert (tmp_path / "earlier_preds_2/x.nii.gz").read_text() == "whose?"
    assert not list((tmp_path / "earlier_preds_1").iterdir())


def test_masks_of_test_scans_by_the_same_network_stay(tmp_path):
    begin(tmp_path / "preds", dataclasses.replace(NOW, cases={"test": {"z": "3"}}))
    (tmp_path / "preds/z.nii.gz").write_text("z")
    begin(tmp_path / "preds")
    assert (tmp_path / "preds/z.nii.gz").is_file()
    # What they are of is still known.
    begin(tmp_path / "preds", dataclasses.replace(NOW, cases={"test": {"z": "4"}}))
    assert (tmp_path / "earlier_preds_1/z.nii.gz").is_file()


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "disk/real/x.npy").write_text("whose?")
    (tmp_path / "preds").symlink_to(tmp_path / "disk/real")
    begin(tmp_path / "preds")
    assert (tmp_path / "disk/earlier_real_1/x.npy").is_file() and (tmp_path / "preds").is_symlink()


def test_a_folder_without_masks_is_taken_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    begin(tmp_path)
    assert (tmp_path / "notes.txt").is_file()


def test_two_predictions_do_not_share_a_folder(tmp_path):
    with masks_folder(tmp_path, NOW, is_first_process=True):
        with pytest.raises(UserError, match="another run"), masks_folder(tmp_path, NOW, is_first_process=True):
            pass
        # The other processes of the same run write there, too.
        with masks_folder(tmp_path, NOW, is_first_process=False) as output:
            assert output == tmp_path
