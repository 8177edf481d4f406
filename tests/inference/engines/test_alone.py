"""What `--format onnx` writes is enough for somebody who has nothing of this program; see alone.py."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.configuration_predictor import ConfigurationPredictor
from inference.decision import PostProcessing
from inference.engines.export import export_networks
from inference.engines.formulas import NORMALIZATIONS, RULES
from inference.model import Model, single_model
from inference.predictor import Predictor
from models.inferer import InferenceSettings
from tests.inference.engines.made_up import ONNX, SMALL, configuration
from tests.models.builders import make_network, make_plan
from utils.rules import NNUNET_V2, Rules
from utils.schema import SCHEMES, ChannelPlan


def with_ct(one):
    """Slices across A, and a first channel of CT."""
    ct = ChannelPlan(name="ct", scheme="ct", lower=-1.5, upper=2.0, mean=0.2, std=0.7)
    plan = dataclasses.replace(one.plan, channels=(ct, *one.plan.channels[1:]), axes=(1, 0, 2))
    return dataclasses.replace(one, plan=plan)


def cascade():
    """A second stage that sees the classes of the first one."""
    plan = dataclasses.replace(make_plan(SMALL), previous_stage="3d_lowres")
    weights = dataclasses.replace(configuration().folds[0], state_dict=make_network(plan, None, 5).state_dict())
    first = configuration(seed=3)
    first = dataclasses.replace(
        first, plan=dataclasses.replace(first.plan, stage=dataclasses.replace(SMALL, name="3d_lowres"))
    )
    return dataclasses.replace(configuration(), plan=plan, folds=(weights,), previous=first)


MAKERS = {
    "3d of two folds, channels along other axes": lambda: with_ct(configuration(folds=2)),
    "2d": lambda: configuration("2d"),
    "regions of two channels": lambda: with_ct(configuration("regions of two channels")),
    "residual encoder": lambda: configuration("residual encoder"),
    "cascade": cascade,
}


def model_of(kind: str) -> tuple[Model, InferenceSettings]:
    post = PostProcessing(foreground=True, classes=("anterior",) if kind != "regions of two channels" else ())
    return dataclasses.replace(single_model(MAKERS[kind]()), post_processing=post), InferenceSettings(overlap=0.5)


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_stranger_reaches_the_same_mask(kind: str, tmp_path: Path):
    from tests.inference.engines import alone

    model, settings = model_of(kind)
    export_networks(tmp_path / "out", model, "onnx", license_note="")
    rng = np.random.default_rng(0)
    image = rng.normal(size=(len(model.plan.channels), 15, 11, 13)).astype(np.float32)
    image[:, :2], image[:, :, -1] = 0, 0
    cpu = torch.device("cpu")
    ours = Predictor(
        [ConfigurationPredictor(each, device=cpu, settings=settings) for each in model.configurations],
        model.post_processing,
    ).predict(image, (1.0, 1.0, 1.0))
    assert len(np.unique(ours)) > 1
    assert np.count_nonzero(alone.predict(tmp_path / "out", image) != ours) <= 1


def test_every_scheme_and_rule_is_put_into_words():
    assert NORMALIZATIONS.keys() == set(SCHEMES)
    chosen = [*dataclasses.asdict(Rules()).items(), *dataclasses.asdict(NNUNET_V2).items()]
    assert RULES.keys() == set(chosen)


def test_nothing_of_this_program_is_needed():
    tree = ast.parse(Path(__file__).with_name("alone.py").read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = {name.partition(".")[0] for node in nodes for name in (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
    )}  # fmt: skip
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "scipy"}
