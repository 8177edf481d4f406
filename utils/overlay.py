"""A predicted mask on top of its scan, with the label beside it where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.figures import write_overlay
from utils.files import require_not_read, require_own_kind
from utils.nifti import Volume, grid_difference_mm, is_same_grid, read_image, read_label
from utils.scan_names import scan_files, scan_stem


def draw_overlay(path: Path, images: Path, predictions: Path, *, labels: Path | None, case: str | None) -> None:
    """Write a picture of one case.

    Args:
        path: PNG file.
        images: folder of the scans.
        predictions: folder of the masks.
        labels: folder of the labels; None: there are none.
        case: its name; None: the first prediction.

    Raises:
        UserError: files of the case are missing, or do not lie on one grid; `path` is a scan or another file.
    """
    require_own_kind(path, "--output", b"\x89PNG\r\n\x1a\n", "PNG picture")
    masks, scans = _by_case(predictions), _by_case(images)
    if not masks or case not in (None, *masks):
        wanted = f"mask of {case}" if case else "mask"
        raise UserError(f"--preds {predictions} holds no {wanted}; predict with --save_preds first")
    name = case or next(iter(masks))
    # nnU-Net's name for the first channel; its labels and masks lack the ending.
    image = scans.get(name, scans.get(f"{name}_0000"))
    if image is None:
        raise UserError(f"--images {images} holds no scan of that name: {name}")
    files = {} if labels is None else _by_case(labels)
    # Scans may be PNG pictures themselves.
    require_not_read(path, "--output", [*scans.values(), *files.values(), *masks.values()])
    scan = read_image([image])
    label = None
    if labels is not None:
        if name not in files:
            raise UserError(f"--lbls {labels} holds no label of {name}")
        label = _read_on_grid(files[name], scan, image)
    mask = _read_on_grid(masks[name], scan, image)
    write_overlay(path, scan.array[0], label, mask, spacing_mm=scan.spacing_mm)


def _by_case(folder: Path) -> dict[str, Path]:
    return {scan_stem(path): path for path in scan_files(folder)}


def _read_on_grid(path: Path, scan: Volume, image: Path) -> np.ndarray:
    """Values (S, A, R) of a mask that lies on its scan."""
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
