from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from utils.errors import UserError
from utils.files import (
    from_dict,
    json_ready,
    link_or_copy,
    new_folder,
    read_json,
    to_dict,
    write_atomically,
    write_json,
)
from utils.schema import Fold, Splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    number: int
    share: float | None = None
    on: bool = False
    pair: tuple[int, int] = (0, 0)
    name: str | None = None
    kind: Literal[2, 3] = 2
    folds: tuple[Fold, ...] = ()


def test_an_object_survives_json():
    sample = Sample(number=1, share=0.5, on=True, pair=(3, 4), name="a", kind=3, folds=(Fold(train=("x",), val=()),))
    assert from_dict(Sample, json.loads(json.dumps(to_dict(sample))), source="here") == sample


def test_nan_survives_as_a_dictionary():
    restored = from_dict(Sample, to_dict(Sample(number=1, share=math.nan)), source="here")
    assert math.isnan(restored.share)


def test_a_whole_number_is_a_number():
    assert from_dict(Sample, {"number": 1, "share": 2}, source="here").share == 2.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"number": 1.5}, "expected a whole number, got 1.5"),
        ({"number": True}, "expected a whole number, got True"),
        ({"number": "1"}, "expected a whole number, got '1'"),
        ({"number": 1, "share": "1"}, "share"),
        ({"number": 1, "on": "false"}, "expected true or false, got 'false'"),
        ({"number": 1, "on": 1}, "expected true or false, got 1"),
        ({"number": 1, "name": 5}, "name"),
        ({"number": 1, "pair": [1, 2, 3]}, "pair"),
        ({"number": 1, "pair": 1}, "pair"),
        ({"number": 1, "kind": 4}, "expected one of 2, 3, got 4"),
        ({"number": 1, "kind": 2.0}, "expected one of 2, 3, got 2.0"),
        ({}, "number"),
        ({"number": 1, "extra": 1}, "extra"),
        ({"number": 1, "folds": [{"train": []}]}, "val"),
        ([1], "mapping"),
        (None, "mapping"),
    ],
)
def test_wrong_values_are_refused_and_not_converted(wrong, message):
    with pytest.raises(UserError) as error:
        from_dict(Sample, wrong, source="plan.json")
    assert str(error.value).startswith("plan.json is not a valid Sample")
    assert message in str(error.value)


def test_every_problem_of_a_file_is_named():
    with pytest.raises(UserError, match=r"number.*on"):
        from_dict(Sample, {"number": "a", "on": 3}, source="here")


def test_an_objects_own_check_is_reported_in_its_words(tmp_path):
    (tmp_path / "splits.json").write_text('{"version": 9, "folds": []}')
    with pytest.raises(UserError, match=r"splits\.json is not a valid Splits: splits has format version 9"):
        read_json(Splits, tmp_path / "splits.json")


def test_written_json_is_read_back(tmp_path):
    splits = Splits(version=1, folds=(Fold(train=("a", "b"), val=("c",)),))
    write_json(splits, tmp_path / "splits.json")
    assert read_json(Splits, tmp_path / "splits.json") == splits


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), ("{", "as JSON"), (b"\xff\xfe", "as JSON")])
def test_an_unreadable_file_is_a_user_error(tmp_path, content, message):
    path = tmp_path / "splits.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_json(Splits, path)


def test_written_json_is_valid_json_even_with_nan(tmp_path):
    write_json({"dice": math.nan, "scores": (np.float32(0.5), math.inf), "at": Path("x")}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": None, "scores": [0.5, None], "at": "x"}


def test_json_ready_keeps_plain_values():
    value = {"a": [1, 0.5, "x", None, True], "b": {"c": 2}}
    assert json_ready(value) == value


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def broken(file):
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_atomically(path, broken)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_file_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.bin"

    def write(file):
        file.write(b"new")
        assert not path.exists()

    write_atomically(path, write)
    assert path.read_bytes() == b"new"


def test_a_written_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


def test_a_full_disk_or_missing_folder_is_named_with_the_file(tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        write_atomically(tmp_path / "a.bin", full)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*a\.bin'"):
        write_atomically(tmp_path / "absent" / "a.bin", lambda file: None)
    assert os.listdir(tmp_path) == []


def test_a_new_folder_appears_when_it_is_full(tmp_path):
    with new_folder(tmp_path / "a/b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a/b").exists()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "file"]


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a/b") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_never_replaces_files(tmp_path):
    (tmp_path / "old").write_text("mine")
    with pytest.raises(OSError), new_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "old").read_text() == "mine"


def test_a_link_is_the_same_file_and_replaces_an_older_one(tmp_path):
    source, target = tmp_path / "a.npy", tmp_path / "b.npy"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    link_or_copy(source, target)
    link_or_copy(source, target)
    assert target.samefile(source) and sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_a_copy_serves_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"new")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new" and not (tmp_path / "b").samefile(tmp_path / "a")
    assert (tmp_path / "b").stat().st_mtime_ns == (tmp_path / "a").stat().st_mtime_ns


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_of_the_encoding_does_not_matter(tmp_path, encoding):
    splits = Splits(version=1, folds=(Fold(train=("ä",), val=("b",)),))
    (tmp_path / "s.json").write_text(json.dumps(to_dict(splits), ensure_ascii=False), encoding=encoding)
    assert read_json(Splits, tmp_path / "s.json") == splits
