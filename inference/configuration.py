"""One configuration of a model: one plan, one network, the weights of one or several folds.

It comes from a checkpoint, a folder of checkpoints, a folder of folds (`fold_0`, `fold_1`, ...), or an exported zip.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from inference.decision import Checkpoint
from inference.doubt import CALIBRATION_FILE, Calibration
from inference.fold_folders import choose_checkpoint, fold_folders, missing_folds, recorded_checkpoint, skipped_folds
from models.acceleration import Acceleration
from models.checkpoint import CheckpointContents, check_fits, fitting_weights, flips_remark, read_checkpoint
from models.unet import PLAIN, DynamicUNet, build_network
from utils.config import ModelConfig
from utils.errors import UserError, list_problems
from utils.files import read_json
from utils.runs import LAST_CHECKPOINT
from utils.schema import Plan
from utils.training_state import require_finished

FLAG = "--model"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoldWeights:
    """The weights of one network; `fold` is None where nothing says which fold it was trained on."""

    name: str
    fold: int | None
    state_dict: dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ConfigurationModel:
    """Networks that differ in their weights only.

    `mirrored` says whether all were trained with flips, without which test-time augmentation hurts. `previous` is the
    first stage of a cascade, whose mask these networks see as well. `calibration` says what doubt means, where a
    cross-validation has found it out.
    """

    source: Path
    plan: Plan
    model: ModelConfig
    folds: tuple[FoldWeights, ...]
    mirrored: bool = True
    previous: ConfigurationModel | None = None
    calibration: Calibration | None = None

    def select(self, folds: Sequence[int] | None) -> ConfigurationModel:
        """The same with some of its folds; None takes all.

        Raises:
            UserError: it has no such folds.
        """
        if folds is None:
            return self
        there = {each.fold: each for each in self.folds}
        _require_folds(self.source, folds, set(there))
        return dataclasses.replace(self, folds=tuple(there[fold] for fold in sorted(set(folds))))


def read_configuration(
    path: Path,
    folds: Sequence[int] | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    allow_unfinished: bool = False,
) -> ConfigurationModel:
    """The configuration of a checkpoint, of a folder of checkpoints (its best), or of a folder of `fold_*` folders.

    A fold's folder, or a run's results folder, may hold its checkpoints in `checkpoints/`.

    Args:
        path: where.
        folds: some of the folds; None takes all that belong to the cross-validation.
        checkpoint: which one of a fold; None takes the one that was scored where the fold's folder says so, else the
            best.
        allow_unfinished: take interrupted trainings, and the folds that are there where some are missing.

    Raises:
        UserError: nothing there, no such fold, folds that are missing, an interrupted training, a checkpoint of the
            NVIDIA reference (it has no plan), or folds that were trained with different plans or networks.
    """
    found = _checkpoints(path, folds, checkpoint, allow_unfinished)
    _require_finished([file.parent for _, file in found], allow_unfinished)
    contents = [read_checkpoint(file) for _, file in found]
    first_plan, first_model = _described(contents[0])
    for other in contents[1:]:
        if _described(other)[0].labels != first_plan.labels:
            raise UserError(f"{other.path} and {contents[0].path} have different label schemes and make no ensemble")
        if _described(other)[0].mirror_axes != first_plan.mirror_axes:
            raise UserError(f"{other.path} and {contents[0].path} were trained with other --mirror_axes: no ensemble")
        check_fits(other, first_plan, model=first_model)
    weights = tuple(
        FoldWeights(
            name=each.path.stem if fold is None else f"fold_{fold}",
            fold=fold,
            state_dict={name: value for name, value in each.state_dict.items() if not _is_training_only(name)},
        )
        for (fold, _), each in zip(found, contents)
    )
    mirrored = all(each.mirrored for each in contents)
    return ConfigurationModel(
        source=path, plan=first_plan, model=first_model, folds=weights, mirrored=mirrored,
        calibration=_calibration(path, first_plan),
    )  # fmt: skip


def _calibration(path: Path, plan: Plan) -> Calibration | None:
    """That of a folder of folds, or of the one that a fold lies in; None where there is none of these targets.

    Raises:
        UserError: it is damaged.
    """
    folders = [folder for folder in (path, path.parent) if fold_folders(folder)]
    file = next((folder / CALIBRATION_FILE for folder in folders if (folder / CALIBRATION_FILE).is_file()), None)
    try:
        found = None if file is None else read_json(Calibration, file)
    except UserError as error:
        raise UserError(
            f"{error}; run scripts/cross_validate.py again, which writes it anew, or remove it, and there is no verdict"
        ) from None
    return found if found is not None and found.targets == plan.labels.target_names else None


def _described(checkpoint: CheckpointContents) -> tuple[Plan, ModelConfig]:
    """Plan and network options of a checkpoint.

    Raises:
        UserError: it is one of the NVIDIA reference.
    """
    if checkpoint.plan is None or checkpoint.model is None:
        raise UserError(
            f"{checkpoint.path} is a checkpoint of the NVIDIA reference, which does not say how to prepare a scan; "
            "preprocess the scans and use --data, --dim, --fold and --ckpt_path"
        )
    return checkpoint.plan, checkpoint.model


def build_networks(
    configuration: ConfigurationModel, device: torch.device, acceleration: Acceleration = PLAIN
) -> tuple[DynamicUNet, ...]:
    """One network per fold, in evaluation mode on the device.

    Raises:
        UserError: the weights do not fit the plan.
    """
    # Heads that only training uses are left out.
    model, plan = dataclasses.replace(configuration.model, deep_supervision=False), configuration.plan
    networks = []
    for fold in configuration.folds:
        # Without memory at first: what a plan claims is believed only as far as weights for it are there.
        with torch.device("meta"):
            network = build_network(
                plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model,
                acceleration=acceleration,
            )  # fmt: skip
        source = CheckpointContents(path=configuration.source, state_dict=fold.state_dict, plan=plan, model=model)
        network.load_state_dict(fitting_weights(network, source), assign=True)
        # torch's stubs know no memory format here.
        network.to(device, torch.float32, memory_format=network.memory_format).eval()  # type: ignore[call-overload]
        if acceleration.compiles:
            network.compile(**acceleration.compile_options())
        networks.append(network)
    return tuple(networks)


def flips_warning(configuration: ConfigurationModel) -> str | None:
    """What to say where test-time augmentation is asked of networks that never saw a flipped scan; None if they did."""
    remarks = (
        flips_remark(each.source, mirrored=each.mirrored, plan=each.plan)
        for each in (configuration, configuration.previous)
        if each is not None
    )
    return next(filter(None, remarks), None)


def weight_bytes(configuration: ConfigurationModel) -> int:
    """Memory of the weights of all folds, which networks have in float32."""
    return sum(4 * value.numel() for fold in configuration.folds for value in fold.state_dict.values())


def add_weights(digest: hashlib._Hash, fold: FoldWeights) -> None:
    """Add names and bytes of all weights: networks that were trained again are others."""
    for name, value in sorted(fold.state_dict.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _is_training_only(name: str) -> bool:
    return name.startswith("deep_supervision_heads.")


def _checkpoints(
    path: Path, folds: Sequence[int] | None, which: Checkpoint | None, allow_unfinished: bool
) -> list[tuple[int | None, Path]]:
    """(fold or None, checkpoint file) of everything that `path` means."""
    there = fold_folders(path)
    if not there:
        if folds is not None:
            raise UserError(
                f"--folds: {path} holds a single network, no folders fold_0, fold_1, ...; leave --folds out"
            )
        # A fold by itself is the network that was scored; of a folder of checkpoints the best is taken.
        return [(None, choose_checkpoint(_inside(path), which or recorded_checkpoint(path), FLAG))]
    if folds is not None:
        _require_folds(path, folds, set(there))
        there = {fold: there[fold] for fold in sorted(set(folds))}
    elif missing := missing_folds(path):
        if not allow_unfinished:
            raise _missing_folds(path, missing, [fold for fold in there if fold not in missing])
        there = {fold: folder for fold, folder in there.items() if fold not in missing} or there
    elif skipped := skipped_folds(path):
        # Nothing says how many folds there were; someone may have copied those that are wanted.
        named = ", ".join(f"fold_{fold}" for fold in skipped)
        print(f"warning: {FLAG} {path} has no {named}; the others predict", file=sys.stderr)
    return [
        (fold, choose_checkpoint(_inside(folder), which or recorded_checkpoint(folder), FLAG))
        for fold, folder in there.items()
    ]


def _missing_folds(path: Path, missing: Sequence[int], there: Sequence[int]) -> UserError:
    ways = "train them"
    if there:
        ways += f", or use those that are there: --folds {' '.join(map(str, there))} (or --allow_unfinished)"
    return list_problems(
        f"{FLAG} {path} lacks folds of its cross-validation, or holds no checkpoint for them:",
        [f"fold_{fold}" for fold in missing], advice=f"Make it whole: {ways}.",
    )  # fmt: skip


def _require_finished(folders: Sequence[Path], allow_unfinished: bool) -> None:
    problems = []
    for folder in folders:
        try:
            require_finished(folder, allow_unfinished=allow_unfinished)
        except UserError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise list_problems("interrupted trainings are no models:", problems, advice="Finish them first.")


def _inside(path: Path) -> Path:
    """A results folder's own `checkpoints`, unless the folder holds checkpoints itself."""
    folder = path / "checkpoints"
    own = path.is_dir() and (any(path.glob("epoch=*.ckpt")) or (path / LAST_CHECKPOINT).is_file())
    return folder if folder.is_dir() and not own else path


def _require_folds(source: Path, folds: Sequence[int], there: set[int | None]) -> None:
    missing = sorted(set(folds) - there)
    if missing or not folds:
        numbers = sorted(fold for fold in there if fold is not None)
        known = ", ".join(f"fold_{fold}" for fold in numbers) or "a single network without folds"
        raise list_problems(
            f"--folds asks for what {source} does not have:",
            [f"fold_{fold}" for fold in missing] or ["no fold at all"],
            advice=f"It has {known}.",
        )
