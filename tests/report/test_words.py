"""A plan in words: what was planned, and which flags of the training changed it."""

from __future__ import annotations

from pathlib import Path

from report.records import RunFacts
from report.words import plan_in_words
from tests.data_preprocessing.builders import make_plan


def test_flags_that_change_the_network_are_named_beside_the_plan():
    plan = make_plan(patch=(4, 8, 8))
    options = {"model": {"filters": [4, 8], "depth": None}, "loader": {"batch_size": 3}}
    text = plan_in_words(plan, RunFacts(path=Path("run.json"), options=options))
    assert "As planned, a 3D U-Net" in text and "patches of 4 × 8 × 8 voxels" in text
    assert "<dt>Changed by flags</dt><dd>--filters 4 8; --batch_size 3</dd>" in text
    assert "<p>A 3D U-Net" in plan_in_words(plan) and "Changed by flags" not in plan_in_words(plan)
    assert "not where the record says" in plan_in_words(None)
