from __future__ import annotations

import dataclasses
import json
import math

import pytest

from data_preprocessing.dataset.description_file import load_dataset
from data_preprocessing.planning import planner
from data_preprocessing.planning.fingerprint import combine
from data_preprocessing.planning.presets import MSD_TASKS
from data_preprocessing.runner import inspect_cases
from tests.data_preprocessing.planning.builders import STATISTICS, dataset, fingerprint, plan
from utils.errors import UserError
from utils.files import from_dict, to_dict
from utils.schema import ChannelStatistics, Plan
from utils.workers import Workers


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("task", sorted(MSD_TASKS))
def test_msd_task_keeps_the_reference_numbers(task, dim):
    preset = MSD_TASKS[task]
    result = plan(dataset(task=task, name=preset.folder, channels=("CT" if preset.ct else "MRI",)), dim=dim)
    assert result.origin == "preset"
    assert result.stage.patch_size == (preset.patch_size_3d if dim == 3 else preset.patch_size_2d)
    assert result.stage.spacing_mm == (preset.spacing_mm_3d if dim == 3 else preset.spacing_mm_2d)
    if preset.ct:
        channel = result.channels[0]
        assert (channel.lower, channel.upper, channel.mean, channel.std) == (
            preset.ct.lower, preset.ct.upper, preset.ct.mean, preset.ct.std,
        )  # fmt: skip


def test_msd_number_with_another_folder_is_planned_from_its_data():
    assert plan(dataset(task="04", name="Task04_MyOwn")).origin == "auto"


def test_preset_can_be_left_for_an_automatic_plan():
    brats = dataset(task="01", name=MSD_TASKS["01"].folder)
    assert plan(brats, source="auto").origin == "auto"
    assert plan(brats, source="preset").origin == plan(brats).origin == "preset"


def test_preset_of_another_data_set_is_a_user_error():
    with pytest.raises(UserError, match=r"--plan preset: Task42_Own is none of Task01_BrainTumour, .*--plan auto"):
        plan(source="preset")


def test_spacing_is_the_median_of_isotropic_data():
    result = plan(numbers=fingerprint((1.0, 1.0, 1.0), (2.0, 1.5, 1.2), (1.5, 1.2, 1.1)))
    assert result.stage.spacing_mm == (1.5, 1.2, 1.1)


def test_coarse_axis_of_anisotropic_data_gets_the_tenth_percentile():
    spacings = [(float(s), 0.7, 0.7) for s in range(3, 14)]
    result = plan(numbers=fingerprint(*spacings, shapes=((20, 200, 200),)))
    assert result.stage.spacing_mm == pytest.approx((4.0, 0.7, 0.7))


def test_tenth_percentile_is_not_finer_than_the_other_axes():
    spacings = [(0.5, 1.0, 1.0), *[(5.0, 1.0, 1.0)] * 4]
    result = plan(numbers=fingerprint(*spacings, shapes=((20, 200, 200),)))
    assert result.stage.spacing_mm[0] == pytest.approx(2.3)
    spacings = [(0.5, 1.0, 1.0)] * 2 + [(5.0, 1.0, 1.0)] * 3
    result = plan(numbers=fingerprint(*spacings, shapes=((20, 200, 200),)))
    assert 1.0 < result.stage.spacing_mm[0] < 1.001


def test_thick_slices_with_many_of_them_are_not_anisotropic():
    spacings = [(4.0, 1.0, 1.0), (8.0, 1.0, 1.0), (8.0, 1.0, 1.0)]
    assert plan(numbers=fingerprint(*spacings, shapes=((100, 100, 100),))).stage.spacing_mm[0] == 8.0


@pytest.mark.parametrize(
    ("slice_mm", "slices", "target_mm"),
    [(2.9, 20, 2.9), (3.0, 20, 3.0), (3.1, 20, 2.0), (3.1, 66, 2.0), (3.1, 67, 3.1), (9.0, 70, 9.0)],
)
def test_anisotropic_is_more_than_three_times_as_coarse_and_less_than_a_third_as_long(slice_mm, slices, target_mm):
    # The 10th percentile of 3 finer scans among 12 is theirs.
    spacings = [(2.0, 1.0, 1.0)] * 3 + [(slice_mm, 1.0, 1.0)] * 9
    result = plan(numbers=fingerprint(*spacings, shapes=((slices, 200, 220),)))
    assert result.stage.spacing_mm[0] == pytest.approx(target_mm)


