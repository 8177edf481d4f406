"""A zip of somebody else's writes nothing outside of its folder, and no more than it says."""

from __future__ import annotations

import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from utils.archives import read_member, unpack, unpack_zip
from utils.errors import UserError


def make(path, members: dict[str, bytes], *, mode: int = 0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6))
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def test_files_come_with_their_folders_and_times(tmp_path):
    members = {"a.dcm": b"1", "sub/b.dcm": b"22"}
    unpack_zip(make(tmp_path / "x.zip", members), tmp_path / "one")
    unpack_zip(tmp_path / "x.zip", tmp_path / "two")
    assert (tmp_path / "one/sub/b.dcm").read_bytes() == b"22"
    times = [(tmp_path / name / "a.dcm").stat().st_mtime for name in ("one", "two")]
    assert times[0] == times[1] < 1.6e9


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "..\\out", "C:\\out"])
def test_members_that_reach_outside_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"not safe(.|\n)*lies outside"):
        unpack_zip(make(tmp_path / "x.zip", {"a": b"1", name: b"2"}), tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_links_are_refused(tmp_path):
    with pytest.raises(UserError, match="a is a link"):
        unpack_zip(make(tmp_path / "x.zip", {"a": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), tmp_path / "one")


def test_what_would_fill_the_disk_is_refused(tmp_path):
    make(tmp_path / "x.zip", {"a": bytes(10**6), "b": bytes(10**6)})
    with pytest.raises(UserError, match=r"holds .* allowed are"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "one", most_bytes=10**6)
    assert not (tmp_path / "one").exists()


def test_damage_is_said(tmp_path):
    content = bytearray(make(tmp_path / "x.zip", {"a": bytes(range(256)) * 4}).read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "one")
    (tmp_path / "y.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack_zip(tmp_path / "y.zip", tmp_path / "two")


def test_numbered_files_have_nothing_of_their_names_but_endings_that_are_kept(tmp_path):
    make(tmp_path / "x.zip", {"Doe^Jane/a.DCM": b"1", "Doe^Jane/b": b"2", "c.nrrd": b"3"})
    unpack_zip(tmp_path / "x.zip", tmp_path / "one", keep=(".dcm",))
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        "1.dcm": b"1", "2": b"2", "3": b"3",
    }  # fmt: skip


def test_a_member_that_begins_before_its_archive_is_damage(tmp_path):
    content = bytearray(make(tmp_path / "x.zip", {"a": b"1"}).read_bytes())
    # Where the list of members is said to begin lies further back than it is.
    place = content.rindex(b"PK\x05\x06") + 16
    content[place : place + 4] = (int.from_bytes(content[place : place + 4], "little") + 9).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "one")


def make_tar(path, size: int, how: str):
    (path.parent / "data").mkdir()
    (path.parent / "data/a").write_bytes(random.Random(0).randbytes(size))
    with tarfile.open(path, how) as archive:
        archive.add(path.parent / "data", "data")
    return path


@pytest.mark.parametrize("place", [0.5, -5], ids=["within", "checksum"])
@pytest.mark.parametrize("how", ["w:gz", "w:xz"])
def test_damage_in_a_packed_tar_is_said(tmp_path, how, place):
    """Of whatever kind the exception of its packer is; nothing is left."""
    path = make_tar(tmp_path / "x.tar", 100_000, how)
    content = bytearray(path.read_bytes())
    at = int(place * len(content)) if place == 0.5 else place
    content[at : at + 4] = b"\xff\0\xff\0"
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"x\.tar is damaged"):
        unpack(path, tmp_path / "out/data")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tar_that_does_not_fit_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "x.tar", 5000, "w")
    monkeypatch.setattr("utils.room.free_bytes", lambda _: 4999)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"the files in .*x\.tar need"):
        unpack(path, tmp_path / "out/data")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path):
    path = make(tmp_path / "x.zip", {"a": bytes(1 << 26)})
    content = path.read_bytes()
    # In its own header and in the directory.
    path.write_bytes(content.replace(struct.pack("<I", 1 << 26), struct.pack("<I", 10)))
    tracemalloc.start()
    try:
        with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
            read_member(archive, "a")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    make(tmp_path / "y.zip", {"a": b"sound"})
    with zipfile.ZipFile(tmp_path / "y.zip") as archive:
        assert read_member(archive, "a") == b"sound"


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("cut", [False, True], ids=["damaged", "cut"])
def test_whatever_an_unpacker_says_of_damage_is_one_kind_of_error(tmp_path, packing, cut):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a", bytes(range(256)) * 40)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("a")
    content = bytearray(path.read_bytes())
    begin = 30 + len("a")
    if cut:
        # Its directory says that it ends after some bytes.
        directory = content.rindex(b"PK\1\2")
        for place in (18, directory + 20):
            content[place : place + 4] = struct.pack("<I", 10)
    else:
        content[begin + 5 : begin + info.compress_size] = b"\xff" * (info.compress_size - 5)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        read_member(archive, "a")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack_zip(path, tmp_path / "out")


def test_a_zip_with_a_file_without_a_name_is_refused(tmp_path):
    archive, member = tmp_path / "a.zip", zipfile.ZipInfo("x")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(member, "1")
        member.filename = ""
    with pytest.raises(UserError, match="a file without a name"):
        unpack_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_with_a_password_is_refused_without_naming_what_is_in_it(tmp_path):
    content = bytearray(make(tmp_path / "x.zip", {"Doe": b"1"}).read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.zip has a password; unpack it yourself$"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "one")
    assert not (tmp_path / "one").exists()
