"""nnU-Net v2's `plans.json` and `dataset.json` as a `Plan`; what has no equivalent here is refused by its name.

Source: nnU-Net v2.8, plans_handler.py and label_handling.py; older plans are those of versions 2.0 to 2.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inference.nnunet_v2.architecture import read_architecture
from utils.configurations import FIRST_STAGE
from utils.errors import UserError, list_problems
from utils.rules import NNUNET_V2
from utils.schema import FORMAT_VERSION, ChannelPlan, LabelScheme, Plan, Region, StagePlan

READERS = {
    "SimpleITKIO": "stored", "NibabelIO": "stored", "NibabelIOWithReorient": "ras", "SimpleITKIOWithReorient": "ras",
    "NaturalImage2DIO": "stored",
}  # fmt: skip
"""How each of nnU-Net's readers turns a scan."""
NORMALIZATIONS = {
    "CTNormalization": "ct", "NoNormalization": "none", "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}  # fmt: skip
Z_SCORE = "ZScoreNormalization"
RESAMPLING = "resample_data_or_seg_to_shape"
_ONLY = {"preprocessor_name": "DefaultPreprocessor", "label_manager": "LabelManager"}


def resolve(plans: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    """A configuration with all that it inherits.

    Raises:
        UserError: there is no such configuration, or it inherits from itself.
    """
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(each, dict) for each in configurations.values()):
        raise UserError(f"{source} has no configurations; it is no plan of nnU-Net v2")
    merged: dict[str, Any] = {}
    seen: list[str] = []
    current: str | None = name
    while current is not None:
        if current in seen:
            raise UserError(f"{source}: configuration {name} inherits from itself ({' -> '.join([*seen, current])})")
        if current not in configurations:
            raise UserError(f"{source} has no configuration {current}; it has {', '.join(configurations) or 'none'}")
        seen.append(current)
        merged = {**configurations[current], **merged}
        current = configurations[current].get("inherits_from")
    return merged


def read_plan(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    *,
    mirror_axes: Sequence[int] | None = (),
    source: str = "plans.json",
) -> Plan:
    """The plan of one configuration.

    Args:
        plans: content of plans.json, of any version.
        dataset: content of dataset.json.
        configuration: its name there: `2d`, `3d_fullres`, ...
        mirror_axes: axes of the patch along which its network saw flipped scans; None: all of them.
        source: what messages call the plans.

    Raises:
        UserError: no such configuration, something without an equivalent here (all is listed), or contradictions.
    """
    config = resolve(plans, configuration, source)
    try:
        _require_equivalents(plans, config, source)
        network = read_architecture(config, source)
        axes = tuple(int(axis) for axis in plans["transpose_forward"])
        dim = len(config["patch_size"])
        previous = config.get("previous_stage")
        stage = StagePlan(
            name=FIRST_STAGE if config.get("next_stage") else configuration,
            patch_size=tuple(map(int, config["patch_size"])), spacing_mm=tuple(map(float, config["spacing"])),
            batch_size=int(config.get("batch_size", 2)), batch_dice=bool(config.get("batch_dice", False)),
            **network.stage_fields(),
        )  # fmt: skip
        mirrored = None if mirror_axes is None else tuple(sorted(map(int, mirror_axes)))
        name = str(plans.get("dataset_name", "Dataset000"))
        return Plan(
            version=FORMAT_VERSION, task=_task(name), dataset=name, origin="auto",
            channels=read_channels(plans, dataset, config, source), labels=read_labels(dataset, source),
            axes=(axes[0], axes[1], axes[2]), mask_channel=False, stage=stage,
            reasons={"plan": f"of the nnU-Net v2 model {plans.get('plans_name', '')}, configuration {configuration}"},
            previous_stage=None if previous is None else FIRST_STAGE, normalize_first=True,
            mirror_axes=None if mirrored == tuple(range(dim)) else mirrored,
            orientation=READERS[plans["image_reader_writer"]], rules=NNUNET_V2,
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{source}: configuration {configuration} lacks {error}; it is no plan of nnU-Net v2") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{source}: configuration {configuration} cannot be read: {error}") from None


def _task(name: str) -> str:
    number = re.match(r"Dataset(\d{3,})", name)
    return number[1] if number else "000"


def _require_equivalents(plans: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
    problems = []
    reader = plans["image_reader_writer"]
    if reader not in READERS:
        why = " (a TIFF of several pages does not say how far they are apart)" if reader == "Tiff3DIO" else ""
        problems.append(f"image_reader_writer = {reader}{why}; read are scans of {', '.join(READERS)}")
    for key, only in _ONLY.items():
        found = {**plans, **config}.get(key, only)
        if found != only:
            problems.append(f"{key} = {found}")
    for kind, order in (("data", 3), ("probabilities", 1)):
        function = config[f"resampling_fn_{kind}"]
        options = config.get(f"resampling_fn_{kind}_kwargs", {})
        if function != RESAMPLING:
            problems.append(f"resampling_fn_{kind} = {function}")
            continue
        wanted = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        wanted["separate_z_anisotropy_threshold"] = 3
        defaults = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False}
        found = {**defaults, "separate_z_anisotropy_threshold": 3, **options}
        problems += [f"resampling of {kind}: {k} = {v}" for k, v in found.items() if k not in wanted or wanted[k] != v]
    if problems:
        raise list_problems(
            f"{source} asks for what has no equivalent here:", problems,
            advice="Predict with nnU-Net, or plan and train such a model here.",
        )  # fmt: skip


def read_channels(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], config: Mapping[str, Any], source: str
) -> tuple[ChannelPlan, ...]:
    """Names and normalisation of the image channels.

    Raises:
        UserError: a normalisation that is not known here, or numbers of channels that differ.
    """
    names = dataset["channel_names"] if "channel_names" in dataset else dataset["modality"]
    schemes, masked = config["normalization_schemes"], config["use_mask_for_norm"]
    key = "foreground_intensity_properties_"
    statistics = plans.get(f"{key}per_channel") or plans.get(f"{key}by_modality") or {}
    if not len(names) == len(schemes) == len(masked):
        raise UserError(
            f"{source} normalises {len(schemes)} channels, and dataset.json names {len(names)}: "
            f"{', '.join(map(str, names.values()))}"
        )
    channels = []
    for index, (scheme, mask) in enumerate(zip(schemes, masked)):
        name = str(names[str(index)])
        if scheme == Z_SCORE:
            channels.append(ChannelPlan(name=name, scheme="zscore_mask" if mask else "zscore_crop"))
        elif scheme not in NORMALIZATIONS:
            raise UserError(f"{source}: channel {index} ({name}) has {scheme}, which is not known here")
        elif NORMALIZATIONS[scheme] == "ct":
            numbers = statistics[str(index)]
            channels.append(
                ChannelPlan(
                    name=name, scheme="ct", mean=float(numbers["mean"]), std=max(float(numbers["std"]), 1e-8),
                    lower=float(numbers["percentile_00_5"]), upper=float(numbers["percentile_99_5"]),
                )
            )  # fmt: skip
        else:
            channels.append(ChannelPlan(name=name, scheme=NORMALIZATIONS[scheme]))
    return tuple(channels)


