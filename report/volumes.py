"""Scans made small enough for a page: cropped to what matters, 16 or 8 bits, coarser if need be; gzip and base64.

Levels are tried one after the other, the best one first, until a case fits into its share of the page.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip

import nibabel as nib
import numpy as np

from report.layers import Layers

FOCUS_MARGIN_MM = 25.0
"""What is left around mask and label where the whole field of view is too large."""

MOST_VOXELS = 16_000_000
"""What a browser without a graphics card still draws within seconds; each takes several bytes of graphics memory."""
ESTIMATE_ERROR = 1.3
"""How many times its share a level may seem to need and still be tried."""
_GZIP_LEVEL = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """How a scan is reduced."""

    focus: bool
    """Only the surroundings of mask and label, not all of the body."""
    bits: int
    step: int
    """Every how many voxels one is kept."""

    def describe(self, margin_mm: float = FOCUS_MARGIN_MM) -> str:
        """For the viewer, in words; empty where nothing was lost."""
        parts = [f"cropped to {margin_mm:g} mm around mask and label"] if self.focus else []
        parts += ["256 grey values"] if self.bits == 8 else []
        parts += [f"every {'second' if self.step == 2 else f'{self.step}th'} voxel"] if self.step > 1 else []
        return ", ".join(parts)


LEVELS = (
    Level(focus=False, bits=16, step=1), Level(focus=False, bits=8, step=1), Level(focus=True, bits=16, step=1),
    Level(focus=True, bits=8, step=1), Level(focus=True, bits=8, step=2), Level(focus=True, bits=8, step=4),
    Level(focus=True, bits=8, step=8),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedCase:
    """NIfTI files of a case as base64 of gzip: `scan`, and those of `mask`, `label`, `difference` that there are."""

    files: dict[str, str]
    window: tuple[float, float]
    """Intensities shown as black and as white."""
    reduced: str
    other_channels: tuple[tuple[str, tuple[float, float]], ...] = ()
    """File and window of each channel after the first, as far as there was room."""

    @property
    def num_bytes(self) -> int:
        """Room that it takes in a page."""
        return sum(map(len, [*self.files.values(), *(file for file, _ in self.other_channels)]))


def pack(layers: Layers, most_bytes: float) -> PackedCase | None:
    """The case at the best level that fits and that a browser draws; None where none does."""
    previous: tuple[tuple[int, ...], int] | None = None
    for level in LEVELS:
        box = field_of_interest(layers, focus=level.focus)
        part = tuple(slice(cut.start, cut.stop, level.step) for cut in box)
        shape = layers.scan[part].shape
        # A smaller level that changes nothing is not tried.
        if (shape, level.bits) == previous:
            continue
        previous = (shape, level.bits)
        if np.prod(shape) > MOST_VOXELS or _estimate(layers, part, level) > most_bytes * ESTIMATE_ERROR:
            continue
        packed = _pack_level(layers, part, level)
        if packed.num_bytes <= most_bytes:
            return _with_other_channels(packed, layers, part, level, most_bytes)
    return None


def field_of_interest(layers: Layers, *, focus: bool) -> tuple[slice, slice, slice]:
    """Box of the voxels that are not empty background, or of mask and label with a margin."""
    marked = layers.marked
    if focus and marked.any():
        return _box(marked, [FOCUS_MARGIN_MM / size for size in layers.spacing_mm])
    body = layers.scan > layers.scan.min()
    body |= marked
    return _box(body, (1, 1, 1)) if body.any() else _whole(layers.scan.shape)


def grey_window(scan: np.ndarray) -> tuple[float, float]:
    """Intensities between which grey values lie: what is brighter or darker than almost all voxels is left out."""
    finite = scan[np.isfinite(scan)]
    step = max(1, finite.size // 500_000)
    low, high = np.percentile(finite[::step], (0.5, 99.5)).tolist() if finite.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _box(mask: np.ndarray, margins: tuple[float, ...] | list[float]) -> tuple[slice, slice, slice]:
    cuts = []
    for axis, margin in enumerate(margins):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = int(inside[0] - margin), int(inside[-1] + margin) + 1
        cuts.append(slice(max(0, low), min(mask.shape[axis], high)))
    return cuts[0], cuts[1], cuts[2]


def _whole(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _pack_level(layers: Layers, part: tuple[slice, ...], level: Level) -> PackedCase:
    scan = np.nan_to_num(layers.scan[part], posinf=0.0, neginf=0.0)
    window = grey_window(scan)
    values, slope, intercept = quantise(scan, level.bits, window)
    affine = _affine_of(layers, part, level)
    files = {"scan": _nifti(values, affine, slope, intercept)}
    for name in ("mask", "label", "difference"):
        array = getattr(layers, name)
        if array is not None:
            files[name] = _nifti(array[part], affine, 1.0, 0.0)
    return PackedCase(files=files, window=layers.window or window, reduced=level.describe())


def _with_other_channels(
    packed: PackedCase, layers: Layers, part: tuple[slice, ...], level: Level, most_bytes: float
) -> PackedCase:
    """Channels after the first in 256 grey values, as many as find room; the viewer says which are left out."""
    found: list[tuple[str, tuple[float, float]]] = []
    room = most_bytes - packed.num_bytes
    for channel in layers.other_channels:
        scan = np.nan_to_num(channel[part], posinf=0.0, neginf=0.0)
        window = grey_window(scan)
        values, slope, intercept = quantise(scan, 8, window)
        file = _nifti(values, _affine_of(layers, part, level), slope, intercept)
        if len(file) > room:
            break
        room -= len(file)
        found.append((file, window))
    words = [packed.reduced] if packed.reduced else []
    if found:
        words.append("256 grey values in the channels after the first")
    if len(found) < len(layers.other_channels):
        words.append(f"{len(found) + 1} of {len(layers.other_channels) + 1} channels")
    return dataclasses.replace(packed, other_channels=tuple(found), reduced=", ".join(words))


def _affine_of(layers: Layers, part: tuple[slice, ...], level: Level) -> np.ndarray:
    affine = layers.affine.copy()
    corner = np.array([part[axis].start for axis in (2, 1, 0)], dtype=float)
    affine[:3, 3] += affine[:3, :3] @ corner
    affine[:3, :3] *= level.step
    return affine


def _estimate(layers: Layers, part: tuple[slice, ...], level: Level) -> float:
    """About how many bytes a page would need, from the planes in the middle: packing a large scan takes seconds."""
    scan = layers.scan[part]
    planes = max(1, len(scan) // 16)
    first = (len(scan) - planes) // 2
    sample = np.nan_to_num(scan[first : first + planes], posinf=0.0, neginf=0.0)
    values, _, _ = quantise(sample, level.bits, grey_window(sample))
    return len(gzip.compress(values.tobytes(), _GZIP_LEVEL)) * 4 / 3 * len(scan) / planes


def quantise(scan: np.ndarray, bits: int, window: tuple[float, float]) -> tuple[np.ndarray, float, float]:
    """Whole numbers of 8 or 16 bits with the slope and intercept that give the intensities back.

    With 16 bits whole numbers that fit stay what they are; with 8 bits intensities outside the window are clipped.
    """
    low, high = float(scan.min()), float(scan.max())
    if bits == 16:
        if low >= -32768 and high <= 32767 and bool((scan == np.rint(scan)).all()):
            return scan.astype(np.int16), 1.0, 0.0
        slope = (high - low) / 65535 or 1.0
        return np.rint((scan - low) / slope - 32768).astype(np.int16), slope, low + 32768 * slope
    low, high = window
    slope = (high - low) / 255
    return np.rint((np.clip(scan, low, high) - low) / slope).astype(np.uint8), slope, low


def _nifti(array: np.ndarray, affine: np.ndarray, slope: float, intercept: float) -> str:
    """(S, A, R) as a file whose axes are R, A, S."""
    image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0)).decode("ascii")