@pytest.mark.parametrize("dim", [2, 3])
def test_coarse_axis_comes_first(dim):
    result = plan(numbers=fingerprint((0.8, 0.6, 5.0), shapes=((200, 160, 20),)), dim=dim)
    assert result.axes == (2, 0, 1)
    assert result.stage.spacing_mm[-2:] == (0.8, 0.6)
    assert result.stage.patch_size[-2:] == (224, 160)


def test_axial_slices_where_no_axis_is_coarse():
    assert plan(numbers=fingerprint((1.0, 1.005, 1.0)), dim=2).axes == (0, 1, 2)
    assert plan(numbers=fingerprint((0.5, 1.0, 1.0)), dim=2).axes == (0, 1, 2)


def test_presets_keep_axial_slices_unless_another_axis_is_much_coarser():
    heart = dataset(task="02", name=MSD_TASKS["02"].folder)
    assert plan(heart, fingerprint((1.0, 1.9, 1.0))).axes == (0, 1, 2)
    assert plan(heart, fingerprint((1.0, 1.9, 1.0)), source="auto").axes == (1, 0, 2)


def test_patch_is_the_median_scan_rounded_up_to_the_strides():
    result = plan(numbers=fingerprint((1.0, 1.0, 1.0), shapes=((36, 50, 35),)))
    assert result.stage.patch_size == (40, 56, 40)


def test_median_scan_is_measured_at_the_target_spacing():
    numbers = fingerprint((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), shapes=((20,) * 3, (40,) * 3, (40,) * 3))
    assert plan(numbers=numbers).stage.patch_size == (40, 40, 40)


def test_memory_limits_the_patch():
    large = fingerprint((1.0, 1.0, 1.0), shapes=((300, 300, 300),))
    sizes = [math.prod(plan(numbers=large, gpu_memory_gb=gb).stage.patch_size) for gb in (4.0, 8.0, 16.0)]
    assert sizes[1] == 128**3 and sizes == sorted(set(sizes))


def test_low_resolution_stage_has_a_coarser_spacing():
    large = fingerprint((1.0, 1.0, 1.0), shapes=((300, 300, 300),))
    result = plan(numbers=large, lowres=True)
    assert result.stage.name == "3d_lowres" and result.stage.spacing_mm[0] > 1.3
    assert result.axes == plan(numbers=large).axes


def test_low_resolution_stage_of_a_decathlon_task_is_automatic():
    liver = dataset(task="03", name=MSD_TASKS["03"].folder)
    large = fingerprint((1.0, 0.7676, 0.7676), shapes=((482, 512, 512),))
    assert plan(liver, large, lowres=True).origin == "auto"
    with pytest.raises(UserError, match="has no low-resolution stage"):
        plan(liver, large, lowres=True, source="preset")


def test_low_resolution_stage_of_small_scans_is_refused():
    with pytest.raises(UserError, match=r"needs no low-resolution stage: .* covers 100%"):
        plan(lowres=True)


def test_tiny_scans_get_a_patch_that_can_be_halved_once():
    assert plan(numbers=fingerprint((1.0, 1.0, 1.0), shapes=((2, 3, 4),))).stage.patch_size == (2, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "patch", "batch"), [(3, (40, 56, 40), 7), (2, (56, 40), 292)])
def test_real_hippocampus_is_planned_as_nnunet_plans_it(real_data, dim, patch, batch):
    data = load_dataset(real_data, "04")
    with Workers(1) as workers:
        numbers = combine(inspect_cases(data, data.training, workers))
    stage = plan(data, numbers, dim=dim, source="auto").stage
    assert (stage.patch_size, stage.batch_size, stage.spacing_mm) == (patch, batch, (1.0,) * dim)
    assert stage.total_strides == (8,) * dim and stage.filters == (32, 64, 128, 256)


