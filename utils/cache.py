"""One folder of this user for what can be made again: `$NNUNET_CACHE`, else where the system has such folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from utils.errors import UserError

VARIABLE = "NNUNET_CACHE"
NAME = "nnunet-lightning"


def cache_folder(part: str) -> Path:
    """The folder for one kind of content, made where it is missing and writable by this user only.

    Raises:
        UserError: it cannot be made, or others may write into it.
    """
    root = os.environ.get(VARIABLE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(root) if root else home / NAME) / part
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; set {VARIABLE} to another folder") from None
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise UserError(f"others may write into {folder}; set {VARIABLE} to a folder that is yours alone")
    return folder


def drop_oldest(folder: Path, *, most_bytes: int, keep: Path) -> None:
    """Remove the entries (folders) that were used least lately, until the rest has at most `most_bytes`.

    Faults are not reported: what cannot be removed harms nobody. `keep` stays.
    """
    sizes = {entry: _size(entry) for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    total = sum(size for _, size in sizes.values())
    for entry, (_, size) in sorted(sizes.items(), key=lambda item: item[1][0]):
        if total <= most_bytes:
            return
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size


def _size(folder: Path) -> tuple[float, int]:
    """When it was used last, and its bytes; an entry that disappears meanwhile has none."""
    try:
        return folder.stat().st_mtime, sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0.0, 0
