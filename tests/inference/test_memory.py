"""The memory forecast: numbers that can be checked by hand, and bounds that must hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from inference.configuration import ConfigurationModel, FoldWeights
from inference.configuration_predictor import ConfigurationPredictor
from inference.decision import PostProcessing
from inference.memory import PROGRAM_BYTES, forecast_configuration, forecast_memory, forecast_predictor
from inference.predictor import Predictor
from models.inferer import InferenceSettings
from models.sliding_window import activation_bytes, buffer_bytes, slab_planes
from models.windows import window_layout
from tests.models.builders import make_network, make_plan, make_stage, with_spacing
from utils.config import ModelConfig
from utils.rules import Rules
from utils.schema import LabelScheme

SETTINGS = InferenceSettings(window_batch=1)
PLAN = make_plan(make_stage((128, 128, 128)))


def test_parts_of_a_scan_on_the_plans_own_grid():
    shape, stage = (256, 256, 256), PLAN.stage
    forecast = forecast_memory(shape, (1, 1, 1), plan=PLAN, settings=SETTINGS, num_networks=1)
    voxels = 256**3
    # Content, scan, scaled scan: four bytes each.
    assert forecast.prepare_bytes == 12 * voxels
    # 2**24 probabilities are 85 planes of three classes; two on their way, two at the writer, two being made.
    slab = 4 * 3 * 85 * 256 * 256
    # The 64 planes that are restored at a time, and two beside them; six copies of one class.
    restoring = 4 * ((3 * (66 + 64) + 6 * 66) * 256 * 256)
    buffers = 4 * (3 + 1) * 128 * 256 * 256
    # One byte for the class of each voxel.
    classes = 85 * 256 * 256
    working = 6 * slab + classes + restoring + buffers + activation_bytes(stage, num_windows=1, num_outputs=3)
    assert forecast.predict_bytes == 4 * voxels + voxels + int(1.1 * working)
    assert forecast.write_bytes == 8 * voxels
    assert forecast.peak_bytes == forecast.predict_bytes


def test_finer_grid_of_the_plan_takes_more():
    fine = forecast_memory(
        (64, 64, 64), (1, 1, 1), plan=with_spacing(PLAN, (0.5,) * 3), settings=SETTINGS, num_networks=1
    )
    assert fine.prepare_bytes == 4 * 64**3 + 4 * 128**3
    first = dataclasses.replace(with_spacing(PLAN, (0.5,) * 3), normalize_first=True)
    normalized = forecast_memory((64, 64, 64), (1, 1, 1), plan=first, settings=SETTINGS, num_networks=1)
    assert normalized.prepare_bytes == fine.prepare_bytes + 4 * 64**3


def test_folds_share_everything_but_planes_and_slabs():
    one, five = (
        forecast_memory((256, 128, 128), (1, 1, 1), plan=PLAN, settings=SETTINGS, num_networks=count)
        for count in (1, 5)
    )
    layout = window_layout((256, 128, 128), PLAN.stage, SETTINGS)
    more = buffer_bytes(layout, num_outputs=3, num_networks=5) - buffer_bytes(layout, num_outputs=3, num_networks=1)
    assert more == 4 * 4 * 3 * 128**3
    slab = 4 * 3 * slab_planes(layout, num_outputs=3) * 128 * 128
    # Beside the planes that become probabilities there is the sum; classes of each network, one byte a voxel.
    assert five.predict_bytes - one.predict_bytes == pytest.approx(1.1 * (more + slab + 4 * slab / 12), abs=2)


def test_a_gpu_holds_planes_and_feature_maps_itself():
    cpu, gpu = (
        forecast_memory((256,) * 3, (1, 1, 1), plan=PLAN, settings=SETTINGS, num_networks=1, on_gpu=on_gpu)
        for on_gpu in (False, True)
    )
    assert gpu.predict_bytes < cpu.predict_bytes and gpu.prepare_bytes == cpu.prepare_bytes


@pytest.mark.parametrize(("num_networks", "limit_gb"), [(1, 6), (5, 8)])
def test_a_ct_of_512_512_800_with_three_classes_stays_small(num_networks, limit_gb):
    stage = make_stage((128, 128, 128), filters=(32, 64, 128, 256, 320))
    plan = make_plan(stage)
    forecast = forecast_memory((800, 512, 512), (1, 1, 1), plan=plan, settings=SETTINGS, num_networks=num_networks)
    weights = num_networks * 4 * 31_000_000
    assert forecast.peak_bytes + weights + PROGRAM_BYTES < limit_gb * 1e9


def test_longer_scans_grow_by_their_voxels_only():
    short, long = (
        forecast_memory((depth, 128, 128), (1, 1, 1), plan=PLAN, settings=SETTINGS, num_networks=1)
        for depth in (400, 800)
    )
    # The prepared scan and the mask.
    assert long.predict_bytes - short.predict_bytes == 5 * 400 * 128 * 128


def make_predictor(previous: ConfigurationPredictor | None = None, **changes) -> ConfigurationPredictor:
    plan = dataclasses.replace(make_plan(), **changes)
    network = make_network(plan)
    weights = (FoldWeights(name="x", fold=None, state_dict=network.state_dict()),)
    first = None if previous is None else previous.configuration
    configuration = ConfigurationModel(source=Path("x"), plan=plan, model=ModelConfig(), folds=weights, previous=first)
    return ConfigurationPredictor(configuration, device=torch.device("cpu"), settings=SETTINGS, previous=previous)


def test_a_cascade_holds_both_stages_scans_and_a_copy_with_the_classes():
    first = make_predictor()
    second = make_predictor(first, previous_stage="3d_lowres")
    shape, spacing = (64, 32, 32), (1, 1, 1)
    alone, both = (forecast_configuration(each, shape, spacing) for each in (first, second))
    voxels = 64 * 32 * 32
    # The image of each stage; the copy has two more channels.
    assert both.prepared_bytes == 2 * alone.prepared_bytes == 2 * 4 * voxels
    assert both.predict_bytes == alone.predict_bytes + 4 * voxels + 3 * 4 * voxels
    assert both.prepare_bytes == alone.prepare_bytes + 4 * voxels
    again = make_predictor(first, previous_stage="3d_lowres", rules=Rules(previous_mask="nearest"))
    held = forecast_configuration(again, shape, spacing)
    assert held.prepared_bytes == both.prepared_bytes + 4 * voxels
    assert held.predict_bytes == both.predict_bytes + 4 * voxels


def test_post_processing_is_counted():
    shape, spacing, each = (64, 32, 32), (1, 1, 1), make_predictor()
    before, after = (
        forecast_predictor(Predictor([each], PostProcessing(foreground=foreground)), shape, spacing)
        for foreground in (False, True)
    )
    assert before == forecast_configuration(each, shape, spacing)
    assert after.write_bytes - before.write_bytes == (7 - 4) * 64 * 32 * 32


def test_several_configurations_hold_a_prepared_scan_each_and_predict_in_turn():
    shape, spacing, voxels = (64, 32, 32), (1, 1, 1), 64 * 32 * 32
    small, large = make_predictor(), make_predictor(stage=make_stage((16, 16, 16)))
    one, other = (forecast_configuration(each, shape, spacing) for each in (small, large))
    assert other.predict_bytes > one.predict_bytes
    both = forecast_predictor(Predictor([small, large]), shape, spacing)
    assert both.prepared_bytes == 2 * 4 * voxels
    # The first one's mask is held until it is compared with the second one's.
    assert both.predict_bytes == other.predict_bytes + 4 * voxels + voxels
    assert both.prepare_bytes == one.prepare_bytes + 4 * voxels
    assert both.write_bytes == one.write_bytes + 4 * voxels


@pytest.mark.parametrize("tta", [False, True])
def test_logits_of_the_windows_are_counted(tta):
    settings = InferenceSettings(window_batch=4, tta=tta)
    few, many = (
        forecast_memory(
            (128,) * 3, (1, 1, 1), plan=make_plan(PLAN.stage, with_classes(count)), settings=settings, num_networks=1
        ).predict_bytes
        for count in (31, 105)
    )
    # Twice while they are made, and their sum over flips: of four windows and 74 more classes.
    assert many - few > (3 if tta else 2) * 4 * 4 * 128**3 * 74


def with_classes(count: int) -> LabelScheme:
    return LabelScheme(names=("background", *(f"organ {k}" for k in range(1, count))), values=tuple(range(count)))
