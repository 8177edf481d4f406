"""Checkpoints as plain data: read, compared with a plan, and turned into a network that predicts.

A checkpoint of this program is self-contained: weights, plan and network options. One of the NVIDIA reference has
weights only; plan and options must come from elsewhere. Neither may run code when it is read.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.file_sums import check_sums, refusal
from models.unet import DynamicUNet, build_network
from utils.config import ModelConfig
from utils.errors import UserError, list_problems
from utils.files import from_dict, json_ready, to_dict
from utils.schema import Plan, check_version
from utils.training_record import TrainingRecord

OUTPUT_HEADS = ("output_block", "deep_supervision_heads")
"""Modules whose size follows the number of outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointContents:
    """What a checkpoint file says about its network; the optimiser's share of it is left to Lightning.

    `state_dict` has the names of `DynamicUNet`. `plan` and `model` are None in a checkpoint of the reference.
    """

    path: Path
    state_dict: dict[str, Tensor]
    plan: Plan | None
    model: ModelConfig | None
    mirrored: bool = True
    """Whether it was trained on flipped patches too; without, flips at test time make the masks worse."""
    training: TrainingRecord | None = None
    """On which cases and with which options it was trained; earlier versions have not noted that."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The options of its training by name, as far as it tells."""
    encoder_only: bool = False
    """Whether there are weights of an encoder alone; a training may start from them."""

    @property
    def is_reference(self) -> bool:
        """Whether the NVIDIA reference wrote it."""
        return self.plan is None


