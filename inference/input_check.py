"""What of a new scan its model has never seen in training: named, never refused.

Compared is what networks see, the prepared image, and how the scan lies in its file. What can be told: voxel size and
field of view, orientation and handedness of the file, channels without content, intensities and texture (noise, blur,
inversion) outside of the range of all training scans, and structures that lie the other way round than in every
training scan. What cannot: a mirrored scan of structures that are symmetric, a wrong scan that looks like the right
ones, or which of two explanations is true.

Shapes: C channels, D H W the preprocessed grid; S A R the axes of the scan.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from nibabel.orientations import aff2axcodes

from data_preprocessing.restoration import native_shape, without_padding
from utils.axes import triple
from utils.nifti import working_grid
from utils.schema import CaseMeta, LabelScheme, Plan

Triple = tuple[float, float, float]
AXES = ("S", "A", "R")
SIDES = ("top and bottom", "front and back", "left and right")
"""What a flip along each of `AXES` swaps."""
FEATURES = {
    "low": "its dark end (1 %)", "middle": "its median", "high": "its bright end (99 %)", "texture": "its texture",
}  # fmt: skip
SAMPLED_VOXELS = 1 << 18
"""Of about as many voxels of a channel its look is taken."""
SPACING_FACTOR = 1.25
"""Voxels this much larger or smaller than all of training are named."""
FAR_SPACING_FACTOR = 2.0
"""Where only the plan's voxel size is known: scans vary round it."""
MOST_CLASSES = 8
"""Pairs of so many classes are looked at for flips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Of a number over the training scans."""

    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """The smallest range that holds all of them."""
        return cls(least=min(values), most=max(values))

    def holds(self, value: float, *, margin: float) -> bool:
        """Whether a value lies inside, or outside by less than `margin` of the width."""
        room = margin * (self.most - self.least) + 1e-6 * max(abs(self.least), abs(self.most))
        return self.least - room <= value <= self.most + room


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanLook:
    """What a scan looks like: voxel size and size in mm along S, A, R, axes of the file, and C channels.

    A channel is feature -> number, on normalised intensities; empty for one without content.
    """

    spacing_mm: Triple
    extent_mm: Triple
    orientation: str
    channels: tuple[dict[str, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputReference:
    """What the training scans looked like, and how the structures of their masks lie to each other.

    Attributes:
        cases: how many.
        spacing_mm: voxel sizes along S, A, R.
        extent_mm: sizes likewise.
        orientations: axes of the files, such as `RAS`.
        channels: feature -> range.
        sides: axis (of `AXES`) -> what is on one side in every scan -> its range, never round 0; see `side_values`.
    """

    cases: int
    spacing_mm: tuple[Range, Range, Range]
    extent_mm: tuple[Range, Range, Range]
    orientations: tuple[str, ...]
    channels: tuple[dict[str, Range], ...]
    sides: dict[str, dict[str, Range]] = dataclasses.field(default_factory=dict)

    @property
    def margin(self) -> float:
        """How far outside of a range a scan may be, as a share of its width: a range of few scans is too narrow."""
        return 0.1 + 2 / self.cases


def look_at(image: np.ndarray, meta: CaseMeta, plan: Plan) -> ScanLook:
    """The look of a prepared image (C, D, H, W) float32; padding and the channel of --ohe are left out."""
    channels = image[(slice(len(plan.channels)), *without_padding(meta))]
    _, spacing = working_grid(meta.geometry.shape_xyz, np.array(meta.geometry.affine))
    return ScanLook(
        spacing_mm=spacing, extent_mm=triple(n * mm for n, mm in zip(native_shape(meta), spacing)),
        orientation="".join(aff2axcodes(np.array(meta.geometry.affine))),
        channels=tuple(_channel_look(channel) for channel in channels),
    )  # fmt: skip


def _channel_look(channel: np.ndarray) -> dict[str, float]:
    """Quantiles of the voxels that are not 0, and how much neighbours in a plane differ; see `SAMPLED_VOXELS`."""
    planes = channel[:: max(1, round(channel.size / SAMPLED_VOXELS))]
    if not np.ptp(planes):
        return {}
    content = planes != 0
    values = planes[content]
    low, middle, high = np.quantile(values, (0.01, 0.5, 0.99)).tolist()
    both = content[..., 1:] & content[..., :-1]
    steps = np.abs(np.diff(planes, axis=-1))[both]
    spread = max(float(values.std()), 1e-6)
    texture = float(steps.mean()) / spread if steps.size else 0.0
    return {"low": low, "middle": middle, "high": high, "texture": texture}


def reference_of(looks: Sequence[ScanLook], sides: Sequence[Mapping[str, Triple]]) -> InputReference:
    """What some scans (at least one) looked like, and where structures of their masks lay (`side_values`)."""

    def ranges(values: Callable[[ScanLook], Triple]) -> tuple[Range, Range, Range]:
        return triple(Range.of(column) for column in zip(*map(values, looks)))

    channels = []
    for each in zip(*(look.channels for look in looks)):
        there = [channel for channel in each if channel]
        channels.append({name: Range.of([one[name] for one in there]) for name in FEATURES if there})
    return InputReference(
        cases=len(looks), spacing_mm=ranges(lambda look: look.spacing_mm),
        extent_mm=ranges(lambda look: look.extent_mm),
        orientations=tuple(sorted({look.orientation for look in looks})), channels=tuple(channels),
        sides=_always_on_one_side(sides),
    )  # fmt: skip


def _always_on_one_side(sides: Sequence[Mapping[str, Triple]]) -> dict[str, dict[str, Range]]:
    found: dict[str, dict[str, Range]] = {axis: {} for axis in AXES}
    for name in dict.fromkeys(name for each in sides for name in each):
        values = [each[name] for each in sides if name in each]
        for axis, column in zip(AXES, zip(*values)):
            spread = Range.of(column)
            if len(column) > 1 and (spread.least > 0 or spread.most < 0):
                found[axis][name] = spread
    return found


def side_values(classes: np.ndarray, spacing_mm: Sequence[float], labels: LabelScheme) -> dict[str, Triple]:
    """Along S, A, R: from the middle of the scan to that of each class, and from class to class, in mm.

    Args:
        classes: (S, A, R) class indices.
        spacing_mm: voxel size along S, A, R.
        labels: names of the classes.
    """
    places, centres = np.nonzero(classes), {}
    found = classes[places]
    counts = np.bincount(found, minlength=labels.num_classes)
    sums = [np.bincount(found, weights=axis, minlength=labels.num_classes) for axis in places]
    for k, name in enumerate(labels.names[1 : MOST_CLASSES + 1], start=1):
        if counts[k]:
            centres[name] = np.array([total[k] / counts[k] for total in sums]) * spacing_mm
    middle = (np.array(classes.shape) - 1) / 2 * spacing_mm
    values = {f"{name} from the middle": centre - middle for name, centre in centres.items()}
    for (first, a), (second, b) in itertools.combinations(centres.items(), 2):
        values[f"{first} from {second}"] = a - b
    return {name: triple(float(number) for number in value) for name, value in values.items()}


def check_scan(look: ScanLook, plan: Plan, reference: InputReference | None) -> list[str]:
    """Remarks on a scan, one sentence each; none for one like those of training."""
    names = [channel.name for channel in plan.channels]
    remarks = [
        f"channel {name} is constant: nothing is in it; is it missing?"
        for name, channel in zip(names, look.channels) if not channel
    ]  # fmt: skip
    if reference is None:
        return remarks + _check_against_plan(look, plan)
    remarks += _check_grid(look, reference)
    for name, channel, ranges in zip(names, look.channels, reference.channels):
        for feature, value in channel.items():
            if feature in ranges and not ranges[feature].holds(value, margin=reference.margin):
                remarks.append(_intensity_remark(name, feature, value, ranges[feature]))
    return remarks


def _check_grid(look: ScanLook, reference: InputReference) -> list[str]:
    remarks = []
    for axis, value, known in zip(AXES, look.spacing_mm, reference.spacing_mm):
        if not known.least / SPACING_FACTOR <= value <= known.most * SPACING_FACTOR:
            remarks.append(f"voxels of {value:.3g} mm along {axis}; training had {_range(known)} mm")
    for axis, value, known in zip(AXES, look.extent_mm, reference.extent_mm):
        if not known.holds(value, margin=reference.margin):
            remarks.append(f"a field of view of {value:.4g} mm along {axis}; training had {_range(known)} mm")
    if look.orientation not in reference.orientations:
        seen = ", ".join(reference.orientations)
        other = all(is_left_handed(look.orientation) != is_left_handed(each) for each in reference.orientations)
        why = "; none had this handedness: if the header is wrong, left and right are swapped" if other else ""
        remarks.append(f"its axes are stored as {look.orientation}, training files had {seen}{why}")
    return remarks


def _intensity_remark(name: str, feature: str, value: float, known: Range) -> str:
    if feature == "texture":
        kind = "rougher (noise?)" if value > known.most else "smoother (blurred?)"
        return f"channel {name} is {kind} than in training: {value:.3g}, there {_range(known)}"
    return f"channel {name}: {FEATURES[feature]} is {value:.3g} after normalisation, in training {_range(known)}"


def _check_against_plan(look: ScanLook, plan: Plan) -> list[str]:
    """Of a model that says nothing of its training scans: only the voxel size that its networks see."""
    if plan.stage.dim != 3 or plan.orientation != "ras":
        return []
    remarks = []
    for axis, target_mm in zip(plan.axes, plan.stage.spacing_mm):
        factor = look.spacing_mm[axis] / target_mm
        if not 1 / FAR_SPACING_FACTOR <= factor <= FAR_SPACING_FACTOR:
            sizes = f"{look.spacing_mm[axis]:.3g} mm along {AXES[axis]}, the model works at {target_mm:.3g} mm"
            remarks.append(f"voxels of {sizes}")
    return remarks


def check_sides(values: Mapping[str, Triple], reference: InputReference | None) -> list[str]:
    """Whether most of what lies on one side in every training scan lies mirrored in this one, axis by axis."""
    remarks = []
    for index, axis in enumerate(AXES):
        known = {} if reference is None else reference.sides.get(axis, {})
        there = [name for name in known if name in values]
        mirrored = [name for name in there if _is_mirrored(values[name][index], known[name])]
        if there and len(mirrored) > len(there) / 2:
            named = ", ".join(mirrored[:3])
            remarks.append(f"{SIDES[index]} look swapped: {named} the other way round than in training")
    return remarks


def _is_mirrored(value: float, known: Range) -> bool:
    return value * known.least < 0 and known.least <= -value <= known.most


def is_left_handed(orientation: str) -> bool:
    """Whether axes such as `LAS` make a left-handed system; radiological files do, and that is no fault by itself."""
    order = [{"R": 0, "L": 0, "A": 1, "P": 1}.get(letter, 2) for letter in orientation]
    swaps = sum(order[a] > order[b] for a, b in itertools.combinations(range(3), 2))
    return (swaps + sum(letter in "LPI" for letter in orientation)) % 2 == 1


def _range(known: Range) -> str:
    return f"{known.least:.3g}" if math.isclose(known.least, known.most) else f"{known.least:.3g} to {known.most:.3g}"
