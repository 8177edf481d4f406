"""Encoders that nnssl trained without labels (the OpenMind models): stem and stages of a residual encoder.

Such a checkpoint says nothing of a data set; its `nnssl_adaptation_plan` says what the encoder is called in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.nnunet_v2.checkpoint import TrainedNetwork
from inference.nnunet_v2.weights import is_alias, their_name
from models.checkpoint import CheckpointContents
from utils.errors import UserError, list_problems
from utils.schema import StagePlan

ADAPTATION = "nnssl_adaptation_plan"
STAGES, STEM = "encoder.stages", "encoder.stem"
_SHOWN = 10


def is_pretrained(network: TrainedNetwork) -> bool:
    """Whether nnssl wrote the checkpoint."""
    return ADAPTATION in network.content


def pretrained_start(network: TrainedNetwork, path: Path, stage: StagePlan, names: list[str]) -> CheckpointContents:
    """The encoder's weights; those of the decoder are left to the training that starts.

    Args:
        network: the checkpoint.
        path: of it.
        stage: the network that is to be trained.
        names: of all its parameters.

    Raises:
        UserError: another architecture, or weights that are not those of this encoder.
    """
    adaptation = network.content[ADAPTATION]
    if not isinstance(adaptation, Mapping):
        raise UserError(f"{path}: {ADAPTATION} must be a mapping")
    architecture = _text(adaptation.get("architecture_plans") or {}, "arch_class_name", "nothing that is known")
    if not architecture.startswith("ResEnc"):
        raise UserError(f"{path} is a network of {architecture}; of those that nnssl trained, ResEncL can be read")
    if stage.block != "residual":
        raise UserError(
            f"{path} is a residual encoder, and the data were planned for another network: "
            "preprocess.py --planner resenc_l plans one"
        )
    prefixes = {
        STAGES: _text(adaptation, "key_to_encoder", STAGES), STEM: _text(adaptation, "key_to_stem", STEM)
    }  # fmt: skip
    theirs = {name: _renamed(there, prefixes) for name in names if (there := their_name(name, stage)).startswith("enc")}
    mapped = {name: network.weights[there] for name, there in theirs.items() if there in network.weights}
    problems = [f"{there} is missing" for name, there in theirs.items() if name not in mapped]
    known = set(theirs.values())
    problems += [
        f"{name} has no place in the encoder"
        for name in network.weights
        if name.startswith(tuple(f"{prefix}." for prefix in prefixes.values()))
        and name not in known and not is_alias(name) and not name.endswith(".conv.bias")
    ]  # fmt: skip
    if problems:
        raise list_problems(
            f"the encoder of {path} is not that of the plan:", problems, shown=_SHOWN,
            advice="Plan the levels and blocks that it has (plan.json).",
        )  # fmt: skip
    return CheckpointContents(path=path, state_dict=mapped, plan=None, model=None, encoder_only=True)


def _text(values: Any, name: str, otherwise: str) -> str:
    found = values.get(name) if isinstance(values, Mapping) else None
    return otherwise if found is None else str(found)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for usual, prefix in prefixes.items():
        if name.startswith(f"{usual}."):
            return prefix + name.removeprefix(usual)
    return name
