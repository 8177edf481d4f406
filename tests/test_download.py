"""Downloads against a server on this machine: broken transfers, wrong sums, malicious archives, a full disk."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import download
from data_preprocessing.dataset import phantom
from data_preprocessing.planning.presets import MSD_TASKS
from tests.file_server import ONCE, TWICE, FileServer, serving
from utils import transfer
from utils.errors import UserError, run_cli

FOLDER = "Task04_Hippocampus"


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, member in members.items():
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(member, tarfile.TarInfo) else member
            info.name, info.size = name, len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


GOOD = {
    f"{FOLDER}/dataset.json": b"{}",
    f"./{FOLDER}/imagesTr/a.nii.gz": os.urandom(5000),
    f"{FOLDER}/imagesTr/._a.nii.gz": b"what macOS adds",
    f"._{FOLDER}": b"what macOS adds",
}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(tar_of(GOOD), f"/{FOLDER}.tar") as server:
        yield server


def task_at(server: FileServer):
    """The task with this server's address and the sum of what it serves."""
    return dataclasses.replace(MSD_TASKS["04"], archives=server.root, md5=hashlib.md5(server.content).hexdigest())


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


UNPACKED = [f"{FOLDER}/dataset.json", f"{FOLDER}/imagesTr/a.nii.gz"]


def test_a_task_is_fetched_unpacked_and_its_archive_removed(tmp_path, server, capsys):
    target = download.download_task(task_at(server), tmp_path / "data", patience=ONCE)
    assert target == tmp_path / "data" / FOLDER
    assert files_in(tmp_path / "data") == UNPACKED
    assert (target / "imagesTr/a.nii.gz").read_bytes() == GOOD[f"./{FOLDER}/imagesTr/a.nii.gz"]
    assert "100 % of" in capsys.readouterr().out


def test_a_broken_transfer_is_continued_by_the_next_run(tmp_path, server):
    server.cuts = [3000]
    with pytest.raises(UserError, match="run the same command again to continue"):
        download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert (tmp_path / f"{FOLDER}.tar.part").read_bytes() == server.content[:3000]
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert server.spans == [None, "bytes=3000-"]
    assert files_in(tmp_path) == UNPACKED


def test_a_complete_part_is_not_fetched_again(tmp_path, server):
    (tmp_path / f"{FOLDER}.tar.part").write_bytes(server.content)
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert server.spans == [f"bytes={len(server.content)}-"]
    assert files_in(tmp_path) == UNPACKED


def test_a_wrong_checksum_removes_the_transfer_and_nothing_else(tmp_path, server):
    (tmp_path / "mine.txt").write_text("keep")
    task = dataclasses.replace(task_at(server), md5="0" * 32)
    with pytest.raises(UserError, match="another MD5 sum than 0000"):
        download.download_task(task, tmp_path, patience=ONCE)
    assert files_in(tmp_path) == ["mine.txt"]
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert server.spans == [None, None]


def test_an_archive_of_the_user_is_used_without_the_network_and_kept(tmp_path, server):
    (tmp_path / f"{FOLDER}.tar").write_bytes(server.content)
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert files_in(tmp_path) == sorted([f"{FOLDER}.tar", *UNPACKED])
    assert server.spans == []


def test_a_wrong_archive_of_the_user_is_refused_and_kept(tmp_path, server):
    (tmp_path / f"{FOLDER}.tar").write_bytes(b"something else")
    with pytest.raises(UserError, match="move it away"):
        download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert (tmp_path / f"{FOLDER}.tar").read_bytes() == b"something else"


def test_a_task_that_is_there_is_left_alone(tmp_path, server, capsys):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine.txt").write_text("keep")
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert files_in(tmp_path) == [f"{FOLDER}/mine.txt"] and server.spans == []
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("../evil.txt", b"x"),
        (f"{FOLDER}/../../evil.txt", b"x"),
        ("/tmp/evil.txt", b"x"),
        (f"{FOLDER}/link", link("/etc")),
        (f"{FOLDER}/link", link("../../outside")),
        (f"{FOLDER}/link", link("../outside", tarfile.LNKTYPE)),
        (f"{FOLDER}/pipe", link("", tarfile.FIFOTYPE)),
        (f"{FOLDER}/disk", link("", tarfile.BLKTYPE)),
    ],
)
def test_a_malicious_member_stops_all_unpacking(tmp_path, server, name, member):
    server.content = tar_of({**GOOD, name: member})
    with pytest.raises(UserError, match="not safe to unpack") as error:
        download.download_task(task_at(server), tmp_path / "data", patience=ONCE)
    assert name in str(error.value)
    assert files_in(tmp_path) == [f"data/{FOLDER}.tar.part"]
    assert not Path("/tmp/evil.txt").exists()


