"""Mean probabilities of single targets as maps on the grid of a scan: `soft_<target>/<case>.nii.gz`, float32.

They have folders of their own, so that no map is taken for a mask. Post-processing plays no part.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.nifti import write_volume
from utils.predictions import working_view
from utils.runs import STAMPS, prepare_folder
from utils.schema import Geometry, LabelScheme

SOFT_ENDING = ".nii.gz"


def soft_folders(output: Path, targets: Sequence[str] | None, labels: LabelScheme) -> dict[int, Path]:
    """Output channel of each target -> the folder of its maps; of all targets where none is named, of none for None.

    Raises:
        UserError: the model has no such target, or the maps of two would be one file.
    """
    if targets is None:
        return {}
    unknown = [name for name in targets if name not in labels.target_names]
    if unknown:
        raise UserError(f"--save_soft {' '.join(unknown)}: the model's targets are {', '.join(labels.target_names)}")
    first = 0 if labels.regions else 1
    found: dict[str, str] = {}
    for name in dict.fromkeys(targets or labels.target_names):
        folder = "soft_" + re.sub(r"[^\w.+-]", "_", name)
        if folder in found:
            raise UserError(
                f"--save_soft: the maps of {found[folder]!r} and {name!r} would both go to {folder}/; name one of them"
            )
        found[folder] = name
    return {first + labels.target_names.index(name): output / folder for folder, name in found.items()}


def soft_files(output: Path, case: str) -> list[Path]:
    """The maps of a case that are there, of all targets."""
    return sorted(output.glob(f"soft_*/{glob.escape(case)}{SOFT_ENDING}"))


def write_soft(
    folders: dict[int, Path], case: str, probabilities: np.ndarray, geometry: Geometry, name: Callable[[Path], Path]
) -> None:
    """Write the maps of a case from its probabilities (K, z, y, x), each where `name` of its path says.

    Raises:
        UserError: a file cannot be written.
    """
    for channel, folder in folders.items():
        prepare_folder(folder, "--output")
        values = np.array(working_view(probabilities[channel], geometry.affine), dtype=np.float32)
        write_volume(name(folder / f"{case}{SOFT_ENDING}"), values, geometry)


def soft_names(masks: Path) -> set[str]:
    """Names of the folders of maps in a folder of masks that was predicted here."""
    return {path.name for path in masks.glob("soft_*/")} if (masks / STAMPS).is_file() else set()
