"""A plan, a data set and a run's record in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from report.markup import Content, Markup, element, join
from report.numbers import NONE, plural, quantile
from report.records import RunFacts, is_number
from report.tables import facts
from utils.schema import Fingerprint, Plan

SCHEMES = {
    "ct": "clipped and scaled by the data set's intensities (CT)",
    "zscore": "mean and deviation of each scan's own voxels",
    "zscore_crop": "mean and deviation of all voxels of each scan's crop",
    "zscore_mask": "mean and deviation of each scan's voxels that are not zero, holes filled",
    "none": "as it is",
    "rescale_to_0_1": "each scan's range brought to 0..1",
    "rgb_to_0_1": "divided by 255",
}

NAMES = {"cpu": "CPU", "gpu": "GPU", "32-true": "float32", "16-mixed": "float16 and float32",
         "bf16-mixed": "bfloat16 and float32"}  # fmt: skip
"""Devices and precisions as a person says them."""
ORIGINS = {"preset": "the task's own numbers", "auto": "the training cases"}


def times(sizes: Sequence[float]) -> str:
    """Sizes along axes, such as `40 × 56 × 40`."""
    return " × ".join(f"{size:.4g}" for size in sizes)


NETWORK_FLAGS = {"model": ("filters", "depth", "min_fmap"), "loader": ("batch_size",)}
"""Flags of main.py that take the place of what was planned; None leaves it to the plan."""


def plan_in_words(plan: Plan | None, run: RunFacts | None = None) -> Markup:
    """What the network sees and is, with the planner's reasons, and the flags of its training that changed that.

    A model's own plan is what it was trained by, flags included; for that of preprocessed data `run` has them.
    """
    if plan is None:
        return element("p", "The preprocessed data and their plan are not where the record says.", class_="none")
    stage, labels = plan.stage, plan.labels
    channels = "; ".join(f"{channel.name}: {SCHEMES[channel.scheme]}" for channel in plan.channels)
    kind = f"{stage.dim}D U-Net of {len(stage.filters)} levels with {', '.join(map(str, stage.filters))} features"
    given = {name: run.option(group, name) for group, names in NETWORK_FLAGS.items() for name in names} if run else {}
    changed = [f"--{name} {_value(value)}" for name, value in given.items() if value is not None]
    sentence = (
        f"{'As planned, a' if changed else 'A'} {kind} looks at patches of {times(stage.patch_size)} voxels, each "
        f"{times(stage.spacing_mm)} mm, {stage.batch_size} at a time, and tells {', '.join(labels.target_names)} from "
        "the background."
    )
    reasons = [element("li", element("b", name), f": {reason}") for name, reason in plan.reasons.items()]
    return join(
        element("p", sentence),
        facts(
            {
                "Changed by flags": "; ".join(changed),
                "Data set": f"{plan.dataset} (task {plan.task})",
                "Channels": channels,
                "Regions": ", ".join(region.name for region in labels.regions),
                "Origin of the plan": plan.reasons.get("plan", ORIGINS[plan.origin]),
            }
        ),
        element("details", element("summary", "Why these numbers"), element("ul", reasons)) if reasons else None,
    )


def data_at_a_glance(fingerprint: Fingerprint | None) -> Markup:
    """Number, sizes, spacings and intensities of the training cases."""
    if fingerprint is None:
        return Markup("")
    shapes, spacings = fingerprint.shapes_after_crop, fingerprint.spacings_mm

    def spread(rows: Sequence[Sequence[float]]) -> str:
        columns = list(zip(*rows))
        middle = times([float(quantile(list(column), 0.5)) for column in columns])
        low, high = (times([float(edge(column)) for column in columns]) for edge in (min, max))
        return middle if low == high else f"median {middle} (from {low} to {high})"

    intensities = [
        f"{each.mean:.4g} ± {each.std:.4g} (median {each.median:.4g}; 0.5 % to 99.5 %: {each.percentile_00_5:.4g} to "
        f"{each.percentile_99_5:.4g})"
        for each in fingerprint.foreground
    ]
    return facts(
        {
            "Cases": plural(len(fingerprint.cases), "case"),
            "Voxels": f"{spread(shapes)}, superior × anterior × right, after the crop",
            "Spacing": f"{spread(spacings)} mm",
            "Foreground intensities": "; ".join(intensities),
        }
    )


def run_record(run: RunFacts | None) -> Markup:
    """Command, time, machine, versions, commit and all options."""
    if run is None:
        return element("p", "There is no run.json, and no log says what was asked for.", class_="none")
    machine = run.environment
    versions = machine.get("versions")
    options = [element("dt", name) + element("dd", _value(value)) for name, value in _flat(run.options)]
    started = "There is no run.json: the run has not come to its end. It was asked for what stands here."
    return join(
        None if run.time else element("p", started, class_="none"),
        facts(
            {
                "Command": element("code", shlex.join(run.command)) if run.command else None,
                "In": element("code", run.working_folder) if run.working_folder else None,
                "Ended": run.time.replace("T", " ").replace("+00:00", " UTC"),
                "Machine": _machine(machine),
                "Device": ", ".join(NAMES.get(str(machine[key]), str(machine[key]))
                                    for key in ("device", "precision", "engine") if machine.get(key)),
                "Peak memory": f"{machine['peak_memory_bytes'] / 1e9:.2f} GB"
                if is_number(machine.get("peak_memory_bytes")) else None,
                "Versions": _versions(machine.get("python"), versions),
                "Commit": element("code", str(machine["commit"])) if machine.get("commit") else None,
            }
        ),
        element("details", element("summary", "All options"), element("dl", map(Markup, options), class_="facts"))
        if options else None,
    )  # fmt: skip


def tiles(values: Mapping[str, Content]) -> Markup:
    """The few numbers that matter most, large."""
    shown = {name: value for name, value in values.items() if value not in (None, "", NONE)}
    each = [element("div", element("b", value), element("span", name), class_="tile") for name, value in shown.items()]
    return element("div", each, class_="tiles")


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    if machine.get("cpu_cores"):
        parts.append(plural(int(machine["cpu_cores"]), "core"))
    if machine.get("gpu"):
        parts.append(f"{machine.get('gpu_count', 1)} × {machine['gpu']}")
    return ", ".join(parts)


def _versions(python: object, versions: object) -> str:
    named = [f"Python {python}"] if python else []
    if isinstance(versions, dict):
        named += [f"{name} {version}" for name, version in versions.items()]
    return ", ".join(named)


def _flat(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in options.items():
        found += _flat(value) if isinstance(value, dict) else [(name, value)]
    return found


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else NONE if value is None else str(value)
