"""One writer at a time in a folder: a second run waits for the first, and a killed run leaves no lock behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError
from utils.json_text import parse_json

LOCK = ".lock"
"""File in a folder that one run writes to; it is there only while that run goes on."""
_WAIT_S = 0.2
_BRIEF_WAIT_S = 0.02
BRIEF_S = 30.0
"""How long somebody who writes a file or two may hold a folder before those who wait say so."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system without locks answers."""


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = True, brief: bool = False) -> Iterator[None]:
    """Hold a folder that exists against other runs of this program until the block ends.

    The operating system frees the lock of a process that dies. Where the file system has no locks, the file itself is
    the lock, and that of a dead process of this machine is taken over.

    Args:
        folder: what is written to.
        wait: wait for another run and say so; else refuse.
        brief: it is mostly held for moments; say so only after a while.

    Raises:
        UserError: another run writes there and `wait` is false, or one of another machine left its lock file.
        OSError: nothing can be written there.
    """
    path = folder / LOCK
    told, begin_s = False, time.monotonic()
    while (held := _try_patiently(path, begin_s + BRIEF_S if brief else 0)) is None:
        owner = _owner(path)
        if not wait:
            raise UserError(f"another run ({owner}) writes into {folder}; wait for it, or choose another folder")
        if not told and not (brief and time.monotonic() < begin_s + BRIEF_S):
            print(f"{folder}: waiting for another run ({owner}) that writes there", file=sys.stderr, flush=True)
            told = True
        time.sleep(_BRIEF_WAIT_S if brief and not told else _WAIT_S)
    try:
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile sees that it is no longer the folder's file.
        path.unlink(missing_ok=True)
        os.close(held)


def is_locked(folder: Path) -> bool:
    """Whether a run holds a folder at this moment; one that does not exist is held by nobody."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with folder_lock(folder, wait=False):
            return False
    except UserError:
        return True


def claim_file(path: Path) -> int | None:
    """An open file that holds the lock of a file, for commands that inherit it; None while another process has it.

    The file stays when it is released, as commands may outlive whoever claimed it.

    Raises:
        UserError: the file system has no locks, and a run on another machine left its file.
    """
    return _try_lock(path)


def release_file(path: Path, held: int) -> None:
    """Give back what `claim_file` gave."""
    try:
        import fcntl

        # Granted again to whoever has it. Where there are no locks, the file itself is one.
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        path.unlink(missing_ok=True)
    os.close(held)


def _try_patiently(path: Path, until_s: float) -> int | None:
    """`_try_lock`; that a run on another machine has left its lock file is believed only after a while."""
    try:
        return _try_lock(path)
    except UserError:
        if time.monotonic() >= until_s:
            raise
        return None


def _try_lock(path: Path) -> int | None:
    """An open file that holds the lock, or None where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _create(path)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        if error.errno in _NO_LOCKS:
            return _create(path)
        raise
    try:
        same = os.fstat(file).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        same = False
    if not same:
        os.close(file)
        return None
    _sign(file)
    return file


def _create(path: Path) -> int | None:
    """The lock of a file system without locks: whoever makes the file has it."""
    owner = _read_owner(path)
    dead = owner.get("host") == socket.gethostname() and not _is_alive(owner.get("pid"))
    if path.exists() and (dead or not owner):
        path.unlink(missing_ok=True)
    elif owner and owner.get("host") != socket.gethostname():
        raise UserError(
            f"{path} says that a run on {owner.get('host')} (process {owner.get('pid')}) writes there; "
            "if there is none, remove that file"
        )
    # Made under another name and linked, so that nobody sees it without its owner.
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _sign(file)
        os.link(temporary, path)
    except FileExistsError:
        os.close(file)
        return None
    except OSError:
        os.close(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _sign(file: int) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _read_owner(path: Path) -> dict:
    try:
        owner = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner(path: Path) -> str:
    owner = _read_owner(path)
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "unknown process"


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