def test_a_link_through_a_link_does_not_lead_outside(tmp_path, server):
    # Each link alone stays inside; followed one after the other they would not.
    chain = {f"{FOLDER}/a": link("."), f"{FOLDER}/a/b": link(".."), f"{FOLDER}/b/x/../../../evil": b"x"}
    server.content = tar_of({**GOOD, **chain})
    with pytest.raises(UserError):
        download.download_task(task_at(server), tmp_path / "data", patience=ONCE)
    assert files_in(tmp_path) == [f"data/{FOLDER}.tar.part"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no archive at all", "is damaged"), (tar_of({"Other/a": b"x"}), f"has no folder {FOLDER}")],
)
def test_an_archive_of_something_else_leaves_no_folder(tmp_path, server, content, words):
    server.content = content
    with pytest.raises(UserError, match=words):
        download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert files_in(tmp_path) == [f"{FOLDER}.tar.part"]


class FullDisk:
    """A file that takes 1000 bytes and then no more."""

    def __init__(self, part: Path, mode: str) -> None:
        self.file, self.room = part.open(mode, buffering=0), 1000

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


def test_a_full_disk_keeps_what_arrived_and_a_later_run_continues(tmp_path, server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_open", FullDisk)
        with pytest.raises(UserError, match="No space left on device; make room"):
            download.download_task(task_at(server), tmp_path, patience=TWICE)
    assert (tmp_path / f"{FOLDER}.tar.part").read_bytes() == server.content[:1000]
    download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert server.spans == [None, "bytes=1000-"]
    assert files_in(tmp_path) == UNPACKED


def test_a_disk_full_while_unpacking_keeps_the_archive(tmp_path, server, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", fail)
        with pytest.raises(UserError, match="No space left on device"):
            download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert files_in(tmp_path) == [f"{FOLDER}.tar.part"]


def test_a_disk_too_small_is_refused_before_the_transfer(tmp_path, server, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"the archive and its files need .* choose another folder with --results"):
        download.download_task(task_at(server), tmp_path, patience=ONCE)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (404, 1), (500, 2), (503, 2)])
def test_a_server_error_is_tried_again_and_a_refusal_is_not(tmp_path, server, status, tries):
    server.status = status
    with pytest.raises(UserError, match=f"answers {status}"):
        download.download_task(task_at(server), tmp_path, patience=TWICE)
    assert len(server.spans) == tries


def test_the_command_line_writes_the_phantom_and_leaves_it_alone_the_second_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(phantom, "write_phantom", functools.partial(phantom.write_phantom, num_train=1, num_test=1))
    arguments = ["--task", "00", "--results", str(tmp_path), "--seed", "3"]
    assert run_cli(lambda: download.main(arguments)) == 0
    assert (tmp_path / "Task00_Phantom" / "dataset.json").is_file()
    assert run_cli(lambda: download.main(arguments)) == 0
    assert "is there already" in capsys.readouterr().out


def test_the_command_line_takes_several_tasks_and_a_mirror(tmp_path, server, monkeypatch):
    monkeypatch.setitem(MSD_TASKS, "04", task_at(server))
    (tmp_path / "Task09_Spleen").mkdir()
    arguments = ["--task", "4", "09", "--results", str(tmp_path), "--mirror", f"{server.root}/"]
    assert run_cli(lambda: download.main(arguments)) == 0
    assert files_in(tmp_path) == UNPACKED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "11"], "Task10_Colon; got 11"),
        (["--task", "04", "--mirror", "file:///etc"], "--mirror must be"),
        (["--task", "00", "--seed", "-1"], "--seed must not be negative"),
    ],
)
def test_bad_options_end_with_status_2(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        download.main([*arguments, "--results", str(tmp_path)])
    assert end.value.code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        download.download_task(task_at(server), tmp_path / "file" / "data", patience=ONCE)
