from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import write_atomically
from utils.temporary import sweep, temporary_file, temporary_folder

PROJECT = Path(__file__).resolve().parents[2]
STRAY = ".tmp-0123456789abcdef.ckpt"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="file locks as POSIX has them")


def make_old(path: Path) -> Path:
    os.utime(path, (1, 1))
    return path


def stray(folder: Path, name: str = STRAY) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    return make_old(path)


def test_the_next_run_that_writes_removes_what_a_killed_one_left(tmp_path):
    left = stray(tmp_path)
    folder = tmp_path / ".tmp-0123456789abcdef"
    folder.mkdir()
    stray(folder, "scan.nii")
    make_old(folder)
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x"))
    assert os.listdir(tmp_path) == ["a.bin"] and not left.exists()


def test_a_run_that_is_killed_outright_is_swept_by_the_next_one(tmp_path):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from utils.files import write_atomically
write_atomically(Path("last.ckpt"), lambda file: os.kill(os.getpid(), 9) if sys.argv[1] == "die" else file.write(b"x"))
"""
    for argument, status in (("die", -9), ("live", 0)):
        done = subprocess.run([sys.executable, "-c", program, argument], cwd=tmp_path, check=False)
        assert (done.returncode, len(os.listdir(tmp_path))) == (status, 1)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_files_of_a_live_run_stay(tmp_path):
    with temporary_file(tmp_path / "a.npy") as (_, path), temporary_folder(tmp_path / "b") as folder:
        for one in (path, folder):
            make_old(one)
        sweep(tmp_path)
        assert path.exists() and folder.exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [".tmp-notes.txt", "0123456789abcdef.ckpt", ".tmp-0123456789abcdefg", ".lock"])
def test_files_that_are_not_ours_stay(tmp_path, name):
    path = stray(tmp_path, name)
    sweep(tmp_path)
    assert path.exists()


def test_a_young_file_stays_as_not_every_writer_locks(tmp_path):
    path = tmp_path / STRAY
    path.touch()
    sweep(tmp_path)
    assert path.exists()


def test_whoever_has_the_folders_lock_removes_all_but_checkpoints(tmp_path):
    for name in (".tmp-abc.npy", STRAY, "a.npy"):
        (tmp_path / name).touch()
    (tmp_path / ".tmp-folder").mkdir()
    sweep(tmp_path, alone=True)
    assert sorted(os.listdir(tmp_path)) == [STRAY, ".tmp-folder", "a.npy"]
    sweep(tmp_path / "missing", alone=True)
