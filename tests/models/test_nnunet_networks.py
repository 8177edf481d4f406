"""Networks of nnU-Net v2's kinds give its logits with its weights; see record_nnunet_logits.py for the numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from models.acceleration import Acceleration
from models.kernels.cpu_conv import WinogradConv3d
from models.unet import DynamicUNet, build_network
from tests.models.nnunet_networks import NETWORKS, Network, digest_parameters, make_image, make_weight
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import StagePlan

RECORDED = json.loads(Path(__file__).with_name("nnunet_logits.json").read_text())["networks"]
PLAIN = Acceleration()
FUSED = Acceleration(channels_last=True, fused_norm=True, winograd=True)


def build_stage(network: Network) -> StagePlan:
    return StagePlan(
        name="x", patch_size=network.patch, spacing_mm=(1.0,) * len(network.patch), batch_size=2,
        strides=network.strides, kernels=network.kernels, filters=network.filters,
        decoder_kernels=network.kernels[:-1], encoder_convs=network.encoder_convs, decoder_convs=network.decoder_convs,
        block="residual" if network.residual else "plain",
    )  # fmt: skip


def build(network: Network, acceleration: Acceleration = PLAIN, negative_slope: float = 0.01) -> DynamicUNet:
    model = ModelConfig(deep_supervision=True, deep_supr_num=len(network.filters) - 2, negative_slope=negative_slope)
    return build_network(
        build_stage(network),
        in_channels=network.in_channels,
        num_outputs=network.num_outputs,
        model=model,
        acceleration=acceleration,
    )


def their_name(ours: str, network: Network) -> str:
    """What nnU-Net calls one of our parameters."""
    depth = len(network.filters)
    place, _, rest = ours.partition(".")
    level = {"input_block": 0, "bottleneck": depth - 1}.get(place)
    if place in ("downsamples", "upsamples", "deep_supervision_heads"):
        index, _, rest = rest.partition(".")
        level = int(index) + 1 if place == "downsamples" else int(index)
    kind = "conv" if rest.split(".")[-2] == "conv" else "norm"
    last = rest.rpartition(".")[2]
    number = re.search(r"(?:conv|norm)(\d)", rest)
    if place == "stem":
        return f"encoder.stem.convs.0.{kind}.{last}"
    if place == "output_block":
        return f"decoder.seg_layers.{depth - 2}.{last}"
    if place == "deep_supervision_heads":
        return f"decoder.seg_layers.{depth - 3 - level}.{last}"
    if place == "upsamples":
        if rest.startswith("transp_conv"):
            return f"decoder.transpconvs.{level}.{last}"
        return f"decoder.stages.{level}.convs.{int(number[1]) - 1}.{kind}.{last}"
    if not network.residual:
        return f"encoder.stages.{level}.0.convs.{int(number[1]) - 1}.{kind}.{last}"
    block = int(rest.split(".")[1])
    part = f"conv{number[1]}"
    if number[1] == "3":
        part = "skip.1" if any(step > 1 for step in network.strides[level]) else "skip.0"
    return f"encoder.stages.{level}.blocks.{block}.{part}.{kind}.{last}"


def set_weights(ours: DynamicUNet, network: Network) -> None:
    ours.load_state_dict(
        {
            name: torch.from_numpy(make_weight(their_name(name, network), tuple(value.shape)))
            for name, value in ours.state_dict().items()
        }
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_has_its_place(name):
    network = NETWORKS[name]
    ours = {their_name(key, network): tuple(value.shape) for key, value in build(network).state_dict().items()}
    assert digest_parameters(ours.items()) == RECORDED[name]["parameters"]


@pytest.mark.parametrize("acceleration", [PLAIN, FUSED], ids=["plain", "accelerated"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_nnunet(name, acceleration):
    network = NETWORKS[name]
    ours = build(network, acceleration).train()
    set_weights(ours, network)
    with torch.no_grad():
        outputs = ours(torch.from_numpy(make_image(network)))
    assert len(outputs) == len(RECORDED[name]["outputs"])
    for output, expected in zip(outputs, RECORDED[name]["outputs"]):
        assert list(output.shape) == expected["shape"]
        count = len(expected["logits"])
        found = output.flatten()[:: output.numel() // count][:count]
        torch.testing.assert_close(found, torch.tensor(expected["logits"]), rtol=0, atol=1e-5)
        assert float(output.abs().max()) == pytest.approx(expected["largest"], abs=1e-5)


def test_accelerated_residual_network_has_the_gradients_of_the_plain_one():
    wide = dataclasses.replace(NETWORKS["residual"], filters=(32, 32, 40))
    image = torch.from_numpy(make_image(wide)).requires_grad_()
    gradients = []
    for acceleration in (PLAIN, FUSED):
        # A slope of nearly 1: where rounding decides on which side of 0 a value lies, the gradient hardly changes.
        ours = build(wide, acceleration, negative_slope=0.999).train()
        set_weights(ours, wide)
        sum(output.square().mean() for output in ours(image)).backward()
        gradients.append({name: parameter.grad for name, parameter in ours.named_parameters()} | {"": image.grad})
        image.grad = None
    assert any(isinstance(module, WinogradConv3d) for module in ours.modules())
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_residual_blocks_begin_as_their_skip_connections():
    torch.manual_seed(0)
    network = build(NETWORKS["residual"])
    block = network.downsamples[0].blocks[1]
    features = torch.rand(1, 8, 4, 4, 4)
    torch.testing.assert_close(block(features), features, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["residual", "plain, other numbers of convolutions"])
def test_residual_blocks_of_the_reference_need_a_plain_encoder_of_two_convolutions(name):
    network = NETWORKS[name]
    stage = build_stage(network)
    with pytest.raises(UserError, match="--res_block is for plain levels of 2 convolutions"):
        build_network(stage, in_channels=2, num_outputs=3, model=ModelConfig(res_block=True))


def test_group_and_batch_norm_reach_the_residual_encoder():
    network = dataclasses.replace(NETWORKS["residual"], filters=(16, 16, 32))
    for norm, kind in (("batch", torch.nn.BatchNorm3d), ("group", torch.nn.GroupNorm)):
        ours = build_network(build_stage(network), in_channels=2, num_outputs=3, model=ModelConfig(norm=norm))
        assert {type(m) for m in ours.modules() if "Norm" in type(m).__name__} == {kind}
