"""Plan a data set as another one was planned, so that a network of that one can be trained on."""

from __future__ import annotations

import dataclasses

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.channels import ct_from_fingerprint
from data_preprocessing.planning.planner import refuse_single_slices
from utils.schema import ChannelPlan, Fingerprint, Plan

FOLLOWED = (
    "axes", "spacing_mm", "patch_size", "batch_size", "strides", "kernels", "decoder_kernels", "encoder_convs",
    "decoder_convs", "filters", "rules",
)  # fmt: skip
"""Numbers whose reason is the plan that was followed, by the names that reasons have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowedPlan:
    """The plan of another data set, with as many channels."""

    plan: Plan
    source: str
    """Where it comes from."""
    lacking: tuple[int, ...] = ()
    """CT channels whose statistics it does not say."""


def follow_plan(followed: FollowedPlan, dataset: Dataset, fingerprint: Fingerprint, *, mask_channel: bool) -> Plan:
    """The other plan's grid, network, batch, normalisation and rules; the data set's own name, channels and labels.

    Which axes are flipped is no part of nnU-Net's plans, but of its trainers, and so decided as for every plan made
    here.

    Args:
        followed: the other plan.
        dataset: channels, labels and name.
        fingerprint: of its training cases, for CT channels of which the other plan says no statistics.
        mask_channel: append a channel that marks the non-zero voxels, even if the other plan has none.

    Raises:
        UserError: such a CT channel has no statistics here either, or scans are single slices for a 3D network.
    """
    other = followed.plan
    refuse_single_slices(dataset, fingerprint, dim=other.stage.dim)
    channels: list[ChannelPlan] = []
    reasons = {"plan": f"follows {followed.source}"} | dict.fromkeys(FOLLOWED, "as in the plan that is followed")
    for index, (name, channel) in enumerate(zip(dataset.channels, other.channels, strict=True)):
        if index in followed.lacking:
            channels.append(ct_from_fingerprint(name, index, fingerprint))
            reasons[f"channel_{index}"] = "CT, with this data set's statistics: the plan that is followed has none"
        else:
            channels.append(dataclasses.replace(channel, name=name))
            reasons[f"channel_{index}"] = "as in the plan that is followed"
    return dataclasses.replace(
        other, task=dataset.task, dataset=dataset.name, labels=dataset.labels, channels=tuple(channels),
        reasons=reasons, mask_channel=mask_channel or other.mask_channel, mirror_axes=None,
    )  # fmt: skip
