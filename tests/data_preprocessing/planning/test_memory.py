from __future__ import annotations

import dataclasses

import pytest
import torch

from data_preprocessing.planning import memory
from data_preprocessing.planning.memory import feature_map_values, saved_values
from data_preprocessing.planning.planners import PLANNERS, fit_levels
from data_preprocessing.planning.topology import Topology, plan_topology
from models.unet import build_network
from utils.config import ModelConfig
from utils.schema import StagePlan

TWO_LEVELS = Topology(strides=((1, 1), (2, 2)), kernels=((3, 3), (3, 3)), filters=(4, 8))
CHANNELS, OUTPUTS = 2, 3
NETWORKS = {
    "3D": ((16, 24, 16), (1.0, 1.0, 1.0), False),
    "anisotropic": ((12, 32, 32), (3.0, 1.0, 1.0), False),
    "2D": ((32, 48), (1.0, 1.0), False),
    "deep supervision": ((32, 32, 32), (1.0, 1.0, 1.0), True),
}


def stage_of(patch: tuple[int, ...], spacing_mm: tuple[float, ...], first_filters: int) -> StagePlan:
    levels = plan_topology(patch, spacing_mm, rule="nnunet")
    filters = tuple(first_filters * 2**level for level in range(len(levels.strides)))
    return StagePlan(
        name="x", patch_size=patch, spacing_mm=spacing_mm, batch_size=2,
        strides=levels.strides, kernels=levels.kernels, filters=filters,
    )  # fmt: skip


def torch_saved_values(stage: StagePlan, model: ModelConfig) -> int:
    """Values of all distinct tensors, parameters excepted, that autograd keeps for a training step of one patch."""
    network = build_network(stage, in_channels=CHANNELS, num_outputs=OUTPUTS, model=model).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.rand(1, CHANNELS, *stage.patch_size))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(output.square().sum() for output in outputs)
    loss.backward()
    return sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values())


def test_feature_maps_counted_by_hand():
    # 16 voxels: encoder 2x4, decoder 3x4 (one is transposed), logits 3; 4 voxels: encoder 2x8.
    assert feature_map_values(TWO_LEVELS, (4, 4), num_outputs=3) == 16 * (8 + 12 + 3) + 4 * 16


def test_saved_values_counted_by_hand():
    assert saved_values(TWO_LEVELS, (4, 4), in_channels=1, num_outputs=3) == 16 * (1 + 2 * 20 + 3) + 4 * 2 * 16


def test_heads_of_deep_supervision_add_their_logits():
    three = Topology(strides=((1,), (2,), (2,)), kernels=((3,),) * 3, filters=(1, 1, 1))
    counts = [feature_map_values(three, (8,), num_outputs=5, num_heads=heads) for heads in (0, 1)]
    assert counts[1] - counts[0] == 5 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("first_filters", [8, 16])
def test_model_agrees_with_what_torch_keeps(name, first_filters):
    patch, spacing_mm, supervised = NETWORKS[name]
    stage = stage_of(patch, spacing_mm, first_filters)
    kept = torch_saved_values(stage, ModelConfig(deep_supervision=supervised, deep_supr_num=1))
    counted = {"num_outputs": OUTPUTS, "num_heads": int(supervised)}
    # The statistics of the normalisations are the rest.
    assert saved_values(stage, patch, in_channels=CHANNELS, **counted) == pytest.approx(kept, rel=0.01)
    assert kept / feature_map_values(stage, patch, **counted) == pytest.approx(2, rel=0.03)


def test_torch_and_model_grow_with_patch_and_filters():
    stages = [stage_of((16, 16), (1.0, 1.0), 4), stage_of((16, 24), (1.0, 1.0), 4), stage_of((16, 24), (1.0, 1.0), 8)]
    kept = [torch_saved_values(stage, ModelConfig()) for stage in stages]
    counted = [feature_map_values(stage, stage.patch_size, num_outputs=OUTPUTS) for stage in stages]
    assert kept == sorted(set(kept)) and counted == sorted(set(counted))


def test_reference_memory_holds_two_patches_of_the_reference_size():
    assert memory.fits(int(560e6), 3, 8.0) and not memory.fits(int(561e6), 3, 8.0)
    assert memory.memory_batch(int(560e6), 3, 8.0) == 2
    assert memory.memory_batch(int(85e6), 2, 8.0) == 12


def test_twice_the_memory_holds_twice_the_batch():
    assert memory.memory_batch(int(56e6), 3, 16.0) == 2 * memory.memory_batch(int(56e6), 3, 8.0) == 40


def test_batch_of_five_percent_of_the_voxels():
    assert memory.data_batch(20 * 1000.0, (10, 10, 10)) == 1
    assert memory.data_batch(200 * 1000.0, (10, 10, 10)) == 10


def test_residual_feature_maps_counted_by_hand():
    levels = dataclasses.replace(
        TWO_LEVELS, filters=(4, 8), encoder_convs=(1, 3), decoder_convs=(1,), block="residual"
    )  # fmt: skip
    # 16 voxels: stem 4, one block 2x4, decoder 2x4, logits 3; 4 voxels: three blocks 6x8, a skip connection 8.
    assert feature_map_values(levels, (4, 4), num_outputs=3) == 16 * (4 + 8 + 8 + 3) + 4 * (48 + 8)
    # Channels that stay, but are pooled, are counted as well.
    pooled = dataclasses.replace(levels, filters=(8, 8))
    assert feature_map_values(pooled, (4, 4), num_outputs=0) == 16 * (8 + 16 + 16) + 4 * (48 + 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_model_agrees_with_what_torch_keeps_of_a_residual_network(name):
    patch, spacing_mm, supervised = NETWORKS[name]
    plain = stage_of(patch, spacing_mm, 8)
    stage = dataclasses.replace(
        plain, block="residual", encoder_convs=fit_levels((1, 3, 2), len(plain.strides)),
        decoder_convs=(1,) * (len(plain.strides) - 1), filters=(8, 16, *(24,) * (len(plain.strides) - 2)),
    )  # fmt: skip
    kept = torch_saved_values(stage, ModelConfig(deep_supervision=supervised, deep_supr_num=1))
    counted = {"num_outputs": OUTPUTS, "num_heads": int(supervised)}
    assert saved_values(stage, patch, in_channels=CHANNELS, **counted) == pytest.approx(kept, rel=0.01)


def test_planners_for_residual_encoders_have_budgets_of_their_own():
    large = PLANNERS["resenc_l"]
    assert memory.fits(int(2100e6), 3, 24.0, large) and not memory.fits(int(2101e6), 3, 24.0, large)
    assert memory.fits(int(700e6), 3, 8.0, large) and memory.memory_batch(int(700e6), 3, 8.0, large) == 2
    # In 2D one patch has the whole budget, as in nnU-Net, and the batch follows.
    assert memory.fits(int(135e6), 2, 8.0, PLANNERS["resenc_m"]) and not memory.fits(
        int(136e6), 2, 8.0, PLANNERS["resenc_m"]
    )
    assert memory.data_batch(20 * 1000.0, (10, 10, 10), large) == 20
