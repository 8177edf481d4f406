from __future__ import annotations

import dataclasses

from data_preprocessing.planning.plan_table import LINE_WIDTH, plan_table
from tests.data_preprocessing.planning.builders import dataset, fingerprint, plan
from utils.rules import NNUNET_V2


def test_table_gives_every_number_with_its_reason():
    text = plan_table(plan(dataset(channels=("CT",))))
    for word in ("40x40x40", "median over the training cases", "clip to -50 .. 150", "0 background, 1 organ", "3 3 3"):
        assert word in text
    assert "(the least;" in text


def test_table_fits_a_terminal():
    assert max(map(len, plan_table(plan()).splitlines())) <= LINE_WIDTH


def test_table_tells_the_memory_of_a_batch():
    # 64000 voxels: 1 image, 2 * 160 feature maps, 2 logits; /8: 2 * 320; /64: 2 * 640; /512: 2 * 512; twice, 4 bytes.
    assert "0.22 GB of activations" in plan_table(plan())


def test_table_says_how_each_channel_is_normalised():
    names = ("noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore", "T1")
    text = plan_table(plan(dataset(channels=names)))
    for line in (
        "noNorm: not normalised", "rescale_to_0_1: rescaled to 0 .. 1", "rgb_to_0_1: divided by 255", "zscore: z-score",
        "T1: z-score",
    ):  # fmt: skip
        assert line in text
    assert text.count("as for every name but CT, noNorm") == 1


def test_table_says_how_each_level_of_a_residual_network_convolves():
    text = plan_table(plan(planner="resenc_m", numbers=fingerprint((3.0, 1.0, 1.0), shapes=((12, 40, 40),))))
    for line in (
        "planned as auto by resenc_m", "kernels    1x3x3, 3x3x3, 3x3x3, 3x3x3", "- decoder  1x3x3, 3x3x3, 3x3x3",
        "blocks     1 3 4 6", "- decoder  1 1 1 convolutions", "the encoder does most of the work",
    ):  # fmt: skip
        assert line in text
    assert max(map(len, text.splitlines())) <= LINE_WIDTH


def test_table_says_which_axes_are_flipped():
    own = plan(numbers=fingerprint((0.8, 4.0, 0.8)))
    assert "flips" not in plan_table(own) and own.axes == (1, 0, 2)
    assert "flips      along A S" in plan_table(dataclasses.replace(own, mirror_axes=(0, 1)))
    assert "flips      none" in plan_table(dataclasses.replace(own, mirror_axes=()))
    assert "prediction" not in plan_table(own)


def test_a_plan_of_nnunet_says_whose_rules_and_whose_axes():
    theirs = dataclasses.replace(plan(), orientation="stored", axes=(1, 0, 2), mirror_axes=(0, 2), rules=NNUNET_V2)
    text = plan_table(theirs)
    assert "axes       y z x as stored in the files" in text and "flips      along y x" in text
    assert "prediction by nnU-Net v2's rules" in text
