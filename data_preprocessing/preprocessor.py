"""From a scan to the arrays that the network sees; restoration.py goes the way back.

Turn (S, A, R) to the plan's axes, crop to the box of non-zero voxels, normalise, resample to the target spacing, pad
to the patch (plans of earlier versions resample first). Arrays in, arrays out; files are read and written elsewhere.

Shapes: C channels, K classes or regions, D H W the working axes, S A R the axes of the scan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_preprocessing.grid_limit import require_sensible
from data_preprocessing.normalization import chunks, filled_mask, intensity_fault, normalize_channel
from data_preprocessing.resampling import (
    Maps,
    Shape,
    coarse_axis,
    make_maps,
    nearest_map,
    nonzero_box,
    resample_image,
    resample_label,
    resampled_shape,
)
from data_preprocessing.working_axes import WorkingAxes, case_axes, working_axes, working_spacing
from utils.axes import triple
from utils.errors import UserError
from utils.nifti import Volume
from utils.schema import FORMAT_VERSION, CaseMeta, ChannelPlan, Plan, StagePlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseInput:
    """A scan in memory, with or without its label, and what its `CaseMeta` says of where it came from."""

    case: str
    image: Volume
    label: Volume | None
    image_path: str
    label_path: str | None
    source_stamp: str
    plan_stamp: str
    label_digest: str | None = None
    label_stat: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessedCase:
    """What a shard holds: image (C, D, H, W) float32, label (1, D, H, W) uint8 class indices or None.

    `ignore_index` is the class index of voxels that count as nothing, or None.
    """

    image: np.ndarray
    label: np.ndarray | None
    ignore_index: int | None
    meta: CaseMeta


def preprocess_case(files: CaseInput, plan: Plan, *, also_inside: np.ndarray | None = None) -> PreprocessedCase:
    """Crop, normalise, resample and pad one case; its arrays are not changed.

    What is not 0 in `also_inside` (S, A, R) belongs to the mask of `zscore_mask` as well.

    Nothing is interpolated where a scan has the target's grid already, so labels and, up to normalisation, intensities
    are then those of the file. Padding is zero (background in the label) and lies evenly on both sides, the odd voxel
    behind. In 2D only H and W are resampled and padded, and no slice is cut down to the patch.

    Raises:
        UserError: an image without any non-zero voxel, with another number of channels than planned, with intensities
            that cannot be normalised so, or a single slice that lies across those of a 2D plan; a voxel size that
            cannot be; a label of another shape or of values that the plan does not know.
    """
    axes = working_axes(plan, files.image.geometry.affine)
    _check_arrays(files, plan, axes)
    image = axes.view(files.image.array)
    box = nonzero_box(image)
    if box is None:
        raise UserError(f"{files.image_path}: every voxel is zero; replace the file or leave the case out")
    crop = tuple(slice(*side) for side in box)
    image = image[(slice(None), *crop)]
    spacing_mm = working_spacing(plan, files.image.spacing_mm, axes, files.image.geometry)
    target_mm = target_grid_mm(plan.stage, spacing_mm)
    shape = resampled_shape(image.shape[1:], spacing_mm, target_mm, rule=plan.rules.grid_shape)
    require_sensible(image.shape[1:], spacing_mm, shape, target_mm)
    coarse = coarse_axis(spacing_mm, target_mm)
    maps = make_maps(image.shape[1:], shape, cubic=True, coarse=coarse)
    padded, pad_low = padding(shape, plan.stage.patch_size)
    inner = tuple(slice(low, low + n) for low, n in zip(pad_low, shape))

    masked = any(channel.scheme == "zscore_mask" for channel in plan.channels)
    inside = filled_mask(image) if masked else None
    if inside is not None and also_inside is not None:
        inside |= axes.view(also_inside)[crop] != 0
    out = np.zeros((plan.image_channels, *padded), dtype=np.float32)
    for channel, source, target in zip(plan.channels, image, out):
        if plan.normalize_first and not all(axis_map.is_identity for axis_map in maps):
            _normalize_and_resample(source, channel, maps, target[inner], coarse=coarse, inside=inside)
        else:
            resample_image(source, maps, target[inner], coarse=coarse)
            normalize_channel(target[inner], channel, inside=_mask_at(inside, shape))
    if plan.mask_channel:
        _nonzero_mask(image, out[-1][inner])
    meta = CaseMeta(
        version=FORMAT_VERSION, case=files.case, image=files.image_path, label=files.label_path,
        geometry=files.image.geometry, axes=axes.order, flipped=axes.flipped, spacing_mm=spacing_mm,
        original_shape=triple(files.image.array.shape[1 + axis] for axis in axes.order), crop_box=box,
        resampled_shape=shape, pad_low=pad_low, padded_shape=padded, stage=plan.stage.name,
        source_stamp=files.source_stamp, plan_stamp=files.plan_stamp,
        label_digest=files.label_digest, label_stat=files.label_stat,
    )  # fmt: skip
    label = None
    if files.label is not None:
        classes = native_label_classes(files.label, plan, source=files.label_path or files.case)
        label = classes_on_grid(classes, meta, plan.stage)
    return PreprocessedCase(image=out, label=label, ignore_index=plan.labels.ignore_index, meta=meta)


def _normalize_and_resample(
    source: np.ndarray,
    channel: ChannelPlan,
    maps: Maps,
    out: np.ndarray,
    *,
    coarse: int | None,
    inside: np.ndarray | None,
) -> None:
    """Write a channel (D, H, W), normalised on its own grid, into `out` (D', H', W') float32.

    A z-score of the channel's own voxels leaves what is outside, its zeros, at 0. The spline would bring ripples there,
    so each voxel whose nearest one in the scan is outside becomes 0 again. It is within the range to which overshoot is
    cut: that of a volume (or of a slice) which has a zero. The other z-scores are nnU-Net's, which has the ripples.
    """
    # Zeros in a resampled scan are not zeros any more, and would count as tissue; so normalisation comes first.
    normalized = np.array(source, dtype=np.float32, order="C")
    normalize_channel(normalized, channel, inside=inside)
    resample_image(normalized, maps, out, coarse=coarse)
    if channel.scheme == "zscore":
        for plane, inside in zip(out, _nearest_nonzero(source[None], out.shape)):
            np.copyto(plane, 0, where=~inside)


def classes_on_grid(
    classes: np.ndarray, meta: CaseMeta, stage: StagePlan, *, resample: Callable[..., None] = resample_label
) -> np.ndarray:
    """Bring class indices (S, A, R) uint8 of a scan to its preprocessed grid: (1, D, H, W) uint8, background around."""
    target_mm = target_grid_mm(stage, meta.spacing_mm)
    crop = tuple(slice(*side) for side in meta.crop_box)
    cropped = case_axes(meta).view(classes)[crop]
    maps = make_maps(
        cropped.shape, meta.resampled_shape, cubic=False, coarse=coarse_axis(meta.spacing_mm, target_mm)
    )  # fmt: skip
    label = np.zeros((1, *meta.padded_shape), dtype=np.uint8)
    inner = tuple(slice(low, low + n) for low, n in zip(meta.pad_low, meta.resampled_shape))
    resample(cropped, maps, label[0][inner])
    return label


def outside_mask(volume: Volume, meta: CaseMeta) -> np.ndarray:
    """(S, A, R) bool: where within the crop every channel is zero, holes left out; False beyond the crop."""
    outside = np.zeros(volume.array.shape[1:], dtype=bool)
    crop, axes = tuple(slice(*side) for side in meta.crop_box), case_axes(meta)
    np.logical_not(filled_mask(axes.view(volume.array)[(slice(None), *crop)]), out=axes.view(outside)[crop])
    return outside


def _check_arrays(files: CaseInput, plan: Plan, axes: WorkingAxes) -> None:
    shape = files.image.array.shape
    if shape[0] != len(plan.channels):
        raise UserError(f"{files.image_path} has {shape[0]} channels; the plan was made for {len(plan.channels)}")
    across, *in_plane = (shape[1 + axis] for axis in axes.order)
    if plan.stage.dim == 2 and across > 1 and 1 in in_plane:
        lone = axes.order[1 + in_plane.index(1)]
        raise UserError(
            f"{files.image_path} is a single slice, one voxel along {'SAR'[lone]}, and the slices of this plan lie "
            f"across {'SAR'[axes.order[0]]} (superior, anterior, right): the network would see lines. Leave it out, or "
            "use a model of such slices"
        )
    for index, (channel, array) in enumerate(zip(plan.channels, files.image.array)):
        fault = intensity_fault(array, channel.scheme)
        if fault is not None:
            raise UserError(f"{files.image_path}: channel {index} ({channel.name}) {fault}; replace the file")
    if files.label is not None and files.label.array.shape != shape[1:]:
        raise UserError(
            f"{files.label_path} has shape {files.label.array.shape} and its image {shape[1:]} (S, A, R); "
            "they must lie on one grid"
        )


def target_grid_mm(stage: StagePlan, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """The stage's spacing; across the slices of a 2D stage, the case's own."""
    return (*spacing_mm[: 3 - stage.dim], *stage.spacing_mm)


def padding(shape: Sequence[int], patch_size: Sequence[int]) -> tuple[Shape, Shape]:
    """Shape after padding to at least the patch, and how many voxels of it lie in front."""
    smallest = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    padded = triple(max(n, least) for n, least in zip(shape, smallest))
    return padded, triple((total - n) // 2 for total, n in zip(padded, shape))


def _mask_at(inside: np.ndarray | None, shape: Sequence[int]) -> np.ndarray | None:
    """A mask (D, H, W) on a grid of that shape, by nearest neighbour."""
    if inside is None or inside.shape == tuple(shape):
        return inside
    return np.stack(list(_nearest_nonzero(inside[None], shape)))


def _nonzero_mask(image: np.ndarray, out: np.ndarray) -> None:
    """Write 1 where any channel (C, D, H, W) of the scan itself is not zero, 0 elsewhere, by nearest neighbour."""
    for plane, inside in zip(out, _nearest_nonzero(image, out.shape)):
        plane[...] = inside


def _nearest_nonzero(image: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """For each of D' planes (H', W') bool: where any channel (C, D, H, W) is not zero, by nearest neighbour."""
    across, down, right = (nearest_map(n, m).first for n, m in zip(image.shape[1:], shape))
    for source in across:
        yield (image[:, source] != 0).any(axis=0)[np.ix_(down, right)]


def native_label_classes(label: Volume, plan: Plan, *, source: str = "label") -> np.ndarray:
    """Class indices (S, A, R) uint8 of a label's file values; ignored voxels get K.

    Raises:
        UserError: values that the label scheme does not have; `source` is how the message calls the file.
    """
    values, scheme = label.array, plan.labels
    classes = {value: k for k, value in enumerate(scheme.values)}
    if scheme.ignore_value is not None:
        classes[scheme.ignore_value] = scheme.num_classes
    table = np.zeros(256, dtype=np.uint8)
    table[list(classes)] = list(classes.values())
    # Files mostly number their classes 0, 1, 2, ...: such parts are copied as they are.
    unchanged = next(v for v in range(257) if classes.get(v) != v)
    out = np.empty(values.shape, dtype=np.uint8)
    unknown: set[int] = set()
    for part, target in zip(chunks(values), chunks(out)):
        if part.min() >= 0 and part.max() < unchanged:
            target[...] = part
            continue
        unknown |= {int(value) for value in np.unique(part)} - set(classes)
        target[...] = table[part.astype(np.uint8)]
    if unknown:
        raise UserError(
            f"{source} holds the values {sorted(unknown)}; dataset.json knows {sorted(classes)}: "
            "add them to its labels or correct the file"
        )
    return out
