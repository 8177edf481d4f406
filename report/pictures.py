"""Small pictures for a page: the most telling slices of a scan with the mask filled and the label outlined."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from report.layers import Layers, Structure
from report.palette import colour, rgb
from report.volumes import grey_window

HEIGHT = 150
FILL = 0.45
"""Share of the structure's colour in a voxel of the mask."""


def overlay_jpeg(layers: Layers, structures: Sequence[Structure], *, height: int = HEIGHT) -> str:
    """An axial, a coronal and a sagittal slice beside each other, as a data address of a JPEG file."""
    from PIL import Image

    window = layers.window or grey_window(layers.scan)
    cuts = telling_slices(layers.telling)
    planes = [_plane(layers, structures, axis, cuts[axis], window, height) for axis in range(3)]
    gap = np.zeros((height, 4, 3), dtype=np.uint8)
    picture = np.concatenate([planes[0], gap, planes[1], gap, planes[2]], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def telling_slices(mask: np.ndarray) -> tuple[int, int, int]:
    """Per axis the slice with the most voxels of a (S, A, R) mask; the middle one where it has none."""
    cuts = []
    for axis in range(3):
        counts = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
        cuts.append(int(counts.argmax()) if counts.any() else mask.shape[axis] // 2)
    return cuts[0], cuts[1], cuts[2]


def paint(
    grey: np.ndarray, mask: np.ndarray | None, label: np.ndarray | None, structures: Sequence[Structure]
) -> np.ndarray:
    """(H, W, 3) uint8 of a slice: grey values 0..255, masks of values blended in, outlines of the label on top."""
    picture = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
    for number, structure in enumerate(structures):
        shade = np.array(rgb(colour(number)), dtype=np.float32)
        if mask is not None:
            inside = mask == structure.value
            picture[inside] = (1 - FILL) * picture[inside] + FILL * shade
    for number, structure in enumerate(structures):
        if label is not None:
            picture[outline(label == structure.value)] = rgb(colour(number))
    return np.rint(picture).astype(np.uint8)


def outline(inside: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour (by an edge) outside it; beyond the picture is outside."""
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded


def _plane(
    layers: Layers, structures: Sequence[Structure], axis: int, cut: int, window: tuple[float, float], height: int
) -> np.ndarray:
    from PIL import Image

    low, high = window
    # Rows run from inferior (or posterior) upwards in the array, and downwards in a picture.
    scan = np.take(layers.scan, cut, axis)[::-1]
    grey = np.clip((np.nan_to_num(scan) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    row_mm, column_mm = (layers.spacing_mm[other] for other in range(3) if other != axis)
    width = max(1, min(3 * height, round(height * grey.shape[1] * column_mm / (grey.shape[0] * row_mm))))
    grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))

    def enlarged(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        part = Image.fromarray(np.ascontiguousarray(np.take(values, cut, axis)[::-1]))
        return np.asarray(part.resize((width, height), Image.Resampling.NEAREST))

    return paint(grey, enlarged(layers.mask), enlarged(layers.label), structures)
