"""Where the files of an nnU-Net v2 model lie: in a folder, or in the zip that nnUNetv2_export_model_to_zip writes.

Of a zip, members are read where they lie, and nothing is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from utils.archives import read_member
from utils.errors import UserError
from utils.json_text import parse_json

PLANS, DATASET = "plans.json", "dataset.json"
CHECKPOINTS = {"last": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
CHECKPOINT_SUFFIX = ".pth"
MAX_TEXT_BYTES = 64 << 20
MAX_CHECKPOINT_BYTES = 32 << 30
MAX_GAIN = 20
"""Weights hardly shrink; a member beyond some megabytes that unpacks to more times its size is made to fill memory."""
_FOLD = re.compile(r"fold_(\d+|all)")


class ModelFiles(Protocol):
    """The files of one configuration."""

    name: str
    """What messages call the model."""

    def folds(self) -> dict[str, set[str]]:
        """Folders `fold_0`, `fold_all` and so on, and which files are in each."""

    def read_json(self, name: str) -> Any:
        """The content of a file."""

    def checkpoint(self, fold: str, name: str) -> contextlib.AbstractContextManager[Path | BinaryIO]:
        """A checkpoint to read from, and what messages call it is `describe(fold, name)`."""

    def sibling(self, configuration: str) -> ModelFiles | None:
        """The same trainer's model for another configuration, if it lies beside this one."""


class FolderFiles:
    """The model folder of a configuration, `<trainer>__<plans>__<configuration>`; all folds, or `only` one."""

    def __init__(self, path: Path, only: str | None = None) -> None:
        self.path, self.name, self.only = path, str(path), only

    def folds(self) -> dict[str, set[str]]:
        """See `ModelFiles`."""
        folders = [entry for entry in self.path.iterdir() if entry.is_dir() and _FOLD.fullmatch(entry.name)]
        folders = [entry for entry in folders if self.only in (None, entry.name)]
        return {folder.name: {file.name for file in folder.iterdir()} for folder in sorted(folders)}

    def read_json(self, name: str) -> Any:
        """See `ModelFiles`."""
        try:
            return _parse((self.path / name).read_bytes(), f"{self.path / name}")
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from None

    @contextlib.contextmanager
    def checkpoint(self, fold: str, name: str) -> Iterator[Path | BinaryIO]:
        """See `ModelFiles`."""
        yield self.path / fold / name

    def sibling(self, configuration: str) -> ModelFiles | None:
        """See `ModelFiles`."""
        parts = self.path.resolve().name.split("__")
        other = self.path.resolve().with_name("__".join([*parts[:-1], configuration]))
        return FolderFiles(other) if is_model_folder(other) else None


class ZipFiles:
    """A folder inside of a zip."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.folder = path, folder
        self.name = str(path)

    def folds(self) -> dict[str, set[str]]:
        """See `ModelFiles`."""
        found: dict[str, set[str]] = {}
        with _open(self.path) as archive:
            for member in archive.namelist():
                inside = member.removeprefix(self.folder)
                fold, _, file = inside.partition("/")
                if member.startswith(self.folder) and _FOLD.fullmatch(fold) and file:
                    found.setdefault(fold, set()).add(file)
        return dict(sorted(found.items()))

    def read_json(self, name: str) -> Any:
        """See `ModelFiles`."""
        with _open(self.path) as archive:
            return _parse(_read(archive, self.folder + name, MAX_TEXT_BYTES, self.path), f"{name} in {self.path}")

    @contextlib.contextmanager
    def checkpoint(self, fold: str, name: str) -> Iterator[Path | BinaryIO]:
        """See `ModelFiles`."""
        with _open(self.path) as archive:
            member = f"{self.folder}{fold}/{name}"
            _check_size(archive, member, MAX_CHECKPOINT_BYTES, self.path)
            yield io.BytesIO(read_member(archive, member))

    def sibling(self, configuration: str) -> ModelFiles | None:
        """See `ModelFiles`."""
        parts = self.folder.rstrip("/").split("__")
        other = "__".join([*parts[:-1], configuration]) + "/"
        return ZipFiles(self.path, other) if other in zip_folders(self.path) else None


def is_model_folder(path: Path) -> bool:
    """Whether a folder is that of a configuration which nnU-Net v2 trained."""
    return (path / PLANS).is_file() and (path / DATASET).is_file()


def fold_of_model(path: Path) -> tuple[Path, str] | None:
    """Model folder and name of a fold, of a path that is the fold's folder or a checkpoint in it."""
    fold = path.absolute().parent if path.suffix == CHECKPOINT_SUFFIX else path.absolute()
    return (fold.parent, fold.name) if _FOLD.fullmatch(fold.name) and is_model_folder(fold.parent) else None


def model_folders(path: Path) -> list[Path]:
    """The folder itself, or those in a data set's folder of results; none where nnU-Net v2 did not write it."""
    if not path.is_dir():
        return []
    if is_model_folder(path):
        return [path]
    return [entry for entry in sorted(path.iterdir()) if entry.name.count("__") == 2 and is_model_folder(entry)]


def zip_folders(path: Path) -> list[str]:
    """The folders of configurations in a zip, with a slash behind; none where it is no model of nnU-Net v2."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return []
    folders = [name.removesuffix(PLANS) for name in sorted(names) if f"/{name}".endswith(f"/{PLANS}")]
    return [folder for folder in folders if folder + DATASET in names]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {error}; copy it again") from None


def _check_size(archive: zipfile.ZipFile, member: str, limit: int, path: Path) -> None:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise UserError(f"{path} holds no {member}") from None
    if info.file_size > min(limit, MAX_GAIN * info.compress_size + MAX_TEXT_BYTES):
        raise UserError(f"{path}: {member} claims {info.file_size} bytes, more than any model has; nothing was read")


def _read(archive: zipfile.ZipFile, member: str, limit: int, path: Path) -> bytes:
    _check_size(archive, member, limit, path)
    return read_member(archive, member)


def _parse(content: bytes, name: str) -> Any:
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as JSON: {error}") from None
