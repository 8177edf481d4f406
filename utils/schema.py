"""What the stages of the project know of each other: plan, label scheme, fingerprint, case, folds. JSON on disk.

Every class here is a frozen dataclass of plain numbers, strings and tuples; it checks itself when it is built, is
written as JSON with a `version` (utils/files.py), and is read back with unknown or missing keys refused. Spatial
tuples are in D, H, W order (depth first) of the working axes: the scan brought to RAS+ orientation, read as
(S, A, R), and then permuted by `Plan.axes`. A 2D stage has (H, W) tuples.
"""

from __future__ import annotations

import dataclasses
import math

from utils.geometry import Geometry
from utils.rules import Rules
from utils.stage_plan import UNSAID, StagePlan

__all__ = [
    "FORMAT_VERSION", "PLANNERS", "SCHEMES", "CaseMeta", "ChannelPlan", "ChannelStatistics", "Fingerprint", "Fold",
    "Geometry", "LabelScheme", "Plan", "Region", "Splits", "StagePlan", "check_version",
]  # fmt: skip

FORMAT_VERSION = 1
SCHEMES = ("ct", "zscore", "zscore_crop", "zscore_mask", "none", "rescale_to_0_1", "rgb_to_0_1")
PLANNERS = ("", "resenc_m", "resenc_l", "resenc_xl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """An overlapping target: the voxels whose class is one of `classes` (indices, not file values)."""

    name: str
    classes: tuple[int, ...]
    write_class: int
    """Class index that a voxel of this region gets when regions are turned into a mask; later regions overwrite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """Which values a label file holds and what the network is asked to predict from them.

    The K classes are numbered 0..K-1 in `_y.npy` shards; `values[k]` is the value of class k in NIfTI files. Class 0
    is the background. With `regions` the network has one sigmoid output per region, without them one softmax output
    per class. Voxels of `ignore_value` (in files) carry class index K in shards and enter no loss and no score.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values) or len(self.names) < 2:
            raise ValueError("a label scheme needs a background and at least one class, each with its value")
        if len(set(self.values)) != len(self.values) or self.ignore_value in self.values:
            raise ValueError(f"label values must differ from each other, got {self.values}, ignore {self.ignore_value}")
        if not all(0 <= v <= 255 for v in (*self.values, self.ignore_value or 0)):
            raise ValueError(f"label values must lie in 0..255, got {self.values}")
        if len({region.name for region in self.regions}) != len(self.regions):
            raise ValueError("regions must have different names")
        for region in self.regions:
            if not region.classes or not all(0 < k < self.num_classes for k in (*region.classes, region.write_class)):
                raise ValueError(f"region {region.name!r} must name foreground classes 1..{self.num_classes - 1}")

    @property
    def num_classes(self) -> int:
        """K, background included, the ignored value not."""
        return len(self.names)

    @property
    def ignore_index(self) -> int | None:
        """Class index of ignored voxels in shards (K), or None."""
        return None if self.ignore_value is None else self.num_classes

    @property
    def num_outputs(self) -> int:
        """Channels that the network predicts: R regions (sigmoid) or K classes (softmax, background first)."""
        return len(self.regions) or self.num_classes

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of what is scored: the regions, or the foreground classes."""
        return tuple(r.name for r in self.regions) or self.names[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelPlan:
    """How one image channel is normalised.

    `ct` clips to [lower, upper] and uses mean and std of the data set's foreground. The others ignore the four numbers.
    Z-scores use a case's own voxels: `zscore` those of the channel that are not zero, `zscore_crop` all within the crop
    and `zscore_mask` those where any channel is not zero, holes filled; outside of the mask is 0 then.
    `rescale_to_0_1` uses the case's range, `rgb_to_0_1` divides by 255 and `none` changes nothing.
    """

    name: str
    scheme: str
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"channel {self.name!r}: scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.scheme != "ct":
            return
        statistics = (self.lower, self.upper, self.mean, self.std)
        lower, upper, mean, std = (math.nan if number is None else number for number in statistics)
        if math.isnan(mean) or not std > 0 or not lower < upper:
            raise ValueError(f"channel {self.name!r}: ct needs lower < upper, mean and std > 0, got {statistics}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that preprocessing, training and inference must agree on. Written to `plan.json`."""

    version: int
    task: str
    dataset: str
    origin: str
    """`preset` (the ten MSD tasks' own numbers) or `auto` (planned from the fingerprint)."""
    channels: tuple[ChannelPlan, ...]
    labels: LabelScheme
    axes: tuple[int, int, int]
    """Permutation applied to the (S, A, R) axes so that slices lie in the last two; (0, 1, 2) for axial slices."""
    mask_channel: bool
    """Whether a channel that marks the non-zero voxels is appended (`--ohe`)."""
    stage: StagePlan
    reasons: dict[str, str]
    """For each planned number, why it is what it is; for people."""
    previous_stage: str | None = None
    """Second stage of a cascade: the stage whose prediction the network sees as further channels, one per foreground
    class (`<case>_p.npy` holds its class indices)."""
    normalize_first: bool = False
    """Intensities are normalised before a scan is resampled (nnU-Net); false in plans from before this was a choice."""
    planner: str = dataclasses.field(default="", metadata=UNSAID)
    """Which of nnU-Net's planners for residual encoders chose patch, batch and network; empty for the default one."""
    mirror_axes: tuple[int, ...] | None = dataclasses.field(default=None, metadata=UNSAID)
    """Axes of the patch (0 is its first) that training flips and test-time augmentation may flip; None: all of them."""

    orientation: str = dataclasses.field(default="ras", metadata=UNSAID)
    """What `axes` permutes: `ras`, the (S, A, R) axes; `stored`, the (z, y, x) axes of the file."""
    rules: Rules = dataclasses.field(default_factory=Rules, metadata=UNSAID)
    """Numerical rules in which programs differ."""

    def __post_init__(self) -> None:
        check_version(self.version, "plan")
        if self.orientation not in ("ras", "stored"):
            raise ValueError(f"orientation must be 'ras' or 'stored', got {self.orientation!r}")
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes must be a permutation of (0, 1, 2), got {self.axes}")
        if not self.channels:
            raise ValueError("a plan needs at least one channel")
        if self.origin not in ("preset", "auto"):
            raise ValueError(f"origin must be 'preset' or 'auto', got {self.origin!r}")
        if self.planner not in PLANNERS:
            raise ValueError(f"planner must be one of {', '.join(PLANNERS[1:])} or empty, got {self.planner!r}")
        mirrored = self.mirror_axes or ()
        if len(set(mirrored)) != len(mirrored) or not all(0 <= axis < self.stage.dim for axis in mirrored):
            raise ValueError(f"mirror_axes must be different axes 0..{self.stage.dim - 1}, got {mirrored}")

    @property
    def image_channels(self) -> int:
        """C of the `_x.npy` shards: image channels and, with `--ohe`, the mask."""
        return len(self.channels) + self.mask_channel

    @property
    def previous_channels(self) -> int:
        """One-hot channels of the previous stage's prediction: the foreground classes, or 0 without such a stage."""
        return 0 if self.previous_stage is None else self.labels.num_classes - 1

    @property
    def in_channels(self) -> int:
        """C of what the network sees: those of the shards, then those of the previous stage."""
        return self.image_channels + self.previous_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Foreground intensities of one channel over the training cases."""

    mean: float
    std: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What planning needs to know of a data set. Written to `fingerprint.json`.

    `spacings_mm` and `shapes_after_crop` have one (S, A, R) tuple per training case, in the order of `cases`.
    """

    version: int
    cases: tuple[str, ...]
    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes_after_crop: tuple[tuple[int, int, int], ...]
    foreground: tuple[ChannelStatistics, ...]
    median_relative_size: float | None = dataclasses.field(default=None, metadata=UNSAID)
    """Voxels of a scan after cropping to non-zero ones, as a share of all; None where an earlier version wrote it."""

    def __post_init__(self) -> None:
        check_version(self.version, "fingerprint")
        if not len(self.cases) == len(self.spacings_mm) == len(self.shapes_after_crop) > 0:
            raise ValueError("a fingerprint needs one spacing and one shape per case, and at least one case")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseMeta:
    """How one case got from its file to its shard, so that a prediction finds the way back. `<case>.json`.

    The way: bring to RAS+, read as (S, A, R), permute by `axes`, flip `flipped`, crop to `crop_box`, normalise,
    resample to `resampled_shape`, pad `pad_low` voxels in front and as many behind as `padded_shape` asks for.
    """

    version: int
    case: str
    image: str
    """Absolute path of the image file (the first one where there is one file per channel)."""
    label: str | None
    geometry: Geometry
    axes: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    original_shape: tuple[int, int, int]
    crop_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    resampled_shape: tuple[int, int, int]
    pad_low: tuple[int, int, int]
    padded_shape: tuple[int, int, int]
    stage: str
    source_stamp: str
    """Digest of size and modification time of the source files: a changed source makes the shard stale."""
    plan_stamp: str
    """Digest of the parts of the plan that the shard depends on."""
    label_digest: str | None = None
    """Digest of the bytes of the label file; None without a label, and in shards of an earlier version."""
    label_stat: tuple[int, int] | None = dataclasses.field(default=None, metadata=UNSAID)
    """Its size and time (ns) just before it was read; None as the digest is."""
    flipped: tuple[int, ...] = dataclasses.field(default=(), metadata=UNSAID)
    """Which of the permuted axes are read backwards; only plans whose orientation is `stored` have any."""

    def __post_init__(self) -> None:
        check_version(self.version, f"case {self.case}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """Case names of one cross-validation fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """All folds. Written to `splits.json`; may be edited by hand."""

    version: int
    folds: tuple[Fold, ...]

    def __post_init__(self) -> None:
        check_version(self.version, "splits")


def check_version(version: int, what: str) -> None:
    """Raise ValueError unless this code reads that version of a file."""
    if version != FORMAT_VERSION:
        raise ValueError(f"{what} has format version {version}; this program reads version {FORMAT_VERSION}")