def read_labels(dataset: Mapping[str, Any], source: str) -> LabelScheme:
    """The label scheme: classes by rising value, regions in their order there.

    Raises:
        UserError: no background, regions without an order, or values that a mask of bytes cannot hold.
    """
    entries = {name: _values(value) for name, value in dataset["labels"].items() if name != "ignore"}
    if entries.get("background") != (0,):
        raise UserError(f"{source}: dataset.json needs a label background of value 0, got {dataset['labels']}")
    has_regions = any(len(values) > 1 for values in entries.values())
    values = tuple(sorted({value for each in entries.values() for value in each}))
    if values[-1] > 255:
        raise UserError(f"{source}: label {values[-1]} is too large; masks hold values up to 255")
    single = {each[0]: name for name, each in entries.items() if len(each) == 1}
    names = tuple(single.get(value, f"label {value}") for value in values)
    regions: tuple[Region, ...] = ()
    if has_regions:
        if "regions_class_order" not in dataset:
            raise UserError(f"{source}: dataset.json has regions and no regions_class_order")
        index = {value: k for k, value in enumerate(values)}
        parts = [(name, each) for name, each in entries.items() if set(each) != {0}]
        order = [int(value) for value in dataset["regions_class_order"]]
        if len(order) != len(parts) or not set(order) <= set(values) - {0}:
            raise UserError(
                f"{source}: regions_class_order {order} must name a label of dataset.json for each of its "
                f"{len(parts)} regions"
            )
        regions = tuple(
            Region(name=name, classes=tuple(index[value] for value in each), write_class=index[value])
            for (name, each), value in zip(parts, order)
        )
    ignore = dataset["labels"].get("ignore")
    return LabelScheme(
        names=names, values=values, regions=regions, ignore_value=None if ignore is None else int(ignore)
    )  # fmt: skip


def _values(value: Any) -> tuple[int, ...]:
    """The values of a label, a number, or of a region, a list, without repetitions."""
    return tuple(dict.fromkeys(map(int, value))) if isinstance(value, (list, tuple)) else (int(value),)
