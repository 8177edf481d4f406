"""What this program computes around a model's networks, in words for people who write it anew elsewhere.

`model.json` of an exported model holds what applies to it; `tests/inference/engines/alone.py` is written after it.
"""

from __future__ import annotations

from collections.abc import Iterator

from inference.model import Model
from models.windows import LEAST_WEIGHT, SIGMA_SHARE
from utils.schema import Plan

NORMALIZATIONS = {
    "ct": "clip to lower..upper, subtract mean, divide by std (numbers of the channel)",
    "zscore": "mean and population standard deviation of the voxels of the channel that are not 0; these become "
    "(x - mean) / deviation (a deviation below 1e-6 of the mean counts as 1), the others stay 0",
    "zscore_crop": "(x - mean) / population standard deviation of all voxels in the crop",
    "zscore_mask": "the same over the voxels where any channel is not 0, holes filled; the others become 0",
    "rescale_to_0_1": "smallest value to 0, largest to 1",
    "rgb_to_0_1": "divided by 255",
    "none": "unchanged",
}
RULES = {
    ("windows", "fixed"): "along an axis of n voxels and a window of w: starts i * s, the last one n - w; "
    "s = max(1, floor(w * (1 - overlap))), or w where n = w",
    ("windows", "even"): "along an axis of n voxels and a window of w: c = ceil((n - w) / (w * (1 - overlap))) + 1 "
    "starts, round((n - w) / max(c - 1, 1) * i), halves to the even neighbour",
    ("importance", "floor"): "weight of a voxel of a window: the product over axes of exp(-d^2 / (2 s^2)), d its "
    f"distance from (w - 1) / 2, s = {SIGMA_SHARE:g} * w; at least the greater of {LEAST_WEIGHT:g} and the corner's "
    "weight; 1 where a single window holds the volume",
    ("importance", "sampled"): "weight of a voxel of a window: a Gaussian of deviation "
    f"{SIGMA_SHARE:g} * w around voxel w // 2, cut off at 4 deviations, 10 at its largest, as float16; where that is "
    "0, its smallest other value",
    ("sums", "float32"): "sums over windows in float32",
    ("sums", "float16"): "sums over windows, their weights and what comes of them in float16",
    ("average", "probabilities"): "probabilities of each network, then their mean over networks",
    ("average", "logits"): "mean of the networks' logits, resampled to the scan as logits, then probabilities",
    ("grid_shape", "extent"): "voxels after resampling: round(n * mm / target), halves to even",
    ("grid_shape", "ratio"): "voxels after resampling: round(mm / target * n), halves to even",
    ("coarse_first", "scan"): "the way back asks the scan's spacing first whether an axis is coarse",
    ("coarse_first", "plan"): "the way back asks the plan's spacing first whether an axis is coarse",
    ("previous_mask", "highest"): "the first stage's mask is resampled by the largest share, of equal ones the highest "
    "class",
    ("previous_mask", "nearest"): "the first stage's mask is resampled by the largest share, of equal ones that of the "
    "nearest voxel",
}
"""For each choice of `utils.rules`."""
RESAMPLING = (
    "images as by scipy.ndimage.zoom(order=3, mode='nearest', grid_mode=True), cut to the range of the volume (of the "
    "slice, where an axis is coarse); masks (class by class, then the largest) and probabilities linearly between "
    "centres of voxels. An axis is coarse if its spacing is the only largest one, and above 3 times the smallest, in "
    "the scan or else (no spacing of the scan is 3 times another) in the plan: across it each voxel takes the one that "
    "its centre lies in (on a face between two, the one behind). 2D: in plane only. A zscore channel, if normalised "
    "first, is 0 where its nearest voxel in the scan is. What has the plan's number of voxels stays as it is"
)


def describe_formulas(model: Model) -> dict[str, str]:
    """Name of a step -> how it is computed, for a model and its first stages."""
    return dict(pair for plan in _plans(model) for pair in _formulas(plan))


def _plans(model: Model) -> Iterator[Plan]:
    for configuration in model.configurations:
        yield configuration.plan
        if configuration.previous is not None:
            yield configuration.previous.plan


def _formulas(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.orientation == "ras":
        yield "orientation", "voxels along superior, anterior, right (z, y, x in RAS+), then transposed to plan.axes"
    else:
        yield "orientation", "voxels along z, y, x as the file stores them, then transposed to plan.axes"
    yield "crop", "the box of the voxels where any channel is not 0"
    for channel in plan.channels:
        yield f"normalization {channel.scheme}", NORMALIZATIONS[channel.scheme]
    if plan.mask_channel:
        yield (
            "mask channel",
            "appended to the image: 1 where any channel of the scan (its nearest voxel) is not 0 before it is "
            "normalised, else 0",
        )
    yield "resampling", RESAMPLING
    yield "padding", "zeros up to the window on both sides, the odd voxel behind; in 2D within slices only"
    for (name, choice), text in RULES.items():
        if getattr(plan.rules, name) == choice:
            yield f"{name} = {choice}", text
    yield "stitching", "sum of logits * weight over windows, divided by the sum of weights"
    yield (
        "flips",
        "with test-time flips, each window is the mean of its logits over all sets of mirror_axes, flipped back",
    )
    if plan.previous_stage is not None:
        yield (
            "previous",
            "channels after the image's: for each foreground class 1 where the first stage's mask (before "
            "post-processing) has it, cropped and padded as the image",
        )
    yield "post_processing", "largest component only (voxels that touch at a corner are connected); ties are all kept"
