from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_preprocessing.planning.plan_file import choose_plan, store_plan, withdraw_plan
from tests.data_preprocessing.planning.builders import dataset, fingerprint, plan
from utils.errors import UserError
from utils.files import read_json
from utils.schema import Plan

AUTOMATIC = plan()
OTHER = plan(numbers=fingerprint((1.0, 1.0, 1.0), shapes=((64, 64, 64),)))


def prepare(folder: Path, automatic: Plan = AUTOMATIC, *, overwrite: bool = False):
    chosen = choose_plan(folder, automatic, overwrite=overwrite)
    store_plan(folder, chosen)
    return chosen


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / "plan.json").read_text())
    stage = {key: value for key, value in changes.items() if key in content["stage"]}
    content |= {key: value for key, value in changes.items() if key not in stage}
    content["stage"] |= stage
    (folder / "plan.json").write_text(json.dumps(content))


def stored(folder: Path) -> Plan:
    return read_json(Plan, folder / "plan.json")


def test_untouched_plan_follows_the_data(tmp_path):
    prepare(tmp_path)
    assert prepare(tmp_path, OTHER).edits == ()
    assert stored(tmp_path) == OTHER


def test_edited_plan_is_kept_and_said_so(tmp_path, capsys):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5, patch_size=[32, 40, 40])
    chosen = prepare(tmp_path)
    assert chosen.edits == ("patch_size", "batch_size")
    assert (stored(tmp_path).stage.batch_size, stored(tmp_path).stage.patch_size) == (5, (32, 40, 40))
    assert "was edited by hand (patch_size, batch_size) and is kept" in capsys.readouterr().out


def test_edited_plan_survives_changed_data(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5)
    prepare(tmp_path, OTHER)
    assert prepare(tmp_path, OTHER).edits == ("batch_size",)
    assert stored(tmp_path).stage.patch_size == AUTOMATIC.stage.patch_size


def test_edited_numbers_have_that_as_their_reason(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5)
    reasons = prepare(tmp_path).plan.reasons
    assert (reasons["batch_size"], reasons["patch_size"]) == ("edited by hand", AUTOMATIC.reasons["patch_size"])


def test_undone_edit_makes_the_plan_automatic_again(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5)
    prepare(tmp_path)
    edit(tmp_path, batch_size=AUTOMATIC.stage.batch_size)
    assert prepare(tmp_path).edits == ()
    assert stored(tmp_path) == AUTOMATIC


def test_edited_reasons_are_no_edit(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, reasons={})
    assert prepare(tmp_path).edits == ()


def test_plan_brought_from_elsewhere_is_kept(tmp_path):
    prepare(tmp_path)
    (tmp_path / "plan.auto.json").unlink()
    edit(tmp_path, batch_size=5)
    assert prepare(tmp_path).edits == ("batch_size",)


def test_overwrite_plans_anew_and_keeps_the_edits_beside(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5)
    assert prepare(tmp_path, overwrite=True).plan == AUTOMATIC
    assert stored(tmp_path) == AUTOMATIC
    assert read_json(Plan, tmp_path / "plan.old.json").stage.batch_size == 5


def test_malformed_plan_is_a_user_error_that_overwrite_cures(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, patch_size=[37, 40, 40])
    with pytest.raises(UserError, match=r"plan.json .*\(37, 40, 40\) is not divisible .*--overwrite"):
        prepare(tmp_path)
    assert prepare(tmp_path, overwrite=True).plan == AUTOMATIC


def test_edit_that_does_not_fit_the_data_is_a_user_error(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, channels=[{"name": "MRI", "scheme": "zscore"}] * 2, task="43")
    with pytest.raises(UserError) as error:
        prepare(tmp_path)
    assert "task is 43, and here it is 42" in str(error.value) and "channels is ('MRI', 'MRI')" in str(error.value)


def test_edit_against_a_flag_is_a_user_error(tmp_path):
    with_mask = plan(mask_channel=True)
    prepare(tmp_path, with_mask)
    edit(tmp_path, mask_channel=False)
    with pytest.raises(UserError, match="--ohe asks for it"):
        prepare(tmp_path, with_mask)


def test_automatic_plan_is_withdrawn_before_other_shards_are_written(tmp_path):
    prepare(tmp_path)
    withdraw_plan(tmp_path, choose_plan(tmp_path, OTHER, overwrite=False))
    assert not (tmp_path / "plan.json").exists()


def test_edited_plan_waits_elsewhere_until_its_shards_are_complete(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, patch_size=[32, 40, 40])
    withdraw_plan(tmp_path, choose_plan(tmp_path, AUTOMATIC, overwrite=False))
    assert not (tmp_path / "plan.json").exists()
    # Killed here; the next run finds it.
    assert prepare(tmp_path).plan.stage.patch_size == stored(tmp_path).stage.patch_size == (32, 40, 40)
    assert not (tmp_path / "plan.edited.json").exists()


def test_dataset_that_changed_replaces_an_untouched_plan(tmp_path):
    prepare(tmp_path)
    changed = plan(dataset(channels=("MRI", "PET")))
    assert prepare(tmp_path, changed).plan == changed


def age(folder: Path) -> None:
    """Make the files those of a version that had no choice of the order."""
    for name in ("plan.json", "plan.auto.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text())
            del content["normalize_first"]
            path.write_text(json.dumps(content))


@pytest.mark.parametrize("with_automatic", [True, False])
def test_edited_plan_of_an_earlier_version_gets_the_new_order_and_says_so(tmp_path, capsys, with_automatic):
    prepare(tmp_path)
    edit(tmp_path, batch_size=5)
    age(tmp_path)
    if not with_automatic:
        (tmp_path / "plan.auto.json").unlink()
    assert not stored(tmp_path).normalize_first
    chosen = prepare(tmp_path)
    assert chosen.edits == ("batch_size",) and stored(tmp_path).normalize_first
    assert (
        "of an earlier version: from now on scans are normalised before they are resampled" in capsys.readouterr().out
    )
    # The next run finds nothing but the same edit, and has nothing to say of the order.
    assert prepare(tmp_path).edits == ("batch_size",)
    assert "earlier version" not in capsys.readouterr().out


def test_untouched_plan_of_an_earlier_version_is_planned_anew(tmp_path):
    prepare(tmp_path)
    age(tmp_path)
    assert prepare(tmp_path).edits == () and stored(tmp_path) == AUTOMATIC


def test_order_that_a_person_chose_is_kept(tmp_path):
    prepare(tmp_path)
    edit(tmp_path, normalize_first=False)
    assert prepare(tmp_path).edits == ("normalize_first",)
    assert not stored(tmp_path).normalize_first
