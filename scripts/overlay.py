"""Draw predicted masks (and labels, where there are some) on top of their scans.

python scripts/overlay.py --images data/Task00_Phantom/imagesTs --preds results/preds_... --output overlay.png
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import UserError, run_cli

if TYPE_CHECKING:
    import numpy as np

    from utils.nifti import Volume


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlayOptions:
    """Draw a predicted mask on top of its scan."""

    images: Path
    """Folder of the scans."""
    preds: Path
    """Folder of the predicted masks."""
    output: Path
    """PNG file to write."""
    lbls: Path | None = None
    """Folder of the labels."""
    case: str | None = None
    """Name of the case (default: the first prediction)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write one picture."""
    options = parse(OverlayOptions, argv, prog="overlay.py")
    from utils.figures import write_overlay
    from utils.nifti import read_image

    predictions = _by_case(options.preds)
    if not predictions or options.case not in (None, *predictions):
        wanted = f"{options.case}.nii.gz" if options.case else "*.nii.gz"
        raise UserError(f"--preds {options.preds} holds no {wanted}; predict with --save_preds first")
    case = options.case or next(iter(predictions))
    images = _by_case(options.images)
    # nnU-Net's name for the first channel; its labels and masks lack the ending.
    image = images.get(case, images.get(f"{case}_0000"))
    if image is None:
        raise UserError(f"--images {options.images} holds no {case}.nii.gz")
    scan = read_image([image])
    label = None
    if options.lbls is not None:
        labels = _by_case(options.lbls)
        if case not in labels:
            raise UserError(f"--lbls {options.lbls} holds no {case}.nii.gz")
        label = _read_on_grid(labels[case], scan, image)
    prediction = _read_on_grid(predictions[case], scan, image)
    write_overlay(options.output, scan.array[0], label, prediction, spacing_mm=scan.spacing_mm)
    print(f"wrote {options.output}")
    return 0


def _by_case(folder: Path) -> dict[str, Path]:
    from utils.scan_names import nifti_files, nifti_stem

    return {nifti_stem(path): path for path in nifti_files(folder)}


def _read_on_grid(path: Path, scan: Volume, image: Path) -> np.ndarray:
    """Values (S, A, R) of a mask that lies on its scan."""
    from utils.nifti import grid_difference_mm, is_same_grid, read_label

    volume = read_label(path, scan.geometry)
    mask, grid = volume.geometry, scan.geometry
    if mask.shape_xyz != grid.shape_xyz:
        raise UserError(
            f"{path} has shape {mask.shape_xyz}, its scan {image} {grid.shape_xyz}; they must be of one scan"
        )
    if not is_same_grid(mask, grid):
        distance_mm = grid_difference_mm(mask.affine, grid.affine, grid.shape_xyz)
        raise UserError(f"{path} lies {distance_mm:.3g} mm off its scan {image}; resample it to the scan's grid")
    return volume.array


if __name__ == "__main__":
    sys.exit(run_cli(main))
