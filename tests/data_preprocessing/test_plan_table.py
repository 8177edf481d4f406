from __future__ import annotations

from data_preprocessing.plan_table import LINE_WIDTH, plan_table
from tests.data_preprocessing.test_planner import dataset, plan


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