def test_ct_channel_is_normalised_by_the_foreground_and_its_neighbours_are_not():
    numbers = fingerprint((1.0, 1.0, 1.0), foreground=(STATISTICS, STATISTICS))
    channels = plan(dataset(channels=("PET", "ct")), numbers).channels
    assert [channel.scheme for channel in channels] == ["zscore", "ct"]
    assert (channels[1].lower, channels[1].upper, channels[1].mean, channels[1].std) == (-50.0, 150.0, 40.0, 20.0)


@pytest.mark.parametrize(
    ("name", "scheme", "reason"),
    [
        ("noNorm", "none", "noNorm in dataset.json: intensities as they are stored"),
        ("Rescale_to_0_1", "rescale_to_0_1", "each scan's own smallest and largest intensity"),
        ("RGB_TO_0_1", "rgb_to_0_1", "divided by 255"),
        ("zscore", "zscore", "zscore in dataset.json: mean and deviation of each scan's own non-zero voxels"),
        ("T1", "zscore", "as for every name but CT, noNorm, rescale_to_0_1, rgb_to_0_1"),
        ("MRI", "zscore", "as for every name but CT, noNorm, rescale_to_0_1, rgb_to_0_1"),
    ],
)
def test_a_channel_is_normalised_as_its_name_says(name, scheme, reason):
    result = plan(dataset(channels=(name,)), fingerprint((1.0, 1.0, 1.0), foreground=()))
    assert result.channels[0].scheme == scheme and reason in result.reasons["channel_0"]
    # The remark is for names that choose nothing.
    assert ("as for every name" in result.reasons["channel_0"]) == (name in ("T1", "MRI"))


def test_a_preset_follows_the_names_too():
    heart = dataset(task="02", name=MSD_TASKS["02"].folder, channels=("noNorm",))
    assert plan(heart).origin == "preset" and plan(heart).channels[0].scheme == "none"


def test_new_plans_normalise_before_resampling():
    assert plan().normalize_first and plan(dim=2).normalize_first
    assert plan(dataset(task="02", name=MSD_TASKS["02"].folder)).normalize_first


def test_ct_without_labelled_voxels_is_a_user_error():
    with pytest.raises(UserError, match=r"channel 0 \(CT\) is CT"):
        plan(dataset(channels=("CT",)), fingerprint((1.0, 1.0, 1.0), foreground=()))


def test_constant_ct_is_a_user_error():
    constant = ChannelStatistics(
        mean=7.0, std=0.0, percentile_00_5=7.0, median=7.0, percentile_99_5=7.0, minimum=7.0, maximum=7.0
    )
    with pytest.raises(UserError, match="all its labelled voxels have the intensity 7"):
        plan(dataset(channels=("CT",)), fingerprint((1.0, 1.0, 1.0), foreground=(constant,)))


def test_mask_channel_counts_as_input():
    assert plan(mask_channel=True).in_channels == 2


def test_plan_survives_json():
    result = plan(dataset(channels=("CT",)))
    assert from_dict(Plan, json.loads(json.dumps(to_dict(result))), source="test") == result


@pytest.mark.parametrize("source", ["auto", "preset"])
@pytest.mark.parametrize("spacings", [((1.0, 1.0, 1.0),), ((0.1, 0.4, 0.5), (5.0, 0.3, 0.4), (0.1, 2.0, 0.5))], ids=len)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_of_one_voxel_is_the_slice_axis(axis, spacings, source):
    others = [index for index in range(3) if index != axis]
    shape, spacings_sar = [40, 44], []
    shape.insert(axis, 1)
    for across, *inside in spacings:
        inside.insert(axis, across)
        spacings_sar.append(tuple(inside))
    task = MSD_TASKS["04"]
    data = dataset(task="04", name=task.folder) if source == "preset" else dataset()
    numbers = fingerprint(*spacings_sar, shapes=(tuple(shape),))
    result = plan(data, numbers, dim=2, source=source)
    assert result.axes == (axis, *others)
    assert min(result.stage.patch_size) >= 32
    for lowres in (False, True):
        with pytest.raises(UserError, match=f"one voxel along {'SAR'[axis]}.*use --dim 2"):
            plan(data, numbers, dim=3, source=None if lowres else source, lowres=lowres)


def test_a_few_single_slices_among_volumes_change_nothing():
    shapes = ((1, 40, 44), (30, 40, 44), (30, 40, 44))
    assert plan(numbers=fingerprint(*[(1.0, 1.0, 1.0)] * 3, shapes=shapes)).stage.dim == 3


