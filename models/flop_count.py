"""FLOPs of a plan's network, counted from shapes: nothing is computed and no memory is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from models.unet import build_network
from utils.config import ModelConfig
from utils.flops import count_flops
from utils.schema import Plan


def network_flops(plan: Plan, model: ModelConfig, *, batch_size: int, training: bool) -> int:
    """FLOPs of a forward pass over a batch of patches, or of a training step, forward and backward.

    The plain network is counted, whatever order of memory, precision or compiler a run uses.
    """
    with torch.device("meta"):
        network = build_network(
            plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model
        ).train(training)
        image = torch.empty(batch_size, plan.in_channels, *plan.stage.patch_size)

    def step() -> None:
        outputs = network(image)
        if training:
            heads = (outputs,) if isinstance(outputs, Tensor) else outputs
            # In place of the loss, which has no products: a gradient for every head.
            torch.stack([head.sum() for head in heads]).sum().backward()

    with torch.set_grad_enabled(training):
        return count_flops(step)
