"""One file for another machine: a zip of weights (safetensors), plans, network options, decision and licence note.

Nothing in it can run: JSON and plain tensors. Reading trusts nothing either: no member is written to disk, names and
sizes are checked before anything is unpacked, and weights must fit the plan.

| member | what |
|---|---|
| `model.json` | format version, network options, the folds and their files, program versions |
| `plan.json` | the plan: channels, spacing, patch, network levels, label scheme |
| `fold_<n>.safetensors`, or `weights.safetensors` | float32 weights of one network, not compressed |
| `doubt.json` | what doubt means, where a cross-validation has found it out |
| `decision.json` | several models, a cascade or post-processing: how they are used; then the four above are in |
| `members/<configuration>/` | each model of the ensemble |
| `members/<configuration>/previous/` | the first stage of a cascade |
| `card.json` | what it is, for people; read by `nnunet info` only |
| `LICENSE_NOTE.txt` | what the weights may be used for |
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
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

from inference.archive_members import DESCRIPTION, MEMBERS, NOTE, PLAN, PREVIOUS, check_members
from inference.card import CARD, LICENSE_NOTE, Card, make_card
from inference.configuration import ConfigurationModel, FoldWeights, build_networks
from inference.decided import refuse_folder_of_models
from inference.decision import DECISION_FILE, Decision, DecisionMember
from inference.doubt import CALIBRATION_FILE, Calibration
from inference.model import Model, check_fit, folder_model, single_model
from inference.nnunet_v2.folder import is_nnunet_v2, nnunet_model
from utils.config import ModelConfig
from utils.errors import UserError
from utils.files import from_dict, to_dict, write_atomically
from utils.json_text import parse_json
from utils.program import predict_command
from utils.schema import FORMAT_VERSION, Plan, check_version

logger = logging.getLogger(__name__)

KIND = "segmentation model"
MAX_FOLDS = 100


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
    mirrored: bool = True


def write_archive(path: Path, model: Model, *, license_note: str = LICENSE_NOTE, card: Card | None = None) -> None:
    """Write a model, whole or not at all; the same model and versions give the same bytes.

    Raises:
        UserError: the weights do not fit the plan.
    """
    parts, decision = _parts(model)
    for configuration in parts.values():
        build_networks(configuration, torch.device("cpu"))

    def write(file) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            if decision is not None:
                _add_json(archive, DECISION_FILE, to_dict(decision))
            for prefix, configuration in parts.items():
                _add_configuration(archive, prefix, configuration)
            _add_json(archive, CARD, to_dict(card or make_card(model)))
            _add(archive, NOTE, license_note.encode())

    write_atomically(path, write)


def _parts(model: Model) -> tuple[dict[str, ConfigurationModel], Decision | None]:
    """Where in the archive each configuration lies, and how they belong together; None for one without more."""
    known = model.decision
    if model.is_plain and (known is None or (known.tta, known.overlap) in ((None, None), (False, 0.5))):
        return {"": model.configurations[0]}, None
    parts, members = {}, []
    for name, configuration in zip(model.names, model.configurations):
        folder = f"{MEMBERS}/{name}"
        parts[f"{folder}/"] = configuration
        if configuration.previous is not None:
            parts[f"{folder}/{PREVIOUS}/"] = configuration.previous
        previous = None if configuration.previous is None else f"{folder}/{PREVIOUS}"
        members.append(DecisionMember(configuration=name, folder=folder, previous=previous))
    plan = model.configurations[0].plan
    return parts, Decision(
        version=FORMAT_VERSION, task=plan.task, dataset=plan.dataset, members=tuple(members),
        post_processing=model.post_processing, scores={} if known is None else known.scores,
        command=f"{predict_command()} --input FOLDER --output FOLDER --model THIS_FILE",
        tta=None if known is None else known.tta, overlap=None if known is None else known.overlap,
    )  # fmt: skip


def _add_configuration(archive: zipfile.ZipFile, prefix: str, configuration: ConfigurationModel) -> None:
    folds = tuple(
        _Fold(name=each.name, fold=each.fold, file=_weights_file(each.fold)) for each in configuration.folds
    )  # fmt: skip
    description = _Description(
        version=FORMAT_VERSION, kind=KIND, model=configuration.model, folds=folds, mirrored=configuration.mirrored,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "monai", "numpy")}},
    )  # fmt: skip
    _add_json(archive, prefix + DESCRIPTION, to_dict(description))
    _add_json(archive, prefix + PLAN, to_dict(configuration.plan))
    if configuration.calibration is not None:
        _add_json(archive, prefix + CALIBRATION_FILE, to_dict(configuration.calibration))
    for fold, each in zip(folds, configuration.folds):
        _add(archive, prefix + fold.file, save(_plain(each.state_dict)))


def read_archive(path: Path) -> Model:
    """Read a model that `write_archive` wrote.

    Raises:
        UserError: the file is missing, damaged, of another kind or version, or not safe to read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path)
            return _read_model(archive, path)
    except FileNotFoundError:
        raise UserError(f"--model {path} does not exist") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error) as error:
        raise UserError(f"--model {path} is damaged or no exported model: {error}; export or copy it again") from None


