"""A model's networks in another form, in a folder with `model.json`: everything around them that makes masks of scans.

Nothing of the folder is there unless every network has shown that it computes what torch computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from inference.configuration import ConfigurationModel
from inference.engines.agreement import Run, check_runtime
from inference.engines.cache import plain_network
from inference.engines.conversion import INPUT, OPSET, OUTPUT, input_shape, write_compiled, write_onnx, write_program
from inference.engines.formulas import describe_formulas
from inference.engines.runtimes import OnnxRuntimeNetwork
from inference.model import Model, configuration_name
from models.windows import LEAST_WEIGHT, SIGMA_SHARE
from utils.errors import UserError
from utils.extras import optional_import
from utils.files import new_folder, to_dict, write_json
from utils.schema import FORMAT_VERSION, Plan

DESCRIPTION = "model.json"
KIND = "networks of a segmentation model"
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


def export_networks(target: Path, model: Model, form: NetworkForm, *, license_note: str) -> list[str]:
    """Write the networks of all configurations and folds, and `model.json`, whole or not at all.

    Returns:
        A line for each network: its file in the folder, and how it agrees with torch.

    Raises:
        UserError: a package or a compiler is missing, or a network in the new form computes something else.
    """
    for package in FORMS[form].packages:
        optional_import(package, extra="onnx", purpose=f"--format {form}")
    if form == "aot-inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--format aot-inductor compiles, and finds no C++ compiler: install g++, or set CXX to one")
    lines: list[str] = []
    with new_folder(target) as folder:
        several = len(model.configurations) > 1
        described = [
            _write_configuration(folder, name if several else "", configuration, form, lines)
            for name, configuration in zip(model.names, model.configurations)
        ]
        write_json(_describe(model, form, described, license_note), folder / DESCRIPTION)
    return lines


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
                commands.append(f"trtexec --onnx={path} --saveEngine={path.with_suffix('.engine')} {shapes}")
    return commands


def _stages(prefix: str, configuration: ConfigurationModel) -> list[tuple[str, ConfigurationModel]]:
    """A configuration, and the first stage of a cascade, with their folders."""
    first = configuration.previous
    return [(prefix, configuration), *([] if first is None else [(f"{prefix}/previous".lstrip("/"), first)])]


def _write_configuration(
    root: Path, prefix: str, configuration: ConfigurationModel, form: NetworkForm, lines: list[str]
) -> dict[str, Any]:
    """Write the networks of a configuration and of its first stage; returns what `model.json` says of them."""
    first, *others = [
        _write_networks(root, folder, each, form, lines) for folder, each in _stages(prefix, configuration)
    ]
    return {**first, "previous": others[0] if others else None}


def _write_networks(
    root: Path, prefix: str, configuration: ConfigurationModel, form: NetworkForm, lines: list[str]
) -> dict[str, Any]:
    plan, written = configuration.plan, []
    (root / prefix).mkdir(parents=True, exist_ok=True)
    for fold in configuration.folds:
        path = root / prefix / f"{fold.name}{FORMS[form].suffix}"
        network = plain_network(configuration, fold)
        FORMS[form].write(path, network, plan)
        name = str(path.relative_to(root))
        agreement = check_runtime(network, FORMS[form].load(path), plan, name=name)
        lines.append(f"{name}: {path.stat().st_size / 1e6:.1f} MB; {agreement.describe()}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        written.append({"file": name, "fold": fold.fold, "sha256": digest, "agreement_with_torch": to_dict(agreement)})
    return {
        "configuration": configuration_name(plan), "networks": written,
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


def _describe(model: Model, form: NetworkForm, described: list[dict[str, Any]], license_note: str) -> dict[str, Any]:
    decision = model.decision
    tta = None if decision is None else decision.tta
    overlap = None if decision is None else decision.overlap
    return {
        "version": FORMAT_VERSION, "kind": KIND, "format": form, "opset": OPSET if form == "onnx" else None,
        "made_with": {name: version(name) for name in FORMS[form].packages},
        "dataset": model.plan.dataset, "model": model.describe(), "steps": list(STEPS),
        "formulas": describe_formulas(model),
        "window": {
            "overlap": 0.5 if overlap is None else overlap, "blend": "gaussian",
            "gaussian": {"deviation_as_share_of_window": SIGMA_SHARE, "least_weight": LEAST_WEIGHT},
            "test_time_flips": bool(tta),
        },
        "configurations": described, "post_processing": to_dict(model.post_processing), "license_note": license_note,
    }  # fmt: skip
