"""What `--format onnx` writes is enough for somebody who has nothing of this program; see alone.py."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.configuration_predictor import ConfigurationPredictor
from inference.decision import PostProcessing
from inference.engines.export import export_networks
from inference.engines.formulas import NORMALIZATIONS, RULES, describe_formulas
from inference.model import Model, single_model
from inference.predictor import Predictor
from inference.preparing import as_volume, prepare_scan
from models.inferer import InferenceSettings
from tests.inference.engines.made_up import ONNX, SMALL, configuration
from tests.models.builders import make_network, make_plan
from utils.files import to_dict
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


SPACINGS = {"cascade": (2.1, 1.3, 0.9), "2d": (1.0, 0.8, 1.3), "regions of two channels": (4.0, 1.2, 0.9)}
"""In mm along superior, anterior, right, where it is not the 1 mm of the plans."""


def model_of(kind: str) -> tuple[Model, InferenceSettings]:
    post = PostProcessing(foreground=True, classes=("anterior",) if kind != "regions of two channels" else ())
    model = single_model(normalized_first(MAKERS[kind]()))
    return dataclasses.replace(model, post_processing=post), InferenceSettings(overlap=0.5)


def normalized_first(one):
    """As plans of today are."""
    previous = None if one.previous is None else normalized_first(one.previous)
    return dataclasses.replace(one, plan=dataclasses.replace(one.plan, normalize_first=True), previous=previous)


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_stranger_and_onnxruntime_in_this_program_reach_the_mask_of_torch(kind: str, tmp_path: Path):
    from tests.inference.engines import alone

    model, settings = model_of(kind)
    image, spacing = an_image(len(model.plan.channels)), SPACINGS.get(kind, (1.0, 1.0, 1.0))
    scan = as_volume(image, spacing), "the scan"
    *_, line = export_networks(tmp_path / "out", model, "onnx", license_note="", scan=scan)
    cpu = torch.device("cpu")
    ours = Predictor(
        [ConfigurationPredictor(each, device=cpu, settings=settings) for each in model.configurations],
        model.post_processing,
    ).predict(image, spacing)
    assert len(np.unique(ours)) > 1
    np.testing.assert_array_equal(alone.predict(tmp_path / "out", image, spacing), ours)
    assert line.startswith(f"the scan: 0 of {ours.size} voxels differ")
    found = json.loads((tmp_path / "out/model.json").read_text())["agreement_on_a_scan"]
    _check_files(tmp_path / "out", model)
    assert found["differing"] == 0 and np.count_nonzero(ours) <= found["foreground"] < found["voxels"] == ours.size


def _check_files(folder: Path, model: Model) -> None:
    """The opset that is promised, any number of windows, and shapes as model.json has them."""
    import onnx
    import onnxruntime

    description = json.loads((folder / "model.json").read_text())
    for each in description["configurations"]:
        path = folder / each["networks"][0]["file"]
        assert {o.version for o in onnx.load(path).opset_import if o.domain == ""} == {20} == {description["opset"]}
        windows = np.zeros((3, *each["input"]["shape"][1:]), dtype=np.float32)
        [logits] = onnxruntime.InferenceSession(path).run(["logits"], {"image": windows})
        assert logits.shape == (3, *each["output"]["shape"][1:])
        assert each["input"]["shape"][1] == model.plan.in_channels


def an_image(channels: int) -> np.ndarray:
    """(C, 15, 11, 13) of noise, with zeros at two sides and, in the last channel, in a corner."""
    image = np.random.default_rng(0).normal(size=(channels, 15, 11, 13)).astype(np.float32)
    image[:, :2], image[:, :, -1], image[-1, 2:7, :4, :5] = 0, 0, 0
    return image


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize(
    "spacing",
    [
        pytest.param((1.9, 1.3, 0.9), id="all axes"),
        pytest.param((5.1, 1.3, 0.9), id="a coarse axis in the scan"),
        pytest.param((1.0, 1.0, 1.0), id="not resampled"),
    ],
)
@pytest.mark.parametrize("target", [(1.4, 1.1, 1.0), (4.0, 1.1, 1.0)], ids=["even", "a coarse axis in the plan"])
def test_the_formulas_lead_to_our_intensities(spacing, target, axes):
    """CT and z-scores, with the mask channel, by the words of `formulas`."""
    from tests.inference.engines import alone

    one = normalized_first(with_ct(configuration("regions of two channels")))
    stage = dataclasses.replace(one.plan.stage, spacing_mm=target)
    plan = dataclasses.replace(one.plan, stage=stage, axes=axes, mask_channel=True)
    image = an_image(2)
    written = to_dict(plan) | {"orientation": plan.orientation}
    theirs, grid = alone.prepared(written, image, spacing)
    ours = prepare_scan(as_volume(image, spacing), plan, "the scan")
    assert grid.after == ours.meta.resampled_shape
    inner = tuple(slice(low, low + n) for low, n in zip(ours.meta.pad_low, grid.after))
    np.testing.assert_allclose(theirs, ours.image[(slice(None), *inner)], rtol=0, atol=1e-5)
    assert [channel.scheme for channel in plan.channels] == ["ct", "zscore"] and len(theirs) == 3
    assert {f"normalization {channel.scheme}" for channel in plan.channels} | {"resampling", "mask channel"} <= set(
        describe_formulas(single_model(dataclasses.replace(one, plan=plan)))
    )


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
