"""Checkpoints of random weights: this program's, and what the NVIDIA reference leaves behind."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.models.builders import make_network
from utils.config import ModelConfig
from utils.files import to_dict

SUPERVISED = ModelConfig(deep_supervision=True, deep_supr_num=1)


def save_ours(path: Path, plan, model: ModelConfig = SUPERVISED, seed: int = 1, **hyper_parameters) -> dict:
    network = make_network(plan, model, seed)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    hyper_parameters = {"format_version": 1, "plan": to_dict(plan), "model": to_dict(model)} | hyper_parameters
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters, "epoch": 3}, path)
    return network.state_dict()


def save_reference(path: Path, plan, num_outputs: int = 3) -> torch.nn.Module:
    """What the NVIDIA reference's Lightning module leaves behind: DynUNet under `model.`, its command line."""
    # Slow to import, and only few tests want it.
    from monai.networks.nets.dynunet import DynUNet

    torch.manual_seed(5)
    stage = plan.stage
    network = DynUNet(
        stage.dim, plan.in_channels, num_outputs, kernel_size=stage.kernels, strides=stage.strides,
        upsample_kernel_size=stage.strides[1:], filters=stage.filters, trans_bias=True,
        norm_name=("INSTANCE", {"affine": True}), deep_supervision=True, deep_supr_num=1,
    )  # fmt: skip
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    arguments = argparse.Namespace(task="04", dim=3, deep_supervision=True, filters=None, learning_rate=0.0008)
    torch.save(
        {"state_dict": state, "hyper_parameters": {"args": arguments}, "pytorch-lightning_version": "1.7.7"}, path
    )
    return network
