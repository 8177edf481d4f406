"""What tests say of scans that they do not have: a look of none of theirs, and a cross-validation of five cases."""

from __future__ import annotations

from inference.doubt import Calibration, calibrate
from inference.input_check import ScanLook
from utils.certainty import Certainty


def plain_look() -> ScanLook:
    features = {"low": -2.0, "middle": 0.0, "high": 2.0, "texture": 1.0}
    return ScanLook(spacing_mm=(1.0, 1.0, 1.0), extent_mm=(99.0, 99.0, 99.0), orientation="RAS", channels=(features,))


def calibrated(values=(0.5, 0.6, 0.7, 0.8, 0.9), inputs=None) -> Calibration:
    """What five cases say whose signals and Dice are these values."""
    cases = [
        (
            Certainty(
                members=1, voxels=(1.0, 1.0), confidence=(v, v), overlap=(v, v), settled=(v, v), agreement=(None, None)
            ),
            (v, v),
        )
        for v in values
    ]
    return calibrate("3d_fullres", ["anterior", "posterior"], cases, inputs=inputs)
