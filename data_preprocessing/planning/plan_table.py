"""A plan for people: each number and why it is what it is."""

from __future__ import annotations

import textwrap

from data_preprocessing.planning.memory import BYTES_PER_VALUE, saved_values
from data_preprocessing.planning.stages import size_text
from utils.rules import NNUNET_V2
from utils.schema import ChannelPlan, Plan

NAME_WIDTH = 11
BLOCK_NAMES = {"plain": "convs", "residual": "blocks"}
"""Of what an encoder level is made."""
LINE_WIDTH = 110
SCHEME_TEXTS = {
    "zscore": "z-score",
    "zscore_crop": "z-score of the whole crop",
    "zscore_mask": "z-score within the non-zero mask",
    "none": "not normalised",
    "rescale_to_0_1": "rescaled to 0 .. 1",
    "rgb_to_0_1": "divided by 255",
}


def plan_table(plan: Plan) -> str:
    """The plan as plain text: names on the left, values on the right, reasons below the values."""
    stage, reasons = plan.stage, plan.reasons
    rows = [
        ("data set", f"{plan.dataset} (task {plan.task}), stage {stage.name}, {_origin_text(plan)}", ""),
        ("axes", _axes_text(plan), "axes"),
        ("spacing", f"{size_text(stage.spacing_mm)} mm", "spacing_mm"),
        ("patch", size_text(stage.patch_size), "patch_size"),
        ("batch", str(stage.batch_size), "batch_size"),
        ("poolings", " ".join(str(sum(step > 1 for step in axis)) for axis in zip(*stage.strides)), ""),
        ("strides", ", ".join(size_text(stride) for stride in stage.strides), "strides"),
        ("kernels", ", ".join(size_text(kernel) for kernel in stage.kernels), "kernels"),
        ("- decoder", ", ".join(size_text(kernel) for kernel in stage.step_kernels), "decoder_kernels"),
        (BLOCK_NAMES[stage.block], " ".join(map(str, stage.level_convs)), "encoder_convs"),
        ("- decoder", f"{' '.join(map(str, stage.step_convs))} convolutions", "decoder_convs"),
        ("features", " ".join(map(str, stage.filters)), "filters"),
        ("memory", _memory_text(plan), ""),
        *((f"channel {i}", _channel_text(channel), f"channel_{i}") for i, channel in enumerate(plan.channels)),
    ]
    if plan.mirror_axes is not None:
        rows.append(("flips", _flips_text(plan), "mirror_axes"))
    if plan.rules == NNUNET_V2:
        rows.append(("prediction", "by nnU-Net v2's rules: windows, averages and the way back to the scan", "rules"))
    if plan.mask_channel:
        rows.append((f"channel {len(plan.channels)}", "mask of the non-zero voxels (--ohe)", ""))
    rows.append(("labels", ", ".join(f"{v} {n}" for n, v in zip(plan.labels.names, plan.labels.values)), ""))
    if plan.labels.regions:
        rows.append(("regions", ", ".join(region.name for region in plan.labels.regions), ""))
    return "\n".join(_row(name, value, reasons.get(key, "")) for name, value, key in rows)


def _row(name: str, value: str, reason: str) -> str:
    lines = [f"{name:<{NAME_WIDTH}}{value}"]
    if reason:
        lines += textwrap.wrap(
            f"({reason})",
            width=LINE_WIDTH,
            initial_indent=" " * (NAME_WIDTH + 2),
            subsequent_indent=" " * (NAME_WIDTH + 3),
        )
    return "\n".join(lines)


def _origin_text(plan: Plan) -> str:
    if "plan" in plan.reasons:
        return plan.reasons["plan"]
    return f"planned as {plan.origin} by {plan.planner}" if plan.planner else f"planned as {plan.origin}"


def _memory_text(plan: Plan) -> str:
    stage = plan.stage
    values = stage.batch_size * saved_values(
        stage, stage.patch_size, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs
    )
    gigabytes = values * BYTES_PER_VALUE / 1e9
    return f"{gigabytes:.2g} GB of activations a batch in fp32, about half with --amp, without weights and workspace"


def _axes_text(plan: Plan) -> str:
    if plan.orientation == "stored":
        return " ".join("zyx"[axis] for axis in plan.axes) + " as stored in the files"
    return " ".join("SAR"[axis] for axis in plan.axes)


def _flips_text(plan: Plan) -> str:
    """The axes that are flipped, by their names in the scan or in its file."""
    in_patch, names = plan.axes[-plan.stage.dim :], "SAR" if plan.orientation == "ras" else "zyx"
    return "along " + " ".join(names[in_patch[axis]] for axis in plan.mirror_axes) if plan.mirror_axes else "none"


def _channel_text(channel: ChannelPlan) -> str:
    if channel.scheme != "ct":
        return f"{channel.name}: {SCHEME_TEXTS[channel.scheme]}"
    limits = f"clip to {channel.lower:.4g} .. {channel.upper:.4g}"
    return f"{channel.name}: {limits}, mean {channel.mean:.4g}, std {channel.std:.4g}"
