"""The weights that a training starts from: of a checkpoint, of nnU-Net v2, or of an exported zip."""

from __future__ import annotations

from pathlib import Path

from inference.archive import is_archive, read_archive
from inference.nnunet_v2.folder import is_nnunet_v2, nnunet_start
from models.checkpoint import CheckpointContents, read_checkpoint
from utils.errors import UserError
from utils.runs import find_checkpoint
from utils.schema import Plan


def read_start(path: Path, plan: Plan | None = None) -> tuple[CheckpointContents, list[str]]:
    """What `--ckpt_path` means to a training.

    Args:
        path: checkpoint, or folder of checkpoints (the best); checkpoint, folder or exported zip of a model of nnU-Net
            v2; a zip of this program; or an encoder of nnssl. Of several folds the first one counts.
        plan: by which the training's data were prepared; without, nothing is compared.

    Returns:
        The weights, and warnings: what differs between the data that they know and those that come.

    Raises:
        UserError: there is nothing, or it is not safe to read; a zip of several configurations.
    """
    if path.exists() and (path.suffix == ".pth" or is_nnunet_v2(path)):
        start = nnunet_start(path, plan)
    elif path.is_file() and is_archive(path):
        start = _of_archive(path)
    else:
        return read_checkpoint(find_checkpoint(path)), []
    return start, _differences(start, plan)


def features_of_start(path: Path, plan: Plan) -> tuple[int, ...] | None:
    """Features of each level of the network that `--ckpt_path` holds; None where it comes without a plan.

    Args:
        path: as `read_start` takes it.
        plan: of what is to be trained.

    Raises:
        UserError: as `read_start`, or the network has another number of levels than the plan.
    """
    theirs = read_start(path, plan)[0].plan
    if theirs is None:
        return None
    width, levels = tuple(theirs.stage.filters), len(plan.stage.filters)
    if len(width) != levels:
        raise UserError(
            f"the network of --ckpt_path {path} has {len(width)} levels, and here it has {levels}; "
            f"preprocess.py --plan prepares by its plan, and --depth {len(width) - 1} leaves out levels "
            "where the plan has more"
        )
    return width


def _of_archive(path: Path) -> CheckpointContents:
    models = read_archive(path)
    [configuration, *others] = models.configurations
    if others:
        raise UserError(
            f"--ckpt_path {path} holds several configurations ({', '.join(models.names)}); export the one to start from"
        )
    fold = configuration.folds[0]
    return CheckpointContents(
        path=path / fold.name, state_dict=fold.state_dict, plan=configuration.plan, model=configuration.model,
        mirrored=configuration.mirrored,
    )  # fmt: skip


def _differences(start: CheckpointContents, plan: Plan | None) -> list[str]:
    """What the weights have seen otherwise than it is here; labels and names of channels may differ."""
    if start.plan is None or plan is None:
        return []
    there, here = _seen(start.plan), _seen(plan)
    differing = [f"{name} ({there[name]}, here {here[name]})" for name in there if there[name] != here[name]]
    if not differing:
        return []
    return [
        f"the data that {start.path} was trained on were prepared otherwise: {', '.join(differing)}; preprocess.py "
        "--plan prepares by its plan"
    ]


def _seen(plan: Plan) -> dict[str, object]:
    return {
        "patch size": plan.stage.patch_size,
        "spacing (mm)": plan.stage.spacing_mm,
        "normalisation": tuple(channel.scheme for channel in plan.channels),
        "normalised before resampling": plan.normalize_first,
        "order of axes": plan.axes,
        "orientation": plan.orientation,
    }
