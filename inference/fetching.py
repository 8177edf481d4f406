"""An exported model from a URL or a file into the cache: whole, compared with its digest, and read once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.parse
from pathlib import Path

from inference.archive import read_archive
from utils.cache import VARIABLE, cache_folder
from utils.disk import FULL, size_text
from utils.errors import UserError
from utils.locks import folder_lock
from utils.transfer import Patience, Purpose, Report, drop_part, fetch

FOLDER = "models"
DIGEST = re.compile(r"[0-9a-f]{64}")


def fetch_model(
    source: str, *, sha256: str | None, most_bytes: int, report: Report, patience: Patience | None = None
) -> tuple[Path, str]:
    """Bring a model into the cache; returns its file there and the SHA-256 of its bytes.

    A model of this digest that is there already is not fetched again; a transfer that broke off is continued, unless
    the file has changed since. Nothing of a model that is refused stays.

    Args:
        source: http://, https:// or file:// address, or a path.
        sha256: what the file must have; None takes what comes.
        most_bytes: a larger file is refused.
        report: called with (bytes present, bytes in all).
        patience: with a server.

    Raises:
        UserError: nothing there, too large, another digest, or no exported model.
    """
    wanted = None if sha256 is None else _digest(sha256)
    kind = urllib.parse.urlsplit(source).scheme if "://" in source else "file"
    if kind not in ("http", "https", "file"):
        raise UserError(
            f"{source}: {kind}:// is not fetched from; give an https://, http:// or file:// address, or a path"
        )
    folder = cache_folder(FOLDER)
    with folder_lock(folder):
        known = None if wanted is None else next(folder.glob(f"*-{wanted}.zip"), None)
        if wanted is not None and known is not None and _sha256(known) == wanted:
            return known, wanted
        part = folder / f".part-{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        if kind == "file":
            _copy(_local(source), part, most_bytes)
        else:
            purpose = Purpose(elsewhere=VARIABLE, unpacked=False, compared=wanted is not None)
            fetch(source, part, _limited(report, part, most_bytes), patience, purpose)
        return _accept(part, source, wanted, most_bytes)


def _accept(part: Path, source: str, wanted: str | None, most_bytes: int) -> tuple[Path, str]:
    try:
        if part.stat().st_size > most_bytes:
            raise _too_large(source, most_bytes)
        found = _sha256(part)
        if wanted is not None and found != wanted:
            raise UserError(f"{source} has the SHA-256 {found}, not {wanted}: it is damaged, or another model")
        try:
            read_archive(part)
        except UserError as error:
            raise UserError(
                f"{source} is no model: {str(error).replace(f'--model {part}', 'it').replace(str(part), 'it')}"
            ) from None
        target = part.with_name(f"{_name(source)}-{found}.zip")
        os.replace(part, target)
        return target, found
    finally:
        part.unlink(missing_ok=True)


def _limited(report: Report, part: Path, most_bytes: int) -> Report:
    def watch(present: int, total: int) -> None:
        if max(present, total) > most_bytes:
            drop_part(part)
            raise _too_large("the file", most_bytes)
        report(present, total)

    return watch


def _copy(path: Path, part: Path, most_bytes: int) -> None:
    try:
        if path.stat().st_size > most_bytes:
            raise _too_large(str(path), most_bytes)
        shutil.copyfile(path, part)
    except OSError as error:
        drop_part(part)
        if error.errno in FULL:
            raise UserError(
                f"{part.parent}: {error.strerror}; make room, or set {VARIABLE} to another folder"
            ) from None
        raise UserError(f"{path} cannot be read: {error.strerror}; give the file of an exported model") from None


def _local(source: str) -> Path:
    if "://" not in source:
        return Path(source)
    parts = urllib.parse.urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise UserError(
            f"{source} names another machine; a file:// address has three slashes: file:///folder/model.zip"
        )
    return Path(urllib.parse.unquote(parts.path))


def _name(source: str) -> str:
    """A readable part of the file's name, of letters that every disk takes."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(source).path).rpartition("/")[2].removesuffix(".zip")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", last).strip("_")[:60] or "model"


def _digest(text: str) -> str:
    found = text.strip().lower().removeprefix("sha256:")
    if not DIGEST.fullmatch(found):
        raise UserError(f"--sha256 has 64 hexadecimal digits, got {text!r}; sha256sum prints them")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(name: str, most_bytes: int) -> UserError:
    return UserError(f"{name} has more than {size_text(most_bytes)}, the most that is fetched; raise --max_gb")
