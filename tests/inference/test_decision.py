from __future__ import annotations

import pytest

from inference.decision import Decision, DecisionMember, PostProcessing
from utils.files import read_json, write_json
from utils.schema import FORMAT_VERSION

MEMBER = DecisionMember(configuration="2d", folder="04_2d")


def decide(*members: DecisionMember) -> Decision:
    return Decision(
        version=FORMAT_VERSION, task="04", dataset="Task04_Hippocampus", members=members,
        post_processing=PostProcessing(foreground=True, classes=("Anterior",)), scores={"2d": 0.5}, command="python",
    )  # fmt: skip


def test_a_decision_survives_the_way_through_its_file(tmp_path):
    decision = decide(MEMBER)
    write_json(decision, tmp_path / "decision.json")
    assert read_json(Decision, tmp_path / "decision.json") == decision


def test_a_configuration_may_not_occur_twice_or_be_unknown():
    with pytest.raises(ValueError, match="each once"):
        decide(MEMBER, MEMBER)
    with pytest.raises(ValueError, match="none of 2d, 3d_fullres"):
        DecisionMember(configuration="4d", folder="04")


def test_post_processing_does_nothing_unless_asked():
    assert PostProcessing().does_nothing
    assert not PostProcessing(classes=("liver",)).does_nothing