def load_model(path: Path, folds: Sequence[int] | None = None, *, allow_unfinished: bool = False) -> Model:
    """The model of a checkpoint, a folder of checkpoints or of folds, a decision, an exported zip, or of nnU-Net v2.

    With `allow_unfinished` trainings may have been interrupted, and folds of a cross-validation may be missing.

    Raises:
        UserError: as `folder_model`, `read_archive` and `nnunet_model`.
    """
    if is_nnunet_v2(path):
        return nnunet_model(path, folds, allow_unfinished=allow_unfinished)
    if path.is_file() and (path.suffix == ".zip" or is_archive(path)):
        return read_archive(path).select(folds)
    refuse_folder_of_models(path)
    return folder_model(path, folds, allow_unfinished=allow_unfinished)


def _read_model(archive: zipfile.ZipFile, path: Path) -> Model:
    names = set(archive.namelist())
    if DESCRIPTION in names:
        if DECISION_FILE in names:
            # Earlier versions packed any JSON beside a single model, and applied none of it.
            logger.warning("%s: its %s is not applied; export the model again with its decision", path, DECISION_FILE)
        _require_all_used(archive, [""], path)
        return single_model(_read_configuration(archive, "", path))
    decision = from_dict(Decision, _read_json(archive, DECISION_FILE, path), source=f"{DECISION_FILE} in {path}")
    folders = [folder for member in decision.members for folder in (member.folder, member.previous)]
    _require_all_used(archive, folders, path)
    configurations = []
    for member in decision.members:
        configuration = _read_configuration(archive, f"{member.folder}/", path)
        if member.previous is not None:
            configuration = dataclasses.replace(
                configuration, previous=_read_configuration(archive, f"{member.previous}/", path)
            )
        configurations.append(configuration)
    model = Model(
        source=path, names=tuple(member.configuration for member in decision.members),
        configurations=tuple(configurations), post_processing=decision.post_processing, decision=decision,
    )  # fmt: skip
    check_fit(model)
    return model


def _require_all_used(archive: zipfile.ZipFile, folders: Sequence[str | None], path: Path) -> None:
    names = set(archive.namelist()) - {DECISION_FILE, CARD, NOTE}
    rest = sorted(name for name in names if name.rpartition("/")[0] not in folders)
    if rest:
        raise UserError(f"--model {path} holds what belongs to none of its models: {', '.join(rest[:10])}")


def _read_configuration(archive: zipfile.ZipFile, prefix: str, path: Path) -> ConfigurationModel:
    source = f"{DESCRIPTION} in {path}"
    description = from_dict(_Description, _read_json(archive, prefix + DESCRIPTION, path), source=source)
    _check_description(description, prefix, archive, path)
    plan = from_dict(Plan, _read_json(archive, prefix + PLAN, path), source=f"{PLAN} in {path}")
    folds = tuple(
        FoldWeights(name=f.name, fold=f.fold, state_dict=_read_weights(archive, prefix + f.file, path))
        for f in description.folds
    )
    calibration = None
    if prefix + CALIBRATION_FILE in archive.namelist():
        source = f"{CALIBRATION_FILE} in {path}"
        found = from_dict(Calibration, _read_json(archive, prefix + CALIBRATION_FILE, path), source=source)
        # As beside folds: that of other targets says nothing of these.
        calibration = found if found.targets == plan.labels.target_names else None
    return ConfigurationModel(
        source=path, plan=plan, model=description.model, folds=folds, mirrored=description.mirrored,
        calibration=calibration,
    )  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether a file of any name is an exported model; checkpoints are zip files, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not {DESCRIPTION, DECISION_FILE}.isdisjoint(archive.namelist())
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


def _add_json(archive: zipfile.ZipFile, name: str, value: Any) -> None:
    _add(archive, name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _check_description(description: _Description, prefix: str, archive: zipfile.ZipFile, path: Path) -> None:
    try:
        check_version(description.version, "model")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    files = [fold.file for fold in description.folds]
    names = (name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix))
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if description.kind != KIND or not 0 < len(files) <= MAX_FOLDS or sorted(files) != sorted(weights):
        raise UserError(f"{path}: {DESCRIPTION} lists {files} for weights, the archive has {weights}; export it again")


def _read_json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    try:
        return parse_json(archive.read(name).decode())
    except KeyError:
        raise UserError(f"{name} is missing in {path}; export it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} in {path} cannot be read as JSON: {error}; export it again") from None


def _read_weights(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Tensor]:
    try:
        return load(archive.read(name))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{name} in {path} holds no readable weights: {error}; export it again") from None
