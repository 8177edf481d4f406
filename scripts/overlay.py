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
    from utils.schema import Geometry


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
    from utils.nifti import read_image, read_label

    predictions = sorted(options.preds.glob("*.nii.gz")) if options.preds.is_dir() else []
    if options.case is not None:
        predictions = [path for path in predictions if path.name == f"{options.case}.nii.gz"]
    if not predictions:
        wanted = f"{options.case}.nii.gz" if options.case else "*.nii.gz"
        raise UserError(f"--preds {options.preds} holds no {wanted}; predict with --save_preds first")
    name = predictions[0].name
    scan = read_image([options.images / name])
    label = None
    if options.lbls is not None:
        if not (options.lbls / name).is_file():
            raise UserError(f"--lbls {options.lbls} holds no {name}")
        label = read_label(options.lbls / name)
    prediction = read_label(predictions[0])
    for path, mask in ((predictions[0], prediction), ((options.lbls or Path()) / name, label)):
        if mask is not None:
            _require_same_grid(path, mask.geometry, options.images / name, scan.geometry)
    label = None if label is None else label.array
    write_overlay(options.output, scan.array[0], label, prediction.array, spacing_mm=scan.spacing_mm)
    print(f"wrote {options.output}")
    return 0


def _require_same_grid(path: Path, grid: Geometry, scan: Path, wanted: Geometry) -> None:
    from utils.nifti import GRID_TOLERANCE_MM, grid_difference_mm

    if grid.shape_xyz != wanted.shape_xyz:
        raise UserError(f"{path} has {grid.shape_xyz} voxels and {scan} {wanted.shape_xyz}; choose masks of it")
    distance_mm = grid_difference_mm(grid.affine, wanted.affine, wanted.shape_xyz)
    if distance_mm > GRID_TOLERANCE_MM:
        raise UserError(f"{path} lies {distance_mm:.3g} mm off {scan}; choose masks of that scan")


if __name__ == "__main__":
    sys.exit(run_cli(main))
