"""A model's networks in another form, in a folder with `model.json`: everything around them that makes masks of scans.

Nothing of the folder is there unless every network has shown that it computes what torch computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from inference.configuration import ConfigurationModel, FoldWeights
from inference.decided import NETWORKS_KIND
from inference.engines.agreement import Run, check_runtime
from inference.engines.cache import plain_network
from inference.engines.conversion import INPUT, OPSET, OUTPUT, input_shape, write_compiled, write_onnx, write_program
from inference.engines.formulas import describe_formulas
from inference.engines.runtimes import OnnxRuntimeNetwork
from inference.engines.scan_check import ScanCheck
from inference.model import Model, configuration_name
from models.windows import LEAST_WEIGHT, SIGMA_SHARE
from utils.errors import UserError
from utils.extras import optional_import
from utils.files import new_folder, to_dict, write_json
from utils.nifti import Volume
from utils.schema import FORMAT_VERSION, Plan

DESCRIPTION = "model.json"
MOST_WINDOWS = 4
"""What an engine of TensorRT is built for; more at a time are not faster by much."""
NetworkForm = Literal["onnx", "torch-export", "aot-inductor"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Form:
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Path, nn.Module, Plan], None]
    load: Callable[[Path], Run]


FORMS: Mapping[NetworkForm, _Form] = {
    "onnx": _Form(
        suffix=".onnx", packages=("torch", "onnx", "onnxscript", "onnxruntime"), write=write_onnx,
        load=lambda path: OnnxRuntimeNetwork(path, torch.get_num_threads()),
    ),
    "torch-export": _Form(
        suffix=".pt2", packages=("torch",), write=write_program, load=lambda path: torch.export.load(path).module()
    ),
    "aot-inductor": _Form(
        suffix=".pt2", packages=("torch",), write=write_compiled,
        load=lambda path: torch._inductor.aoti_load_package(str(path)),
    ),
}  # fmt: skip
STEPS = (
    "turn the scan as plan.orientation and plan.axes say, crop to non-zero voxels, normalise each channel by its "
    "scheme, resample to plan.stage.spacing_mm (first normalise, then resample, where plan.normalize_first)",
    "pad to the window with zeros; put windows through each network; add up its logits with the weights of window, and "
    "divide by the sum of weights",
    "softmax over classes, or sigmoid of each region; mean over networks (of logits where plan.rules.average says so)",
    "a second stage sees the mask of the first one (previous) as further channels, one per foreground class",
    "resample to the scan's grid, outside of the crop is background; mean over configurations; largest probability, or "
    "regions above 0.5 in their order; values of files are plan.labels.values; post_processing",
)
"""From a scan to its mask, for people; this program's own code is the reference."""


@dataclasses.dataclass(frozen=True)
class _Written:
    """A line for each network and, if a scan is to be computed, what does it; second stages come before first ones."""

    lines: list[str]
    runs: list[Run] | None


def export_networks(
    target: Path, model: Model, form: NetworkForm, *, license_note: str, scan: tuple[Volume, str] | None = None
) -> list[str]:
    """Write the networks of all configurations and folds, and `model.json`, whole or not at all.

    Args:
        target: the new folder.
        model: what is exported.
        form: of the networks.
        license_note: on what the weights may be used for.
        scan: a scan and its name, of which the networks must make the mask that torch makes.

    Returns:
        A line for each network: its file in the folder, and how it agrees with torch.

    Raises:
        UserError: a package or a compiler is missing, or a network in the new form computes something else.
    """
    for package in FORMS[form].packages:
        optional_import(package, extra="onnx", purpose=f"--format {form}")
    if form == "aot-inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--format aot-inductor compiles, and finds no C++ compiler: install g++, or set CXX to one")
    check = None if scan is None else ScanCheck(model, *scan)
    written = _Written([], None if check is None else [])
    with new_folder(target) as folder:
        several = len(model.configurations) > 1
        described = [
            _write_configuration(folder, name if several else "", configuration, form, written)
            for name, configuration in zip(model.names, model.configurations)
        ]
        description = _describe(model, form, described, license_note)
        if check is not None and written.runs is not None:
            agreement = check.compare(written.runs)
            description["agreement_on_a_scan"] = to_dict(agreement)
            written.lines.append(f"{check.name}: {agreement.describe()}")
        write_json(description, folder / DESCRIPTION)
    return written.lines


