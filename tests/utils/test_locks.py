"""One writer at a time in a folder."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from utils import locks
from utils.errors import UserError
from utils.locks import LOCK, folder_lock, is_locked

PROJECT = Path(__file__).resolve().parents[2]
HOLD = "import sys, time, pathlib; from utils.locks import folder_lock\n" \
       "with folder_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"  # fmt: skip


@pytest.fixture(params=["locks", "no locks"])
def file_system(request, monkeypatch):
    """With and without flock."""
    if request.param == "no locks":
        import fcntl

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)


def test_second_run_is_refused_and_the_lock_goes_away(tmp_path, file_system):
    with folder_lock(tmp_path), pytest.raises(UserError, match="another run"), folder_lock(tmp_path, wait=False):
        pass
    assert not (tmp_path / LOCK).exists()
    with folder_lock(tmp_path, wait=False):
        pass


@pytest.mark.slow
def test_second_run_waits_and_says_so(tmp_path, file_system, capsys):
    order = []

    def second():
        with folder_lock(tmp_path):
            order.append("second")

    with folder_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert "waiting for another run" in capsys.readouterr().err


def test_killed_run_leaves_no_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {process.pid}"), folder_lock(tmp_path, wait=False):
            pass
        process.kill()
    with folder_lock(tmp_path, wait=False):
        pass


def test_lock_file_of_another_machine_is_named(tmp_path, monkeypatch):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere" + socket.gethostname()}))
    monkeypatch.setattr(locks, "_try_lock", locks._create)
    with pytest.raises(UserError, match="remove that file"), folder_lock(tmp_path):
        pass


def test_whether_a_folder_is_held_can_be_asked(tmp_path, file_system):
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "missing")
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path) and not (tmp_path / LOCK).exists()


def test_a_folder_that_is_held_for_moments_is_waited_for_without_a_word(tmp_path, file_system, monkeypatch, capsys):
    release = threading.Event()

    def hold():
        with folder_lock(tmp_path):
            release.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    while not (tmp_path / LOCK).is_file():
        time.sleep(0.01)
    threading.Timer(0.1, release.set).start()
    with folder_lock(tmp_path, brief=True):
        pass
    other.join()
    assert not capsys.readouterr().err


def test_a_lock_file_of_another_machine_is_believed_at_once_only_by_those_who_hold_long(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_try_lock", locks._create)
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(UserError, match="elsewhere"), folder_lock(tmp_path):
        pass
    threading.Timer(0.1, (tmp_path / LOCK).unlink).start()
    with folder_lock(tmp_path, brief=True):
        pass
    monkeypatch.setattr(locks, "BRIEF_S", 0.1)
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(UserError, match="elsewhere"), folder_lock(tmp_path, brief=True):
        pass