def test_single_slices_along_different_axes_are_refused():
    shapes = ((1, 40, 44), (40, 1, 44), (40, 44, 1))
    with pytest.raises(UserError, match=r"3 of 3 scans are single slices.*1 along S, 1 along A, 1 along R"):
        plan(numbers=fingerprint(*[(1.0, 1.0, 1.0)] * 3, shapes=shapes), dim=2)


def test_half_of_the_scans_may_be_single_slices():
    shapes = ((1, 40, 44), (40, 1, 44), (30, 40, 44), (30, 40, 44))
    assert plan(numbers=fingerprint(*[(1.0, 1.0, 1.0)] * 4, shapes=shapes)).stage.dim == 3


@pytest.mark.parametrize("slices", [1, 2])
def test_a_scan_has_one_voxel_at_least_along_each_axis(slices):
    """Of two slices of 0.2 mm none would be left at 1 mm."""
    numbers = fingerprint((0.2, 1.0, 1.0), shapes=((slices, 40, 44),))
    grid = planner._grid(numbers, (1.0, 1.0, 1.0), (0, 1, 2))
    assert grid.median_shape == (1, 40, 44) and grid.num_voxels == 1 * 40 * 44


@pytest.mark.parametrize("planner", ["resenc_m", "resenc_l", "resenc_xl"])
def test_a_residual_encoder_is_always_planned_from_the_data(planner):
    task = dataset(task="04", name="Task04_Hippocampus")
    result = plan(task, planner=planner)
    assert (result.origin, result.planner, result.stage.block) == ("auto", planner, "residual")
    assert plan(task).planner == "" and plan(task).stage.block == "plain"
    with pytest.raises(
        UserError, match=f"--plan preset has no residual encoder; leave out --plan or --planner {planner}"
    ):
        plan(task, planner=planner, source="preset")


def test_presets_keep_the_decoder_of_the_reference_and_auto_has_that_of_nnunet():
    preset = plan(dataset(task="05", name="Task05_Prostate")).stage
    assert preset.decoder_kernels == () and preset.step_kernels == preset.kernels[1:]
    auto = plan(dataset(task="05", name="Task05_Prostate"), fingerprint((3.6, 0.6, 0.6)), source="auto").stage
    assert auto.step_kernels == auto.kernels[:-1] and auto.kernels[0] == (1, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planner", "gigabytes"), [("default", 8.0), ("resenc_m", 8.0), ("resenc_l", 24.0), ("resenc_xl", 40.0)]
)
def test_each_planner_has_a_memory_of_its_own(planner, gigabytes):
    numbers = fingerprint((1.0, 1.0, 1.0), shapes=((400, 400, 400),))
    assert plan(numbers=numbers, planner=planner) == plan(numbers=numbers, planner=planner, gpu_memory_gb=gigabytes)
    more = plan(numbers=numbers, planner=planner, gpu_memory_gb=4 * gigabytes)
    assert math.prod(more.stage.patch_size) > math.prod(plan(numbers=numbers, planner=planner).stage.patch_size)


@pytest.mark.parametrize(("share", "scheme"), [(0.7499, "zscore_mask"), (0.75, "zscore_crop"), (1.0, "zscore_crop")])
def test_nnunet_s_zscores_are_those_of_a_mask_where_cropping_takes_much_away(share, scheme):
    numbers = dataclasses.replace(fingerprint((1.0, 1.0, 1.0)), median_relative_size=share)
    result = plan(
        dataset(channels=("MRI", "CT", "zscore")),
        numbers=dataclasses.replace(numbers, foreground=(STATISTICS,) * 3),
        zscore="nnunet",
    )
    assert [channel.scheme for channel in result.channels] == [scheme, "ct", scheme]
    assert plan(numbers=numbers).channels[0].scheme == "zscore"


def test_nnunet_s_zscores_need_to_know_what_cropping_takes_away():
    with pytest.raises(UserError, match="--overwrite"):
        plan(zscore="nnunet")


def test_a_preset_keeps_the_zscores_of_the_reference():
    assert plan(dataset(task="04", name="Task04_Hippocampus"), zscore="nnunet").channels[0].scheme == "zscore"
