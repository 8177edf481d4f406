"""Configurations of random weights, without files; and which engines are installed here."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from inference.configuration import ConfigurationModel, FoldWeights
from inference.model import Model, single_model
from tests.models.builders import BRATS, make_network, make_plan, make_stage
from utils.config import ModelConfig
from utils.schema import Plan

ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed: pip install -e '.[onnx]'",
)
OPENVINO = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "openvino")),
    reason="openvino, onnx and onnxscript are not installed: pip install -e '.[openvino]'",
)
ENGINES = [pytest.param("onnxruntime", marks=ONNX), pytest.param("openvino", marks=OPENVINO)]

SMALL = make_stage((8, 8, 8), filters=(4, 6))
RESIDUAL = dataclasses.replace(SMALL, block="residual", encoder_convs=(1, 2), decoder_convs=(1,))
KINDS: dict[str, tuple[Plan, ModelConfig]] = {
    "3d": (make_plan(SMALL), ModelConfig()),
    "2d": (make_plan(make_stage((8, 8), filters=(4, 6))), ModelConfig()),
    "regions of two channels": (make_plan(SMALL, BRATS, num_channels=2), ModelConfig()),
    "residual blocks": (make_plan(SMALL), ModelConfig(res_block=True)),
    "residual encoder": (make_plan(RESIDUAL), ModelConfig()),
}


def configuration(kind: str = "3d", folds: int = 1, seed: int = 0) -> ConfigurationModel:
    plan, model = KINDS[kind]
    weights = tuple(
        FoldWeights(name=f"fold_{k}", fold=k, state_dict=make_network(plan, model, seed + k).state_dict())
        for k in range(folds)
    )
    return ConfigurationModel(source=Path(kind), plan=plan, model=model, folds=weights)


def one_model(kind: str = "3d", folds: int = 1) -> Model:
    return single_model(configuration(kind, folds))
