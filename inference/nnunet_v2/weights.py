"""Parameters of nnU-Net v2's U-Nets by the names that they have here.

There each block occurs under several names (`all_modules`, and the encoder once more in the decoder); those are left
out. Biases before a normalisation have no effect and no place here: instance normalisation cancels them, and of batch
normalisation they are taken off the running mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from utils.errors import list_problems
from utils.schema import StagePlan

_ALIAS = re.compile(r"(^|\.)all_modules\.|^decoder\.encoder\.")
_RUNNING_MEAN = ".norm.running_mean"
_SHOWN = 10


def is_alias(name: str) -> bool:
    """Whether it is another name of weights that occur under one of their own."""
    return _ALIAS.search(name) is not None


def has_batch_norm(weights: Mapping[str, Tensor]) -> bool:
    """Whether a network normalises by batches (`nnUNetTrainerBN`), which its plans do not say."""
    return any(name.endswith(_RUNNING_MEAN) for name in weights)


def import_weights(
    weights: Mapping[str, Tensor], names: Iterable[str], stage: StagePlan, source: str
) -> dict[str, Tensor]:
    """A network's parameters by their names here; whether shapes fit shows when they are loaded.

    Deep supervision heads come along where `names` has them.

    Args:
        weights: name there -> tensor.
        names: of all parameters that the network of `stage` has here.
        stage: levels of the network.
        source: what messages call the weights.

    Raises:
        UserError: parameters are missing, or left over; they are named.
    """
    theirs = {name: their_name(name, stage) for name in names}
    own = {name for name in weights if not is_alias(name)}
    problems = [f"{name} is missing" for name in theirs.values() if name not in own and not _unbiased(weights, name)]
    # The heads of deep supervision are trained for nothing but training.
    known = {*theirs.values(), *(name for name in own if name.startswith("decoder.seg_layers."))}
    problems += [
        f"{name} has no place in the network"
        for name in sorted(own - known)
        if not (name.endswith(".conv.bias") and name.removesuffix("conv.bias") + "norm.weight" in own)
    ]
    if problems:
        raise list_problems(
            f"the weights of {source} do not fit its plans:", problems, shown=_SHOWN,
            advice="Copy plans.json and checkpoints of one training.",
        )  # fmt: skip
    return {name: _value(weights, there) for name, there in theirs.items()}


def _unbiased(weights: Mapping[str, Tensor], name: str) -> bool:
    """Whether it is the bias of a transposed convolution that has none (`conv_bias` false)."""
    return name.startswith("decoder.transpconvs.") and name.endswith(".bias") and _sibling(name) in weights


def _sibling(name: str) -> str:
    return name.removesuffix("bias") + "weight"


def _value(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        weight = weights[_sibling(name)]
        return weight.new_zeros(weight.shape[1])
    bias = weights.get(name.removesuffix(_RUNNING_MEAN) + ".conv.bias") if name.endswith(_RUNNING_MEAN) else None
    return weights[name] if bias is None else weights[name] - bias


def their_name(name: str, stage: StagePlan) -> str:
    """What nnU-Net calls a parameter of ours."""
    place, _, rest = name.partition(".")
    deepest = len(stage.filters) - 1
    end = rest.rpartition(".")[2]
    if place == "output_block":
        return f"decoder.seg_layers.{deepest - 1}.{end}"
    if place in ("downsamples", "upsamples", "deep_supervision_heads"):
        number, _, rest = rest.partition(".")
        index = int(number)
    if place == "deep_supervision_heads":
        return f"decoder.seg_layers.{deepest - 2 - index}.{end}"
    if rest.startswith("transp_conv."):
        return f"decoder.transpconvs.{index}.{end}"
    layer = re.search(r"(?P<kind>conv|norm)(?P<number>\d+)\.", rest)
    assert layer is not None, name
    kind, position = layer["kind"], int(layer["number"]) - 1
    if place == "upsamples":
        return f"decoder.stages.{index}.convs.{position}.{kind}.{end}"
    if place == "stem":
        return f"encoder.stem.convs.{position}.{kind}.{end}"
    level = {"input_block": 0, "bottleneck": deepest}.get(place)
    level = index + 1 if level is None else level
    if stage.block == "plain":
        return f"encoder.stages.{level}.0.convs.{position}.{kind}.{end}"
    block = rest.split(".")[1]
    # The third convolution lies on the way around the others, after a pooling where the level strides.
    pooled = any(step > 1 for step in stage.strides[level])
    part = f"conv{position + 1}" if position < 2 else f"skip.{int(pooled)}"
    return f"encoder.stages.{level}.blocks.{block}.{part}.{kind}.{end}"
