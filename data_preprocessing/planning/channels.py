"""How each channel of a data set is normalised: by its name in dataset.json, and by how much cropping takes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data_preprocessing.normalization import SCHEME_NAMES, scheme_of
from data_preprocessing.planning.presets import MsdTask
from utils.errors import UserError
from utils.schema import ChannelPlan, Fingerprint

LEAST_RELATIVE_SIZE = 0.75
"""nnU-Net v2: where less than this of the median scan is left after cropping, z-scores are those of a mask."""
SCHEME_REASONS = {
    "zscore": "mean and deviation of each scan's own non-zero voxels",
    "zscore_crop": "mean and deviation of all voxels of each scan within its crop",
    "zscore_mask": "mean and deviation of each scan's voxels where any channel is not zero, holes filled; cropping "
    "takes away a quarter of the median scan or more",
    "none": "intensities as they are stored",
    "rescale_to_0_1": "each scan's own smallest and largest intensity",
    "rgb_to_0_1": "divided by 255; a scan with other values than 0 .. 255 is refused",
}

ZscoreRule = Literal["nonzero", "nnunet"]
"""nonzero: the NVIDIA reference's, of each channel's own non-zero voxels. nnunet: nnU-Net v2's, of the whole crop, or
of a mask of all channels where cropping takes much away."""


def choose_zscore(fingerprint: Fingerprint, rule: ZscoreRule) -> str:
    """The scheme of z-scored channels.

    Source: nnU-Net v2, ExperimentPlanner.determine_normalization_scheme_and_whether_mask_is_used_for_norm.
    """
    if rule == "nonzero":
        return "zscore"
    if fingerprint.median_relative_size is None:
        raise UserError("the fingerprint does not say how much cropping takes away; plan anew with --overwrite")
    return "zscore_mask" if fingerprint.median_relative_size < LEAST_RELATIVE_SIZE else "zscore_crop"


def plan_channels(
    names: Sequence[str], fingerprint: Fingerprint, preset: MsdTask | None, zscore: str
) -> tuple[tuple[ChannelPlan, ...], dict[str, str]]:
    """Normalisation of each channel by its name, as in nnU-Net v2: names that it does not know are z-scored.

    Args:
        names: of the channels.
        fingerprint: of the training cases.
        preset: with statistics of its own, or None.
        zscore: the scheme of channels that are z-scored.

    Raises:
        UserError: a CT channel without intensity statistics, or with constant ones.
    """
    plans, reasons = [], {}
    for index, name in enumerate(names):
        scheme = scheme_of(name)
        if scheme in (None, "zscore"):
            plans.append(ChannelPlan(name=name, scheme=zscore))
            known = ", ".join(known for known in SCHEME_NAMES if known != "zscore")
            reason = SCHEME_REASONS[zscore]
            unknown = f"{reason}, as for every name but {known}"
            reasons[f"channel_{index}"] = unknown if scheme is None else f"{name} in dataset.json: {reason}"
        elif scheme != "ct":
            plans.append(ChannelPlan(name=name, scheme=scheme))
            reasons[f"channel_{index}"] = f"{name} in dataset.json: {SCHEME_REASONS[scheme]}"
        elif preset is not None and preset.ct is not None:
            ct = preset.ct
            plans.append(ChannelPlan(name=name, scheme="ct", lower=ct.lower, upper=ct.upper, mean=ct.mean, std=ct.std))
            reasons[f"channel_{index}"] = f"CT: statistics of the NVIDIA reference for {preset.folder}"
        else:
            plans.append(ct_from_fingerprint(name, index, fingerprint))
            reasons[f"channel_{index}"] = "CT: 0.5 and 99.5 percentile, mean and deviation of the foreground"
    return tuple(plans), reasons


def ct_from_fingerprint(name: str, index: int, fingerprint: Fingerprint) -> ChannelPlan:
    """A CT channel with the statistics of the data set's own foreground.

    Raises:
        UserError: there are none, or they are constant.
    """
    if not fingerprint.foreground:
        raise UserError(
            f"channel {index} ({name}) is CT, which is normalised by the intensities of labelled voxels, but "
            "no training case has any. Add labels, or rename the channel in dataset.json to use z-scores."
        )
    statistics = fingerprint.foreground[index]
    lower, upper = statistics.percentile_00_5, statistics.percentile_99_5
    if not (lower < upper and statistics.std > 0):
        raise UserError(
            f"channel {index} ({name}) is CT, but (nearly) all its labelled voxels have the intensity "
            f"{statistics.median:g}. Check that images and labels belong together."
        )
    return ChannelPlan(name=name, scheme="ct", lower=lower, upper=upper, mean=statistics.mean, std=statistics.std)
