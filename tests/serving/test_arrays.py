"""Arrays that a server is sent in place of files are held to the limits that files have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.predictor import Predictor
from serving import uploads
from serving.answers import make_record
from serving.limits import Limits
from serving.predicting import ScanPredictor
from serving.refusals import Refused
from serving.uploads import open_array
from tests.serving.service import save_model
from utils.errors import UserError

pytestmark = pytest.mark.slow
IMAGE = np.random.default_rng(0).uniform(1, 9, (1, 9, 10, 11)).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.load(save_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.mark.parametrize(
    ("image", "spacing_mm", "message"),
    [
        (IMAGE, [0.0, 1, 1], "three positive voxel sizes"), (IMAGE, [1, -1.0, 1], "three positive voxel sizes"),
        (IMAGE, [1, float("nan"), 1], "three positive voxel sizes"),
        (IMAGE, [1, 1, float("inf")], "three positive voxel sizes"), (IMAGE, [1.0, 1], "three positive voxel sizes"),
        (np.repeat(IMAGE, 2, axis=0), [1, 1, 1], "with 1 channels, got shape"),
        (IMAGE[0], [1, 1, 1], "with 1 channels, got shape"), (IMAGE[:, :0], [1, 1, 1], "got shape"),
        (IMAGE, [50, 1, 1], "voxels on the model's grid; this service takes 5000"),
        (np.repeat(IMAGE, 9, axis=1), [1, 1, 1], "the image has 8910 voxels; this service takes 5000"),
    ],
)  # fmt: skip
def test_what_is_no_scan_is_refused_before_it_is_prepared(predictor, image, spacing_mm, message):
    with pytest.raises((UserError, Refused)) as caught:
        open_array(image, spacing_mm, predictor, Limits(voxels=5000))
    assert message in str(caught.value)


def test_memory_is_looked_at(predictor, monkeypatch):
    monkeypatch.setattr(uploads, "free_memory_bytes", lambda: uploads.PROGRAM_BYTES)
    with pytest.raises(Refused, match="GB are free"):
        open_array(IMAGE, [1, 1, 1], predictor, Limits())


def test_what_was_done_to_a_scan_stands_in_its_record(predictor, tmp_path):
    image = IMAGE.copy()
    image[0, 0, 0, :2] = np.nan, np.inf
    volume = open_array(image, [1.0, 1, 1], predictor, Limits())
    found = ScanPredictor(predictor).predict(volume, "the image", tmp_path, lambda num_bytes: None)
    assert make_record(found, volume, predictor, {}, ["first"])["remarks"] == [
        "first", "2 NaN or infinite intensities are taken as 0"
    ]  # fmt: skip
    nothing = open_array(np.full_like(IMAGE, np.nan), [1, 1, 1], predictor, Limits())
    with pytest.raises(UserError, match="NaN or infinite intensities only"):
        ScanPredictor(predictor).predict(nothing, "the image", Path(), lambda num_bytes: None)
