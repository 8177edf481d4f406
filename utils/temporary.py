"""Temporary files and folders beside their target: locked while they are filled, and swept when their run was killed.

The operating system frees the lock of a process that dies, however it dies. So a temporary file that nobody holds and
that was there before this process began belongs to nobody, and the next run that writes into the folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

PREFIX = ".tmp-"
OURS = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}(\..*)?", re.DOTALL)
"""Names that `temporary_name` gives: what other programs call .tmp-something is not ours to remove."""

_began_s = time.time()
_swept: set[Path] = set()


def temporary_name(target: Path) -> Path:
    """A name beside `target` that nothing has, with its suffix.

    Raises:
        OSError: `target` has no name of its own (`.`, `/`).
    """
    if not target.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    return target.with_name(f"{PREFIX}{secrets.token_hex(8)}{target.suffix}")


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, open for writing and locked; it is removed at the end unless it was renamed.

    The first one in a folder sweeps that folder.
    """
    _sweep_once(target.absolute().parent)
    path = temporary_name(target)
    try:
        # Not tempfile: its files are private to the user, whatever the umask says.
        with open(path, "xb") as file:
            _lock(file.fileno())
            yield file, path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, locked; it is removed with all that is in it unless it was renamed."""
    _sweep_once(target.absolute().parent)
    path = temporary_name(target.with_suffix(""))
    descriptor = None
    try:
        path.mkdir()
        if os.name == "posix":
            descriptor = os.open(path, os.O_RDONLY)
            _lock(descriptor)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """A new folder in `private_root(name)`, removed at the end; what killed runs left there goes before the first one.

    Raises:
        UserError: there is no such place.
    """
    with temporary_folder(private_root(name) / "folder") as path:
        yield path


def private_root(name: str) -> Path:
    """A folder of this user in the system's place for temporary files (`TMPDIR`), which nobody else may look into.

    Raises:
        UserError: something of somebody else has its name.
    """
    user = getattr(os, "getuid", lambda: 0)()
    root = Path(tempfile.gettempdir()) / f"{name}-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if os.name == "posix" and (not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077):
        raise UserError(f"{root} is not a folder of this user alone; remove it, or name another place by TMPDIR")
    return root


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Remove what killed runs left in a folder: temporary names that no process holds and that are older than this one.

    Where the file system has no locks nothing is removed, as nothing says whether the writer lives. Faults are not
    reported: what cannot be removed harms nobody.

    Args:
        folder: to look into; a missing one is an empty one.
        alone: this process has the folder's lock, so that every temporary file is left over, whatever its age and
            where there are no locks, too; but checkpoints, which trainings write without that lock.
    """
    with contextlib.suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(folder)]:
            with contextlib.suppress(OSError):
                if alone and path.name.startswith(PREFIX) and path.suffix != ".ckpt" and path.is_file():
                    path.unlink()
                elif OURS.fullmatch(path.name):
                    _remove_abandoned(path)


def _sweep_once(folder: Path) -> None:
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def _remove_abandoned(path: Path) -> None:
    is_folder = path.is_dir() and not path.is_symlink()
    newest_s = max([path.lstat().st_mtime, *(p.lstat().st_mtime for p in path.rglob("*"))])
    if newest_s >= _began_s:
        return
    # NFS locks only what is open for writing, which a folder cannot be.
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        if _lock(descriptor):
            shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process has the file's lock now; False also where there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
