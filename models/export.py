"""One file for another machine: a zip of weights (safetensors), plan, network options, decision and licence note.

Nothing in it can run: JSON and plain tensors. Reading trusts nothing either: no member is written to disk, names and
sizes are checked before anything is unpacked, and weights must fit the plan.

| member | what |
|---|---|
| `model.json` | format version, network options, the folds and their files, program versions |
| `plan.json` | the plan: channels, spacing, patch, network levels, label scheme |
| `fold_<n>.safetensors`, or `weights.safetensors` | float32 weights of one network, not compressed |
| `decision.json` | optional: post-processing and ensembling |
| `LICENSE_NOTE.txt` | what the weights may be used for |
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.bundle import FoldWeights, ModelBundle, build_networks, checkpoint_bundle
from utils.config import ModelConfig
from utils.errors import UserError
from utils.files import from_dict, to_dict, write_atomically
from utils.schema import FORMAT_VERSION, Plan, check_version

DESCRIPTION, PLAN, DECISION, NOTE = "model.json", "plan.json", "decision.json", "LICENSE_NOTE.txt"
KIND = "segmentation model"
MAX_TEXT_BYTES = 16 << 20
"""Largest JSON or text in the archive; a plan has some kilobytes."""
MAX_WEIGHT_BYTES = 16 << 30
"""Largest weights of one fold; the largest networks of the field have a few gigabytes."""
MAX_FOLDS = 100
LICENSE_NOTE = (
    "The program that reads this file is under the Apache License 2.0. The weights were learned from a data set whose\n"
    "licence may restrict what they may be used for: ask whoever gave you this file. Not a medical device; not for\n"
    "diagnosis or treatment.\n"
)
_NAME = re.compile(
    r"(model\.json|plan\.json|decision\.json|LICENSE_NOTE\.txt|weights\.safetensors|fold_\d+\.safetensors)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fold:
    name: str
    fold: int | None
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Description:
    version: int
    kind: str
    model: ModelConfig
    folds: tuple[_Fold, ...]
    versions: dict[str, str]


def write_archive(path: Path, bundle: ModelBundle, *, license_note: str = LICENSE_NOTE) -> None:
    """Write a model, whole or not at all; the same model and versions give the same bytes.

    Raises:
        UserError: the weights do not fit the plan.
    """
    build_networks(bundle, torch.device("cpu"))
    folds = tuple(
        _Fold(name=each.name, fold=each.fold, file=_weights_file(each.fold)) for each in bundle.folds
    )  # fmt: skip
    description = _Description(
        version=FORMAT_VERSION, kind=KIND, model=bundle.model, folds=folds,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}},
    )  # fmt: skip
    texts = {DESCRIPTION: to_dict(description), PLAN: to_dict(bundle.plan)}
    if bundle.decision is not None:
        texts[DECISION] = bundle.decision

    def write(file) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, value in texts.items():
                _add(archive, name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
            _add(archive, NOTE, license_note.encode())
            for fold, each in zip(folds, bundle.folds):
                _add(archive, fold.file, save(_plain(each.state_dict)))

    write_atomically(path, write)


def read_archive(path: Path) -> ModelBundle:
    """Read a model that `write_archive` wrote.

    Raises:
        UserError: the file is missing, damaged, of another kind or version, or not safe to read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            description = from_dict(
                _Description, _read_json(archive, DESCRIPTION, path), source=f"{DESCRIPTION} in {path}"
            )
            _check_description(description, archive, path)
            plan = from_dict(Plan, _read_json(archive, PLAN, path), source=f"{PLAN} in {path}")
            decision = _read_json(archive, DECISION, path) if DECISION in archive.namelist() else None
            folds = tuple(
                FoldWeights(name=f.name, fold=f.fold, state_dict=_read_weights(archive, f.file, path))
                for f in description.folds
            )
    except FileNotFoundError:
        raise UserError(f"--model {path} does not exist") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error) as error:
        raise UserError(f"--model {path} is damaged or no exported model: {error}; export or copy it again") from None
    return ModelBundle(source=path, plan=plan, model=description.model, folds=folds, decision=decision)


def load_model(path: Path, folds: Sequence[int] | None = None) -> ModelBundle:
    """The model of a checkpoint, a folder of checkpoints or of folds, or an exported zip; see `checkpoint_bundle`.

    Raises:
        UserError: as `checkpoint_bundle` and `read_archive`.
    """
    if path.is_file() and (path.suffix == ".zip" or _is_archive(path)):
        return read_archive(path).select(folds)
    return checkpoint_bundle(path, folds)


def _is_archive(path: Path) -> bool:
    """Whether a file of any name is an exported model; checkpoints are zip files, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return DESCRIPTION in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _weights_file(fold: int | None) -> str:
    return "weights.safetensors" if fold is None else f"fold_{fold}.safetensors"


def _plain(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    # Copies: tensors of a checkpoint are windows into its file.
    return {name: value.detach().cpu().contiguous().clone() for name, value in state_dict.items()}


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # A fixed time, so that bytes do not depend on the clock. Weights hardly shrink.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse strange or repeated names, links, encryption, and sizes that do not fit the file."""
    members = archive.infolist()
    names = [member.filename for member in members]
    faults = [f"{name!r} does not belong into a model" for name in names if not _NAME.fullmatch(name)]
    faults += [f"{name} occurs twice" for name in sorted(set(names)) if names.count(name) > 1]
    file_bytes = path.stat().st_size
    for member in members:
        limit = MAX_WEIGHT_BYTES if member.filename.endswith(".safetensors") else MAX_TEXT_BYTES
        if member.flag_bits & 1:
            faults.append(f"{member.filename} is encrypted")
        elif member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            faults.append(f"{member.filename} is compressed")
        elif member.file_size > min(limit, file_bytes):
            faults.append(f"{member.filename} claims {member.file_size} bytes")
    faults += [f"{name} is missing" for name in (DESCRIPTION, PLAN) if name not in names]
    if faults:
        raise UserError(f"--model {path} is no exported model, or not safe to read: {'; '.join(faults[:10])}")


def _check_description(description: _Description, archive: zipfile.ZipFile, path: Path) -> None:
    try:
        check_version(description.version, "model")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    files = [fold.file for fold in description.folds]
    weights = [name for name in archive.namelist() if name.endswith(".safetensors")]
    if description.kind != KIND or not 0 < len(files) <= MAX_FOLDS or sorted(files) != sorted(weights):
        raise UserError(f"{path}: {DESCRIPTION} lists {files} for weights, the archive has {weights}; export it again")


def _read_json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    try:
        return json.loads(archive.read(name).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} in {path} cannot be read as JSON: {error}; export it again") from None


def _read_weights(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Tensor]:
    try:
        return load(archive.read(name))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{name} in {path} holds no readable weights: {error}; export it again") from None
