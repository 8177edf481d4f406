"""FLOPs of whole networks: counted from shapes, they equal those of a network that computes."""

from __future__ import annotations

import pytest
import torch

from data_preprocessing.dataset.synthetic import benchmark_plan
from models.flop_count import network_flops
from tests.models.builders import make_network, make_plan, make_stage
from utils.config import ModelConfig
from utils.flops import count_flops


@pytest.mark.parametrize("training", [False, True])
def test_shapes_alone_give_the_count_of_a_real_pass(monkeypatch, training):
    # torch's counter knows no operator that is oneDNN's alone.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    plan, model = make_plan(), ModelConfig(deep_supervision=True, deep_supr_num=1)
    network = make_network(plan, model).train(training)

    def step() -> None:
        outputs = network(torch.ones(2, 1, 8, 8, 8))
        if training:
            sum(output.sum() for output in outputs).backward()

    assert network_flops(plan, model, batch_size=2, training=training) == count_flops(step)


def test_count_is_in_proportion_to_the_batch_and_training_takes_almost_three_passes():
    plan = make_plan(make_stage((16, 16)))
    one, four = (network_flops(plan, ModelConfig(), batch_size=n, training=False) for n in (1, 4))
    training = network_flops(plan, ModelConfig(), batch_size=1, training=True)
    # The first convolution needs no gradient of its input.
    assert four == 4 * one and training == 3 * one - 2 * 16 * 16 * 4 * 1 * 9


def test_hippocampus_network_is_as_large_as_it_is_known_to_be():
    flops = network_flops(benchmark_plan("04", 3), ModelConfig(), batch_size=1, training=False)
    assert flops == pytest.approx(38.3e9, rel=0.001)
