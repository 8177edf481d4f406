"""A stored plan and stored folds, adapted to the flags."""

from __future__ import annotations

import dataclasses

import pytest

from data_preprocessing.dataset.description_file import make_splits
from data_preprocessing.planning.adapt import adapt_plan, mirror_along, read_fold
from tests.models.builders import BRATS, make_plan, make_stage
from utils.config import ModelConfig
from utils.errors import UserError
from utils.files import write_json
from utils.schema import Fold, Splits

PLAN = make_plan(make_stage((16, 16, 16), filters=(32, 64, 128)))


def test_without_flags_the_plan_stays():
    assert adapt_plan(PLAN, ModelConfig(), batch_size=None, brats=False) == PLAN


def test_depth_and_filters_change_the_levels():
    stage = adapt_plan(PLAN, ModelConfig(depth=1, filters=(8, 16)), batch_size=None, brats=False).stage
    assert stage.strides == ((1, 1, 1), (2, 2, 2)) and stage.filters == (8, 16)


def test_min_fmap_ends_pooling_earlier():
    stage = adapt_plan(PLAN, ModelConfig(min_fmap=8), batch_size=None, brats=False).stage
    assert stage.total_strides == (2, 2, 2)


def test_too_few_filters_are_refused():
    with pytest.raises(UserError, match="--filters has 1"):
        adapt_plan(PLAN, ModelConfig(filters=(8,)), batch_size=None, brats=False)


def test_batch_size_of_the_flag_wins():
    assert adapt_plan(PLAN, ModelConfig(), batch_size=5, brats=False).stage.batch_size == 5


def test_brats_gives_regions_to_a_plan_without():
    plan = dataclasses.replace(PLAN, labels=dataclasses.replace(BRATS, regions=()))
    assert adapt_plan(plan, ModelConfig(), batch_size=None, brats=True).labels.regions == BRATS.regions
    with pytest.raises(UserError, match="--brats"):
        adapt_plan(PLAN, ModelConfig(), batch_size=None, brats=True)


def test_stored_folds_are_used_as_they_are_edited(tmp_path):
    fold = Fold(train=("c",), val=("a", "b"))
    write_json(Splits(version=1, folds=(fold, Fold(train=("a", "b"), val=("c",)))), tmp_path / "splits.json")
    assert read_fold(tmp_path, 0, nfolds=2) == fold


def test_another_number_of_folds_is_made_from_the_same_cases(tmp_path):
    cases = [f"case{i}" for i in range(7)]
    write_json(make_splits(cases, 5), tmp_path / "splits.json")
    assert read_fold(tmp_path, 1, nfolds=3) == make_splits(cases, 3).folds[1]


def test_a_shallower_residual_network_keeps_the_kinds_of_its_levels():
    kernels = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    stage = dataclasses.replace(
        make_stage((16, 16, 16), filters=(32, 64, 128)), kernels=kernels, decoder_kernels=kernels[:-1],
        encoder_convs=(1, 3, 4), decoder_convs=(1, 1), block="residual",
    )  # fmt: skip
    shallow = adapt_plan(make_plan(stage), ModelConfig(depth=1), batch_size=None, brats=False).stage
    assert (shallow.encoder_convs, shallow.decoder_convs, shallow.block) == ((1, 3), (1,), "residual")
    assert shallow.decoder_kernels == shallow.kernels[:-1]
    deep = adapt_plan(make_plan(stage), ModelConfig(depth=3, min_fmap=2), batch_size=None, brats=False).stage
    assert (deep.encoder_convs, deep.decoder_convs) == ((1, 3, 4, 4), (1, 1, 1))


@pytest.mark.parametrize(
    ("axes", "mirrored"),
    [
        (("S", "A", "R"), None),
        (("R", "A", "S"), None),
        (("S", "A"), (0, 1)),
        (("A",), (0,)),
        (("R",), (2,)),
        (("none",), ()),
    ],
)
def test_axes_of_a_scan_become_those_of_the_patch(axes, mirrored):
    plan = dataclasses.replace(PLAN, axes=(1, 0, 2))
    assert mirror_along(plan, axes).mirror_axes == mirrored


def test_axes_of_a_scan_are_refused_where_patches_lie_as_stored():
    plan = dataclasses.replace(PLAN, orientation="stored")
    with pytest.raises(UserError, match=r"--mirror_axes S A: .*\"mirror_axes\": \[0, 1\], into plan\.json"):
        mirror_along(plan, ("S", "A"))
    assert mirror_along(plan, ("none",)).mirror_axes == () and mirror_along(plan, ("S", "A", "R")) == plan


def test_slices_are_flipped_along_the_axes_of_their_plane():
    plan = dataclasses.replace(make_plan(make_stage((16, 16))), axes=(2, 0, 1))
    assert mirror_along(plan, ("A", "R")).mirror_axes == (1,) and mirror_along(plan, ("R",)).mirror_axes == ()


def test_fold_all_trains_on_every_case_and_validates_on_those_of_the_first_fold(tmp_path):
    cases = [f"case{i}" for i in range(7)]
    write_json(make_splits(cases, 3), tmp_path / "splits.json")
    assert read_fold(tmp_path, "all") == Fold(train=tuple(cases), val=make_splits(cases, 3).folds[0].val)