def trtexec_commands(target: Path, model: Model) -> list[str]:
    """What builds TensorRT engines of an exported ONNX folder on a machine with a GPU: a line for each network."""
    several, commands = len(model.configurations) > 1, []
    for name, configuration in zip(model.names, model.configurations):
        for prefix, each in _stages(name if several else "", configuration):
            shape = "x".join(map(str, input_shape(each.plan)))
            shapes = " ".join(
                f"--{kind}Shapes={INPUT}:{count}x{shape}" for kind, count in
                (("min", 1), ("opt", MOST_WINDOWS), ("max", MOST_WINDOWS))
            )  # fmt: skip
            for fold in each.folds:
                path = target / prefix / f"{fold.name}.onnx"
                files = (f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}")
                commands.append(f"trtexec {shlex.join(files)} {shapes}")
    return commands


def _stages(prefix: str, configuration: ConfigurationModel) -> list[tuple[str, ConfigurationModel]]:
    """A configuration, and the first stage of a cascade, with their folders."""
    first = configuration.previous
    return [(prefix, configuration), *([] if first is None else [(f"{prefix}/previous".lstrip("/"), first)])]


def _write_configuration(
    root: Path, prefix: str, configuration: ConfigurationModel, form: NetworkForm, written: _Written
) -> dict[str, Any]:
    """Write the networks of a configuration and of its first stage; returns what `model.json` says of them."""
    first, *others = [
        _write_networks(root, folder, each, form, written) for folder, each in _stages(prefix, configuration)
    ]
    return {**first, "previous": others[0] if others else None}


def _write_networks(
    root: Path, prefix: str, configuration: ConfigurationModel, form: NetworkForm, written: _Written
) -> dict[str, Any]:
    plan = configuration.plan
    (root / prefix).mkdir(parents=True, exist_ok=True)
    described = [_write_network(root, prefix, configuration, fold, form, written) for fold in configuration.folds]
    return {
        "configuration": configuration_name(plan), "networks": described,
        "input": {"name": INPUT, "type": "float32", "shape": ["windows", *input_shape(plan)]},
        "output": {
            "name": OUTPUT, "type": "float32", "shape": ["windows", plan.labels.num_outputs, *plan.stage.patch_size]
        },
        "mirror_axes": list(range(plan.stage.dim)) if plan.mirror_axes is None else list(plan.mirror_axes),
        "trained_with_flips": configuration.mirrored,
        # What a plan.json leaves unsaid, others cannot know.
        "plan": {**to_dict(plan), "orientation": plan.orientation, "rules": dataclasses.asdict(plan.rules)},
        "network": to_dict(configuration.model), "previous": None,
    }  # fmt: skip


def _write_network(
    root: Path, prefix: str, configuration: ConfigurationModel, fold: FoldWeights, form: NetworkForm, written: _Written
) -> dict[str, Any]:
    path, plan = root / prefix / f"{fold.name}{FORMS[form].suffix}", configuration.plan
    network = plain_network(configuration, fold)
    FORMS[form].write(path, network, plan)
    name, run = str(path.relative_to(root)), FORMS[form].load(path)
    agreement = check_runtime(network, run, plan, name=name)
    if written.runs is not None:
        written.runs.append(run)
    # Large weights lie beside their network.
    weights = [each for each in path.parent.iterdir() if each.name.startswith(f"{path.name}.")]
    size = sum(file.stat().st_size for file in (path, *weights)) / 1e6
    written.lines.append(f"{name}: {size:.1f} MB; {agreement.describe()}")
    return {
        "file": name, "fold": fold.fold, "sha256": _digest(path), "agreement_with_torch": to_dict(agreement),
        "weights": [{"file": str(each.relative_to(root)), "sha256": _digest(each)} for each in weights],
    }  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _describe(model: Model, form: NetworkForm, described: list[dict[str, Any]], license_note: str) -> dict[str, Any]:
    decision = model.decision
    tta = None if decision is None else decision.tta
    overlap = None if decision is None else decision.overlap
    return {
        "version": FORMAT_VERSION, "kind": NETWORKS_KIND, "format": form, "opset": OPSET if form == "onnx" else None,
        "made_with": {name: version(name) for name in FORMS[form].packages},
        "dataset": model.plan.dataset, "model": model.describe(), "steps": list(STEPS),
        "formulas": describe_formulas(model),
        "window": {
            "overlap": 0.5 if overlap is None else overlap, "blend": "gaussian",
            "gaussian": {"deviation_as_share_of_window": SIGMA_SHARE, "least_weight": LEAST_WEIGHT},
            "test_time_flips": bool(tta),
        },
        "configurations": described, "post_processing": to_dict(model.post_processing), "license_note": license_note,
        "agreement_on_a_scan": None,
    }  # fmt: skip
