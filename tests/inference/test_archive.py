"""The exported model: everything comes back, nothing in it can run, and what is not one is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
from importlib import metadata

import pytest
import torch

from inference.archive import DESCRIPTION, load_model, read_archive, write_archive
from inference.configuration import build_networks, read_configuration
from inference.decision import PostProcessing
from inference.model import single_model
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours
from utils.errors import UserError


@pytest.fixture
def exported(tmp_path):
    for fold in (0, 2):
        (tmp_path / f"runs/fold_{fold}").mkdir(parents=True)
        save_ours(tmp_path / f"runs/fold_{fold}/last.ckpt", make_plan(), seed=fold)
    write_archive(tmp_path / "model.zip", single_model(read_configuration(tmp_path / "runs", [0, 2])))
    return tmp_path / "model.zip"


def rewrite(path, changes=None, **options):
    """The archive with other members: name -> bytes, or None to leave it out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | (changes or {})
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


def test_weights_plan_and_options_come_back(exported):
    original, [read] = read_configuration(exported.parent / "runs", [0, 2]), read_archive(exported).configurations
    assert (read.plan, read.model, read.mirrored) == (original.plan, original.model, True)
    assert [(each.name, each.fold) for each in read.folds] == [("fold_0", 0), ("fold_2", 2)]
    for one, other in zip(original.folds, read.folds):
        assert one.state_dict.keys() == other.state_dict.keys()
        assert all(torch.equal(value, other.state_dict[name]) for name, value in one.state_dict.items())
    assert len(build_networks(read, torch.device("cpu"))) == 2


def test_only_json_text_and_tensors_are_inside(exported):
    with zipfile.ZipFile(exported) as archive:
        names = archive.namelist()
        assert sorted(names) == [
            "LICENSE_NOTE.txt", "card.json", "fold_0.safetensors", "fold_2.safetensors", DESCRIPTION, "plan.json",
        ]  # fmt: skip
        assert "Apache" in archive.read("LICENSE_NOTE.txt").decode()
        description = json.loads(archive.read(DESCRIPTION))
    assert description["versions"]["torch"] == metadata.version("torch")


def test_same_model_gives_the_same_bytes(exported):
    again = exported.with_name("again.zip")
    write_archive(again, single_model(read_configuration(exported.parent / "runs", [0, 2])))
    assert again.read_bytes() == exported.read_bytes()


def test_decision_travels_along(exported):
    models, post = read_archive(exported), PostProcessing(classes=("anterior",))
    write_archive(exported, dataclasses.replace(models, post_processing=post))
    read = read_archive(exported)
    assert read.post_processing == post and read.names == ("3d_fullres",)
    assert [fold.name for fold in read.configurations[0].folds] == ["fold_0", "fold_2"]


def test_archives_of_earlier_versions_load_and_what_was_packed_beside_them_is_not_applied(exported, caplog):
    with zipfile.ZipFile(exported) as archive:
        description = json.loads(archive.read(DESCRIPTION))
    del description["mirrored"]
    rewrite(exported, {DESCRIPTION: json.dumps(description).encode()})
    models = read_archive(exported)
    assert models.is_plain and models.configurations[0].mirrored and not caplog.text
    rewrite(exported, {"decision.json": b'{"keep_largest": true}'})
    assert read_archive(exported).is_plain
    assert "decision.json is not applied" in caplog.text


def test_zip_is_told_from_a_checkpoint_whatever_its_name(exported):
    renamed = exported.rename(exported.with_name("model.bin"))
    assert [each.fold for each in load_model(renamed, [2]).configurations[0].folds] == [2]
    assert load_model(exported.parent / "runs/fold_0/last.ckpt").configurations[0].folds[0].fold is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "fold_0/../../x.safetensors", "code.py", "data.pkl"])
def test_members_that_do_not_belong_are_refused_and_nothing_is_written(exported, tmp_path_factory, name, monkeypatch):
    rewrite(exported, {name: b"import os"})
    before = set(exported.parent.rglob("*"))
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    with pytest.raises(UserError, match="not safe to read"):
        read_archive(exported)
    assert set(exported.parent.rglob("*")) == before and not list(empty.iterdir())


@pytest.mark.slow
def test_compressed_members_are_refused_before_they_are_unpacked(exported):
    rewrite(exported, {"plan.json": b" " * 50_000_000}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_archive(exported)


def test_sizes_that_the_file_cannot_hold_are_refused(exported):
    content = bytearray(exported.read_bytes())
    # The last entry of the central directory claims 4 GB, compressed and not.
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFF00, 0xFFFFFF00)
    exported.write_bytes(content)
    with pytest.raises(UserError, match="claims 4294967040 bytes"):
        read_archive(exported)


def test_repeated_members_are_refused(exported):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(exported, "a") as archive:
        archive.writestr("plan.json", b"{}")
    with pytest.raises(UserError, match=r"plan\.json occurs twice"):
        read_archive(exported)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan.json": None}, "plan.json is missing"),
        ({"plan.json": b"{"}, "cannot be read as JSON"),
        ({"plan.json": b"[" * 100_000}, "cannot be read as JSON"),
        ({"plan.json": b'{"version": 1}'}, "not a valid Plan"),
        ({"fold_2.safetensors": None}, "lists"),
        ({"fold_7.safetensors": b""}, "lists"),
        ({"fold_2.safetensors": b"\xff" * 64}, "no readable weights"),
        ({DESCRIPTION: b'{"version": 1}'}, "not a valid"),
    ],
)
@pytest.mark.slow
def test_archives_that_contradict_themselves_are_refused(exported, changes, reason):
    rewrite(exported, changes)
    with pytest.raises(UserError, match=reason):
        read_archive(exported)


def test_another_format_version_is_refused(exported):
    with zipfile.ZipFile(exported) as archive:
        description = json.loads(archive.read(DESCRIPTION))
    rewrite(exported, {DESCRIPTION: json.dumps(description | {"version": 99}).encode()})
    with pytest.raises(UserError, match="version 99"):
        read_archive(exported)


def test_plan_without_weights_for_it_takes_no_memory(exported):
    with zipfile.ZipFile(exported) as archive:
        plan = json.loads(archive.read("plan.json"))
    plan["stage"]["filters"] = [1_000_000, 6, 8]
    rewrite(exported, {"plan.json": json.dumps(plan).encode()})
    with pytest.raises(UserError, match=r"model\.zip"):
        build_networks(read_archive(exported).configurations[0], torch.device("cpu"))


def test_truncated_and_foreign_files_are_refused(exported):
    exported.write_bytes(exported.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        load_model(exported)
    exported.write_bytes(b"no zip")
    with pytest.raises(UserError, match="damaged"):
        load_model(exported)
