"""Doubt: what certainty means beside the cases of a cross-validation, and what is said without one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from inference.doubt import FEW_SIGNALS, SIGNALS, Calibration, calibrate, judge
from inference.doubt_weights import LOWEST
from utils.certainty import Certainty
from utils.errors import UserError
from utils.files import read_json, to_dict, write_json


def certainty(overlap=(0.9,), *, agreement=(None,), members=1) -> Certainty:
    """Certain to the same number in every way; so is the logarithm of the size."""
    voxels = tuple(0.0 if value is None else math.exp(value) for value in overlap)
    return Certainty(
        members=members, voxels=voxels, confidence=tuple(overlap), overlap=tuple(overlap),
        settled=tuple(overlap), agreement=tuple(agreement),
    )  # fmt: skip


EVEN = np.linspace(0.80, 1.0, 21).tolist()


def calibration(values=EVEN, **options) -> Calibration:
    """Cases whose overlap and confidence are these values, and their Dice as well."""
    return calibrate("3d_fullres", ["organ"], [(certainty((float(v),)), (float(v),)) for v in values], **options)


def test_the_median_is_0_and_the_worst_decile_begins_at_1():
    found = calibration()
    [spread] = found.signals["overlap"]
    assert (spread.median, spread.worst, spread.absent) == (pytest.approx(0.9), pytest.approx(0.82), 0.0)
    assert found.certainty_score(certainty((0.9,))) == pytest.approx(0)
    assert found.certainty_score(certainty((0.82,))) == pytest.approx(1)
    assert found.doubtful_from == pytest.approx(1)
    # Of 21 cases the three lowest, 0.80 to 0.82, are the worst tenth.
    assert found.doubtful_dice == pytest.approx(0.81) and found.other_dice == pytest.approx(
        np.linspace(0.83, 1, 18).mean()
    )


def test_each_case_of_a_cross_validation_is_compared_once(monkeypatch):
    compared, cases = Calibration.compared, []
    monkeypatch.setattr(Calibration, "compared", lambda self, said: cases.append(said) or compared(self, said))
    found = calibration()
    assert len(cases) == 21 and found.weights == pytest.approx(tuple(SIGNALS.values()), abs=0.02)
    # What is found then is what a scan of its own is found to be.
    scores = [found.certainty_score(each) for each in cases[:21]]
    assert found.scores == pytest.approx(np.quantile(scores, np.linspace(0, 1, 21)))


@pytest.mark.parametrize(("overlap", "doubtful"), [(0.95, False), (0.84, False), (0.815, True), (0.3, True)])
def test_worse_than_the_worst_decile_is_doubtful(overlap, doubtful):
    found = judge({"3d_fullres": certainty((overlap,))}, {"3d_fullres": calibration()})
    assert (found.calibrated, found.doubtful) == (True, doubtful)
    assert found.words.startswith("doubtful: ") == doubtful and "of 21 cases" in found.words


def test_members_that_agree_less_than_networks_with_labels_are_doubtful_however_sure_each_is():
    sure = certainty((0.99,), agreement=(0.5,), members=2)
    found = judge({"3d_fullres": sure}, {"3d_fullres": calibration()})
    assert found.doubtful and "members disagree" in found.words
    agreeing = dataclasses.replace(sure, agreement=(0.95,))
    assert not judge({"3d_fullres": agreeing}, {"3d_fullres": calibration()}).doubtful


def test_a_target_that_is_missing_where_it_never_was_is_doubtful():
    there = [(certainty((v, v)), (v, v)) for v in np.linspace(0.8, 1, 21).tolist()]
    known = calibrate("2d", ["organ", "tumour"], there)
    assert judge({"2d": certainty((0.95, None))}, {"2d": known}).doubtful
    # Where it is missing in every second case, nothing is odd about it.
    seldom = [(certainty((v, v if i % 2 else None)), (v, v)) for i, (v, _) in enumerate([s[1] for s in there])]
    known = calibrate("2d", ["organ", "tumour"], seldom)
    assert known.signals["overlap"][1].absent == pytest.approx(11 / 21)
    assert not judge({"2d": certainty((0.95, None))}, {"2d": known}).doubtful


def test_a_target_without_a_dice_leaves_the_others():
    known = calibrate("2d", ["organ", "tumour"], [(certainty((v, None)), (v, math.nan)) for v in (0.7, 0.8, 0.9)])
    assert known.signals["overlap"][1] is None and known.dice[1] is None
    assert known.certainty_score(certainty((0.8, None))) == pytest.approx(0)


def test_several_configurations_are_judged_together():
    known = {"2d": calibration(), "3d_fullres": calibration()}
    one, other = judge({"2d": certainty((0.7,))}, known).score, judge({"2d": certainty((0.95,))}, known).score
    both = judge({"2d": certainty((0.7,)), "3d_fullres": certainty((0.95,))}, known)
    assert both.score == pytest.approx((one + other) / 2)


def test_configurations_that_agree_less_than_networks_with_labels_are_doubtful_however_sure_each_is():
    known = {"2d": calibration(), "3d_fullres": calibration()}
    sure = {"2d": certainty((0.99,)), "3d_fullres": certainty((0.99,))}
    found = judge(sure, known, (0.5,))
    assert found.doubtful and "configurations disagree" in found.words
    for between in ((0.95,), (None,), ()):
        assert not judge(sure, known, between).doubtful
    assert judge(sure, {}, (0.4,)).score == pytest.approx(0.6)


def test_what_training_never_saw_adds_to_the_doubt_of_a_scan_however_sure_networks_are():
    known, sure = {"2d": calibration()}, {"2d": certainty((0.9,))}
    scores = [judge(sure, known, unseen=number).score for number in (0, 1, 3)]
    assert scores == pytest.approx([0, 1 / 3, 1])
    assert not judge(sure, known, unseen=1).doubtful and "never saw" not in judge(sure, known, unseen=1).words
    assert "something that training never saw" in judge({"2d": certainty((0.83,))}, known, unseen=1).words
    found = judge(sure, known, unseen=3)
    assert found.doubtful and "3 things that training never saw" in found.words
    # Of a scan that is doubtful anyhow this is not the reason, and without a calibration nothing is counted.
    assert "never saw" not in judge({"2d": certainty((0.7,))}, known, unseen=1).words
    assert judge(sure, {}, unseen=5).score == judge(sure, {}).score


def test_without_a_cross_validation_there_is_a_score_and_no_verdict():
    found = judge({"2d": certainty((0.9,), agreement=(0.7,), members=2)}, {})
    assert (found.calibrated, found.doubtful) == (False, None) and found.score == pytest.approx(0.2)
    assert "no verdict" in found.words
    assert judge({"2d": certainty((None,))}, {}).score == 1.0
    # One of two that has none leaves no verdict either.
    assert judge({"2d": certainty(), "3d_fullres": certainty()}, {"2d": calibration()}).doubtful is None


def test_each_network_is_compared_with_itself():
    """One network is always surer than the other; a usual scan of either is no more doubtful for that."""
    sure, unsure = np.linspace(0.9, 1, 11), np.linspace(0.5, 0.6, 11)
    cases = [
        (dataclasses.replace(certainty((float(v),)), names=(name,)), (0.8,))
        for name, values in (("fold_0", sure), ("fold_1", unsure)) for v in values
    ]  # fmt: skip
    known = calibrate("2d", ["organ"], cases)
    assert known.members["fold_1"]["overlap"][0].median == pytest.approx(0.55)

    def said(first: float, second: float) -> Certainty:
        each = tuple({"confidence": (v,), "overlap": (v,), "settled": (v,), "size": (v,)} for v in (first, second))
        mean = certainty(((first + second) / 2,), agreement=(0.9,), members=2)
        return dataclasses.replace(mean, names=("fold_0", "fold_1"), each=each)

    assert known.certainty_score(said(0.95, 0.55)) == pytest.approx(0)
    assert (
        judge({"2d": said(0.85, 0.50)}, {"2d": known}).doubtful
        and not judge({"2d": said(0.93, 0.54)}, {"2d": known}).doubtful
    )
    # A network that the calibration does not know is compared with all together.
    other = dataclasses.replace(said(0.95, 0.55), names=("last", "fold_1"))
    assert known.certainty_score(other) == pytest.approx(0, abs=0.1)


def test_few_cases_are_said_to_be_few():
    words = judge({"2d": certainty()}, {"2d": calibration((0.7, 0.8, 0.9))}).words
    assert "3 cases are few" in words


def test_a_calibration_comes_back_from_its_file(tmp_path):
    found = calibration(tta=True, overlap=0.25)
    write_json(found, tmp_path / "doubt.json")
    assert read_json(Calibration, tmp_path / "doubt.json") == found
    write_json(to_dict(found) | {"dice": []}, tmp_path / "doubt.json")
    with pytest.raises(UserError, match="one entry per target"):
        read_json(Calibration, tmp_path / "doubt.json")
    write_json(to_dict(found) | {"members": {"fold_0": {"luck": [None] * len(found.targets)}}}, tmp_path / "doubt.json")
    with pytest.raises(UserError, match="must have the signals overlap, settled, size, in all tables the same"):
        read_json(Calibration, tmp_path / "doubt.json")
    # Of signals that count for nothing there is no mean, be it all of them or the only one that a scan has.
    for weights in ([0, 0, 0], [0, 0, 1], [1], [-1, 1, 1], ["NaN", 1, 1]):
        write_json(to_dict(found) | {"weights": weights}, tmp_path / "doubt.json")
        with pytest.raises(UserError, match=r"doubt\.json"):
            read_json(Calibration, tmp_path / "doubt.json")


def older(said: Certainty) -> Certainty:
    """As an earlier version wrote it."""
    return dataclasses.replace(said, settled=())


def test_a_calibration_without_sizes_judges_by_what_it_has():
    known = calibration()
    without = {name: known.signals[name] for name in FEW_SIGNALS}
    known = dataclasses.replace(known, signals=without, weights=(0.25, 0.75))
    assert judge({"3d_fullres": said_to_be(0.9, 0.81, 0.0)}, {"3d_fullres": known}).score == pytest.approx(0.75 * 9 / 8)


@pytest.mark.parametrize("times", [4, 100])
def test_a_mask_that_leaks_is_no_less_doubtful_for_its_size(times):
    known = {"3d_fullres": told_apart(follows="size", cases=60)}
    usual = known["3d_fullres"].signals["size"][0].median
    scores = [judge({"3d_fullres": said_to_be(0.9, 0.3, size)}, known) for size in (usual, usual + math.log(times))]
    assert scores[0].doubtful and scores[1].score == scores[0].score


def test_what_is_surer_than_usual_speaks_for_a_scan_no_further_than_for_the_fit():
    known = calibration()
    assert known.certainty_score(certainty((99.0,))) == pytest.approx(LOWEST * sum(known.weights[:2]))


def test_a_structure_of_which_half_is_missing_is_doubtful_though_what_is_left_looks_usual():
    cases = [(said_to_be(0.9 + 0.001 * (i % 5), 0.9, math.log(900 + 10 * i)), (0.8 + 0.005 * i,)) for i in range(21)]
    known = {"3d_fullres": calibrate("3d_fullres", ["organ"], cases)}
    assert not judge({"3d_fullres": said_to_be(0.902, 0.9, math.log(1000))}, known).doubtful
    assert judge({"3d_fullres": said_to_be(0.902, 0.9, math.log(500))}, known).doubtful


def test_a_scan_or_a_calibration_of_an_earlier_version_is_judged_by_what_it_says(tmp_path):
    cases = [(older(certainty((float(v),))), (float(v),)) for v in EVEN]
    old = calibrate("3d_fullres", ["organ"], cases)
    assert set(old.signals) == {"overlap", "confidence"}
    write_json(old, tmp_path / "doubt.json")
    assert read_json(Calibration, tmp_path / "doubt.json") == old
    assert old.weights == () and calibration().weights == pytest.approx(tuple(SIGNALS.values()), abs=0.02)
    for known in (old, calibration()):
        for said, doubtful in ((0.85, False), (0.81, True)):
            for scan in (certainty((said,)), older(certainty((said,)))):
                assert judge({"3d_fullres": scan}, {"3d_fullres": known}).doubtful == doubtful
    # What only one of two says is not compared: of one case that lacks it, nothing.
    assert set(calibrate("2d", ["organ"], [*cases[1:], (certainty((0.9,)), (0.9,))]).signals) == set(old.signals)


def told_apart(*, follows: str, cases: int) -> Calibration:
    """Of three signals one follows the Dice, and the others are noise."""
    rng, rows = np.random.default_rng(0), []
    for dice in np.linspace(0.7, 0.9, cases).tolist():
        values = {name: dice if name == follows else 0.9 + 0.01 * float(rng.normal()) for name in SIGNALS}
        rows.append((said_to_be(**values), (dice,)))
    return calibrate("3d_fullres", ["organ"], rows)


def said_to_be(overlap: float, settled: float, size: float) -> Certainty:
    said = certainty((0.8,))
    return dataclasses.replace(said, overlap=(overlap,), settled=(settled,), voxels=(math.exp(size),))


@pytest.mark.parametrize("follows", SIGNALS)
def test_the_signal_that_follows_the_dice_counts_more_and_none_counts_for_nothing(follows):
    weights = told_apart(follows=follows, cases=60).weights
    assert weights[list(SIGNALS).index(follows)] > 0.7 and min(weights) >= 0.02 and sum(weights) == pytest.approx(1)
    # Few cases say nothing of it, and the size does not count at all.
    few = told_apart(follows=follows, cases=19)
    assert few.weights == () and tuple(few.signals) == FEW_SIGNALS


def test_what_looks_worse_is_never_less_doubtful():
    known = told_apart(follows="settled", cases=60)
    scores = [
        known.certainty_score(said_to_be(*values))
        for values in ((0.9, 0.8, 0.9), (0.5, 0.8, 0.9), (0, 0.8, 0.9), (0, 0.4, 0.9), (0, 0, 0.9), (0, 0, 0.4))
    ]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)


def test_a_wide_rim_is_doubtful_by_itself():
    wide = dataclasses.replace(certainty((0.9,)), settled=(0.5,))
    assert judge({"3d_fullres": wide}, {"3d_fullres": calibration()}).doubtful
    assert not judge({"3d_fullres": wide}, {"3d_fullres": calibrate(
        "3d_fullres", ["organ"], [(older(certainty((float(v),))), (float(v),)) for v in EVEN]
    )}).doubtful  # fmt: skip
