"""Stamps of thousands of masks: each is written by itself, and whoever reads sees all of them, at any moment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference import mask_folder, stamp_files
from inference.mask_folder import MaskFolder
from inference.mask_stamps import STAMPS, FileStamp, MadeBy, MaskStamp
from inference.preparing import as_volume
from inference.scans import Scan
from inference.stamp_files import (
    RECORDS,
    read_record,
    read_sound_stamps,
    read_stamps,
    record_path,
    stage_record,
    write_table,
)
from utils.errors import UserError
from utils.parts import Part, Place

MADE_BY = MadeBy(model="m", name="m", settings={})
STAMP = MaskStamp(scan="s", made_by=MADE_BY, mask=FileStamp(size=1, mtime_ns=2))
OTHER = dataclasses.replace(STAMP, scan="t")
GRID = as_volume(np.zeros((2, 2, 2)), (1, 1, 1)).geometry


def put(folder, case: str, stamp: MaskStamp = STAMP) -> None:
    stage_record(case, stamp, folder, folder / "staged")
    (folder / "staged").replace(record_path(folder, case))


def scan(case: str) -> Scan:
    return Scan(case=case, images=())


def begun(folder, part: Part | None = None, cases=("a", "b"), **options) -> MaskFolder:
    place = Place(output=folder, part=part)
    place.scratch.mkdir(parents=True, exist_ok=True)
    masks = MaskFolder(folder, MADE_BY, place=place, **options)
    masks.unfinished([scan(case) for case in cases], save_probabilities=False)
    masks.begin()
    return masks


def predict(masks: MaskFolder, case: str) -> None:
    with masks.writing(scan(case)) as files:
        files.write(np.ones((2, 2, 2), np.uint8), GRID)


def test_records_count_more_than_the_table_until_they_are_in_it(tmp_path):
    assert read_stamps(tmp_path) == {}
    write_table(tmp_path, {"a": STAMP, "b": STAMP})
    put(tmp_path, "b", OTHER)
    put(tmp_path, "c")
    assert read_stamps(tmp_path) == {"a": STAMP, "b": OTHER, "c": STAMP}
    assert read_record(tmp_path, "b") == OTHER and read_record(tmp_path, "a") is None
    write_table(tmp_path, read_stamps(tmp_path))
    assert not (tmp_path / RECORDS).exists()
    assert read_stamps(tmp_path) == {"a": STAMP, "b": OTHER, "c": STAMP}


def test_records_that_are_gathered_while_somebody_reads_are_not_missed(tmp_path, monkeypatch):
    write_table(tmp_path, {})
    put(tmp_path, "a")
    put(tmp_path, "b")
    read, moments = stamp_files._read, []

    def meanwhile(kind, path):
        found = read(kind, path)
        moments[:] = moments[1:]
        if len(moments) == 1:
            write_table(tmp_path, {"a": STAMP, "b": STAMP})
        return found

    monkeypatch.setattr(stamp_files, "_read", meanwhile)
    for gathered_after in (1, 2, 3):
        moments[:] = ["read"] * (gathered_after + 1)
        assert set(read_stamps(tmp_path)) == {"a", "b"}
        put(tmp_path, "a")
        put(tmp_path, "b")


def test_a_killed_run_leaves_what_it_made_known(tmp_path):
    masks = begun(tmp_path)
    predict(masks, "a")
    # Killed here; the mask of a is known, by the next run and by who looks.
    assert set(read_stamps(tmp_path)) == {"a"} and record_path(tmp_path, "a").is_file()
    masks = MaskFolder(tmp_path, MADE_BY)
    assert masks.unfinished([scan("a"), scan("b")], save_probabilities=False) == [scan("b")]
    assert masks.others() == {}
    masks.begin()
    predict(masks, "b")
    masks.gather()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "masks.json"]
    assert set(read_stamps(tmp_path)) == {"a", "b"} and masks.edited(["a", "b"]) == []


def test_a_part_reads_the_table_once_however_many_scans_it_has(tmp_path, monkeypatch):
    parts = [begun(tmp_path, Part(index=index, count=2), "abcdef"[index - 1 :: 2]) for index in (1, 2)]
    read, written = [], []
    monkeypatch.setattr(mask_folder, "read_stamps", lambda folder: read.append(folder) or read_stamps(folder))
    monkeypatch.setattr(mask_folder, "write_table", lambda *given: written.append(given) or write_table(*given))
    # The first one sees that the second one has not changed the table since.
    for case in "abcdef":
        predict(parts["bdf".count(case)], case)
    assert len(read) <= 1 and not written
    parts[0].gather()
    assert set(read_stamps(tmp_path)) == set("abcdef") and parts[0].others() == {}


def test_parts_of_two_divisions_know_of_each_other_what_they_replace(tmp_path):
    one = begun(tmp_path, Part(index=1, count=2))
    other = begun(tmp_path, Part(index=1, count=3))
    for gathered in (False, True):
        with other.writing(dataclasses.replace(scan("a"), mask_ending=".nii")) as files:
            other._endings["a"] = ".nii"
            files.write(np.ones((2, 2, 2), np.uint8), GRID)
        if gathered:
            other.gather()
        assert (tmp_path / "a.nii").is_file()
        predict(one, "a")
        assert (tmp_path / "a.nii.gz").is_file() and not (tmp_path / "a.nii").exists()


def test_a_damaged_record_is_named_and_replaced_where_all_is_predicted_again(tmp_path):
    predict(begun(tmp_path), "a")
    record_path(tmp_path, "a").write_text("{")
    with pytest.raises(UserError, match=r"a\.json .*--overwrite"):
        MaskFolder(tmp_path, MADE_BY)
    masks = begun(tmp_path, overwrite=True)
    predict(masks, "a")
    masks.gather()
    assert set(read_stamps(tmp_path)) == {"a"} and not (tmp_path / RECORDS).exists()


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        (["c"], {"a": STAMP, "b": OTHER}),
        (["b", "c"], {"a": STAMP}),
        # What the table says of d is of an earlier mask than the one whose record is damaged.
        (["d"], {"a": STAMP, "b": OTHER, "c": STAMP}),
        ([STAMPS], {"b": OTHER, "c": STAMP}),
        ([STAMPS, "c"], {"b": OTHER}),
    ],
)
@pytest.mark.parametrize("part", [None, Part(index=1, count=2)])
def test_what_is_replaced_forgets_of_the_others_only_what_damaged_files_say(tmp_path, damaged, left, part):
    write_table(tmp_path, {"a": STAMP, **({"d": STAMP} if "d" in damaged else {})})
    put(tmp_path, "b", OTHER)
    put(tmp_path, "c")
    for name in damaged:
        (tmp_path / STAMPS if name == STAMPS else record_path(tmp_path, name)).write_text("{")
    begun(tmp_path, part, overwrite=True)
    assert read_stamps(tmp_path) == left and not (tmp_path / RECORDS).exists()


def test_a_part_that_replaces_leaves_known_what_others_finished_beside_a_damaged_record(tmp_path):
    running = begun(tmp_path, Part(index=1, count=2), "abc")
    for case in "abc":
        predict(running, case)
    record_path(tmp_path, "c").write_text("{")
    replacing = begun(tmp_path, Part(index=2, count=2), "d", overwrite=True)
    assert replacing.others() == {"c": "unknown"}
    predict(running, "c")
    assert replacing.others() == running.others() == {}


@pytest.mark.parametrize("name", ["a", ""])
def test_a_link_that_leads_nowhere_is_damage_and_not_waited_for(tmp_path, name):
    write_table(tmp_path, {"b": OTHER})
    path = record_path(tmp_path, name) if name else tmp_path / STAMPS
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link that leads nowhere"):
        read_stamps(tmp_path)
    assert read_sound_stamps(tmp_path) == ({"b": OTHER} if name else {}, True)