def read_checkpoint(path: Path) -> CheckpointContents:
    """Read weights, plan and options; tensors stay in the file until they are used.

    Raises:
        UserError: the file is missing, truncated, of another format version, or no checkpoint of a network.
    """
    raw = _load(path)
    state = raw.get("state_dict") if isinstance(raw, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no network weights; give a checkpoint that main.py --exec_mode train wrote")
    hyper_parameters = raw.get("hyper_parameters")
    if not isinstance(hyper_parameters, dict) or "format_version" not in hyper_parameters:
        return CheckpointContents(path=path, state_dict=_reference_weights(state, path), plan=None, model=None)
    try:
        check_version(hyper_parameters["format_version"], "checkpoint")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    training, options = raw.get("training"), hyper_parameters.get("optim")
    if training is not None:
        training = from_dict(TrainingRecord, training, source=f"the training record in {path}")
        options = training.options
    return CheckpointContents(
        path=path,
        state_dict=_without_prefix(state, "network."),
        plan=from_dict(Plan, hyper_parameters.get("plan"), source=f"the plan in {path}"),
        model=from_dict(ModelConfig, hyper_parameters.get("model"), source=f"the network options in {path}"),
        mirrored=hyper_parameters.get("mirrored") is not False,
        training=training,
        options=json_ready(options) if isinstance(options, dict) else {},
    )


def load_for_inference(
    path: Path, *, plan: Plan | None = None, model: ModelConfig | None = None
) -> tuple[DynamicUNet, Plan, ModelConfig]:
    """A network in evaluation mode on the CPU, and the plan and options that it was trained with.

    Args:
        path: checkpoint of this program, or of the reference.
        plan: what the data look like; a checkpoint of this program is compared with it, one of the reference
            needs it.
        model: network options of a reference checkpoint; ignored for one of this program.

    Raises:
        UserError: unreadable, made for other data, or a reference checkpoint without plan and options.
    """
    contents = read_checkpoint(path)
    if contents.plan is not None and contents.model is not None:
        if plan is not None:
            check_fits(contents, plan)
        plan, model = contents.plan, contents.model
    elif plan is None or model is None:
        raise UserError(f"{path} is a checkpoint of the NVIDIA reference: it needs a plan.json and network options")
    network = build_network(plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model)
    load_weights(network, contents)
    return network.eval(), plan, model


def check_fits(contents: CheckpointContents, plan: Plan, *, model: ModelConfig | None = None) -> None:
    """Refuse a checkpoint of another task; one of the reference says nothing, its weights are checked on loading.

    With `model` (to resume a training) the network must be the same, too.

    Raises:
        UserError: channels, labels, patch or spacing differ; the message lists every difference.
    """
    if contents.plan is None:
        return
    saved, wanted = _data_facts(contents.plan), _data_facts(plan)
    if model is not None and contents.model is not None:
        saved |= _network_facts(contents.plan, contents.model)
        wanted |= _network_facts(plan, model)
    differences = [
        f"{name}: {saved[name]} in the checkpoint, {wanted[name]} here"
        for name in wanted
        if saved[name] != wanted[name]
    ]
    if differences:
        advice = "Use the data (and, to resume, the options) that it was trained with, or another checkpoint."
        if contents.plan.normalize_first != plan.normalize_first:
            order = str(contents.plan.normalize_first).lower()
            advice += (
                f' Data for this one: set "normalize_first": {order} in plan.json of the preprocessed data, and run '
                "preprocess.py again with the same flags."
            )
        raise list_problems(f"{contents.path} is a checkpoint of another task or setting:", differences, advice=advice)


def flips_remark(source: Path, *, mirrored: bool, plan: Plan | None) -> str | None:
    """What to say where test-time augmentation is asked of a network that never saw a flipped scan; None if it did.

    Args:
        source: what the network came from.
        mirrored: whether its training patches were flipped.
        plan: its plan; None where the source has none.
    """
    if plan is not None and plan.mirror_axes == ():
        return f"{source} was trained with flips along no axis, so --tta has no effect"
    return None if mirrored else f"{source} was trained without flips; --tta makes its masks worse"


def load_weights(network: nn.Module, contents: CheckpointContents) -> None:
    """Load all weights for evaluation or prediction; deep supervision heads, unused there, need not fit.

    Raises:
        UserError: anything else is missing, left over or of another shape; the message lists the names.
    """
    network.load_state_dict(fitting_weights(network, contents))


def fitting_weights(network: nn.Module, contents: CheckpointContents) -> dict[str, Tensor]:
    """The weights that `load_weights` would load; the network may lie on the meta device, without memory.

    Raises:
        UserError: as `load_weights`.
    """
    own = network.state_dict()
    idle = "deep_supervision_heads."
    weights = {name: value for name, value in own.items() if name.startswith(idle)}
    weights |= {
        name: value
        for name, value in contents.state_dict.items()
        if not name.startswith(idle) or (name in own and own[name].shape == value.shape)
    }
    _require_fit(own, weights, contents)
    return weights


def warm_start(network: nn.Module, contents: CheckpointContents) -> list[str]:
    """Start a training from the weights of a checkpoint.

    Output heads that do not fit (another number of classes or of deep supervision heads) keep their random weights.

    Returns:
        One message for each such head.

    Raises:
        UserError: anything else is missing, left over or of another shape; the message lists the names.
    """
    own = network.state_dict()
    heads = {head for name in own if (head := _head(name)) is not None}
    renewed = {
        head
        for head in heads
        for name, value in own.items()
        if _head(name) == head and _shape(contents.state_dict.get(name)) != tuple(value.shape)
    }
    weights = {n: v for n, v in contents.state_dict.items() if _head(n) is None or _head(n) in heads - renewed}
    weights |= {n: v for n, v in own.items() if _head(n) in renewed or (contents.encoder_only and n not in weights)}
    _require_fit(own, weights, contents)
    network.load_state_dict(weights)
    if contents.encoder_only:
        return [f"{contents.path} is an encoder; the decoder and its heads start from random weights"]
    return [f"{head} does not fit {contents.path} and starts from random weights" for head in sorted(renewed)]


def _load(path: Path) -> Any:
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist or is no file; check --ckpt_path")
    try:
        check_sums(Path(path))
        # The reference keeps its command line in a Namespace; nothing else beyond plain values is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files, none of them its own
        reason = refusal(str(error))
        raise UserError(
            f"checkpoint {path} cannot be read: it is truncated or damaged, or holds more than tensors and plain "
            f"values ({reason}); use another one"
        ) from None


def _reference_weights(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    weights = _without_prefix(state, "model.")
    # The same tensors once more, under the names of their nesting.
    weights = {name: value for name, value in weights.items() if not name.startswith("skip_layers.")}
    if not any(name.startswith("input_block.") for name in weights):
        raise UserError(f"{path} is neither a checkpoint of this program nor one of the NVIDIA reference")
    return weights


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _head(name: str) -> str | None:
    """`output_block` or `deep_supervision_heads.<i>` of a parameter name; None for the rest of the network."""
    module, *rest = name.split(".")
    if module not in OUTPUT_HEADS:
        return None
    return module if module == "output_block" else f"{module}.{rest[0]}"


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def _require_fit(own: dict[str, Tensor], weights: dict[str, Tensor], contents: CheckpointContents) -> None:
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} has no place in the network" for name in weights if name not in own]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the network needs {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise list_problems(
            f"the weights of {contents.path} do not fit the network:",
            problems,
            advice="Use the task, --dim and network options (--norm, --res_block, --filters, --depth) that it was "
            "trained with.",
        )


def _data_facts(plan: Plan) -> dict[str, Any]:
    labels, stage = plan.labels, plan.stage
    return {
        "dimension": stage.dim,
        "channels": to_dict(plan)["channels"],
        "normalised before resampling": plan.normalize_first,
        "mask channel (--ohe)": plan.mask_channel,
        "previous stage": plan.previous_stage,
        "labels": dict(zip(labels.names, labels.values)),
        "ignored label": labels.ignore_value,
        "order of axes": plan.axes,
        "patch size": stage.patch_size,
        "spacing (mm)": stage.spacing_mm,
    }


def _network_facts(plan: Plan, model: ModelConfig) -> dict[str, Any]:
    options = to_dict(model)
    # These have gone into the stage.
    planned = ("depth", "min_fmap", "filters")
    return {
        "regions": [region.name for region in plan.labels.regions],
        "strides": plan.stage.strides,
        "kernels": plan.stage.kernels,
        "kernels of the decoder": plan.stage.step_kernels,
        "filters": plan.stage.filters,
        "blocks": plan.stage.block,
        "convolutions of the encoder": plan.stage.level_convs,
        "convolutions of the decoder": plan.stage.step_convs,
    } | {f"--{name}": value for name, value in options.items() if name not in planned}
