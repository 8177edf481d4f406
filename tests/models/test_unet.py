"""The network: size, names and numbers of DynUNet, heads at their own resolution, limits."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet

from models.unet import build_network, num_supervised
from tests.models.builders import make_stage
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import StagePlan


def num_parameters(stage: StagePlan, in_channels: int, num_outputs: int, model: ModelConfig) -> int:
    with torch.device("meta"):
        network = build_network(stage, in_channels=in_channels, num_outputs=num_outputs, model=model)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("patch", "filters", "in_channels", "num_outputs", "expected"),
    [
        ((128, 128, 128), (32, 64, 128, 256, 320, 320), 4, 4, 31_193_644),
        ((40, 56, 40), (32, 64, 128, 256), 1, 3, 5_601_769),
        ((192, 160), (32, 64, 128, 256, 512, 512), 4, 4, 20_613_868),
    ],
    ids=["brats_3d", "hippocampus_3d", "brats_2d"],
)
def test_number_of_parameters_is_the_reference_s(patch, filters, in_channels, num_outputs, expected):
    model = ModelConfig(deep_supervision=True, deep_supr_num=2)
    assert num_parameters(make_stage(patch, filters), in_channels, num_outputs, model) == expected


ANISOTROPIC = StagePlan(
    name="3d", patch_size=(4, 16, 16), spacing_mm=(5.0, 1.0, 1.0), batch_size=2, filters=(4, 6, 8, 10),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
)  # fmt: skip


@pytest.mark.parametrize("res_block", [False, True])
@pytest.mark.parametrize("stage", [ANISOTROPIC, make_stage((16, 16))], ids=["anisotropic_3d", "2d"])
def test_weights_of_dynunet_give_the_outputs_of_dynunet(stage, res_block):
    torch.manual_seed(0)
    theirs = DynUNet(
        stage.dim, 2, 3, kernel_size=stage.kernels, strides=stage.strides, upsample_kernel_size=stage.strides[1:],
        filters=stage.filters, norm_name=("INSTANCE", {"affine": True}), res_block=res_block, trans_bias=True,
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.2}),
    )  # fmt: skip
    ours = build_network(
        stage, in_channels=2, num_outputs=3, model=ModelConfig(res_block=res_block, negative_slope=0.2)
    )
    weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("skip_layers.")}
    ours.load_state_dict(weights)
    image = torch.randn(2, 2, *stage.patch_size)
    # oneDNN computes here what torch computes there (models/kernels/cpu_small.py), so sums have another order.
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=1e-5, atol=2e-6)


def test_training_gives_each_head_at_its_own_resolution():
    stage = make_stage((16, 16, 16), (4, 6, 8, 10))
    network = build_network(stage, in_channels=1, num_outputs=3, model=ModelConfig(deep_supervision=True))
    outputs = network.train()(torch.randn(2, 1, 16, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8), (2, 3, 4, 4, 4)]


def test_evaluation_gives_one_tensor():
    network = build_network(
        make_stage(), in_channels=1, num_outputs=2, model=ModelConfig(deep_supervision=True, deep_supr_num=1)
    )
    assert network.eval()(torch.randn(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


def test_training_without_deep_supervision_gives_one_tensor():
    network = build_network(make_stage(), in_channels=1, num_outputs=2, model=ModelConfig())
    assert network.train()(torch.randn(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


def test_two_levels_are_enough():
    network = build_network(make_stage((8, 8), (4, 6)), in_channels=1, num_outputs=2, model=ModelConfig())
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("filters", "asked", "advice"), [((4, 6, 8), 2, "--deep_supr_num 1"), ((4, 6), 1, "leave out")]
)
def test_too_many_heads_for_the_depth_are_refused(filters, asked, advice):
    model = ModelConfig(deep_supervision=True, deep_supr_num=asked)
    with pytest.raises(UserError, match=advice):
        build_network(make_stage(filters=filters), in_channels=1, num_outputs=2, model=model)


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", "InstanceNorm3d"), ("batch", "BatchNorm3d"), ("group", "GroupNorm")]
)
def test_norm_option_chooses_the_layer(norm, kind):
    network = build_network(make_stage(filters=(16, 32)), in_channels=1, num_outputs=2, model=ModelConfig(norm=norm))
    layers = [module for module in network.modules() if "Norm" in type(module).__name__]
    assert {type(layer).__name__ for layer in layers} == {kind}
    assert all(layer.weight is not None for layer in layers)


def test_group_norm_needs_features_that_groups_divide():
    with pytest.raises(UserError, match="multiples of 16"):
        build_network(make_stage(), in_channels=1, num_outputs=2, model=ModelConfig(norm="group"))


def test_negative_slope_reaches_every_activation():
    network = build_network(make_stage(), in_channels=1, num_outputs=2, model=ModelConfig(negative_slope=0.3))
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.3}


@pytest.mark.parametrize(
    ("filters", "expected"), [((4, 6), 0), ((4, 6, 8), 0), ((4, 4, 6, 8), 1), ((4, 4, 4, 6, 8), 2)]
)
def test_zero_supervises_all_levels_but_the_coarsest(filters, expected):
    # A network of n levels has n - 1 decoder levels; one is full resolution and one the coarsest.
    model = ModelConfig(deep_supervision=True, deep_supr_num=0)
    stage = make_stage((32, 32), filters)
    network = build_network(stage, in_channels=1, num_outputs=2, model=model).train()
    outputs = network(torch.zeros(2, 1, 32, 32))
    assert num_supervised(stage, model) == expected
    assert (1 if isinstance(outputs, torch.Tensor) else len(outputs)) == 1 + expected
