"""A look of a scan that no test's scan has."""

from __future__ import annotations

from inference.input_check import ScanLook


def plain_look() -> ScanLook:
    features = {"low": -2.0, "middle": 0.0, "high": 2.0, "texture": 1.0}
    return ScanLook(spacing_mm=(1.0, 1.0, 1.0), extent_mm=(99.0, 99.0, 99.0), orientation="RAS", channels=(features,))
