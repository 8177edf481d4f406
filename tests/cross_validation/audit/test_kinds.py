"""Each kind of error is called by its name, with what undoes it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.wrong_labels import KINDS as PLANTED
from benchmarks.wrong_labels import dilated, half_missing, make_wrong, on_shape, shifted
from cross_validation.audit.edits import worth_of
from cross_validation.audit.evidence import Evidence
from cross_validation.audit.kinds import Explanation, explain, moved
from cross_validation.audit.places import Place, find_places
from cross_validation.audit.ranking import Usual
from cross_validation.audit.rows import Audited, audit_rows, stored_box, stored_offset, suggestion
from cross_validation.audit.signals import signals
from tests.cross_validation.audit.made import FRONT_BACK, NESTED, evidence, geometry, halves, usual


def without(label: np.ndarray, index: int) -> np.ndarray:
    return np.where(label == index, 0, label).astype(np.uint8)


def explained(case: Evidence, compared: Usual) -> Explanation:
    return explain(case, signals(case), compared)


def eroded(label: np.ndarray) -> np.ndarray:
    return np.where(ndimage.distance_transform_edt(label > 0) <= 2, 0, label).astype(np.uint8)


SWAP = np.array([0, 2, 1], np.uint8)
KINDS = {
    "shifted": lambda label: shifted(label, axis=2, voxels=3),
    "swapped classes": lambda label: SWAP[label],
    "missing structure": lambda label: without(label, 2),
    "dilated": lambda label: dilated(label, 2).astype(np.uint8),
    "eroded": eroded,
    "missing slices": lambda label: half_missing(label, last=True),
}


@pytest.mark.parametrize("labels", [FRONT_BACK, NESTED], ids=["classes", "regions"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_is_named(kind, labels):
    truth = halves()
    found = explained(evidence(KINDS[kind](truth), truth, labels), usual(labels))
    assert found.kind == kind and found.share > 0.7


def test_a_label_that_nothing_explains_is_of_another_scan():
    truth = halves()
    other = np.zeros_like(truth)
    other[2:8, 2:30, 2:8] = 1
    other[4:20, 4:9, 4:20] = 2
    found = explained(evidence(other, truth), usual())
    assert found.kind == "wrong scan" and suggestion(found, geometry(), FRONT_BACK).startswith("remove")
    assert explained(evidence(truth, truth), usual()).kind == "unclear"


def test_a_structure_that_only_the_label_has_is_extra_and_can_be_erased():
    truth = without(halves(), 2)
    given = truth.copy()
    given[2:5, 2:7, 2:7] = 2
    found = explained(evidence(given, truth), usual(lacking=2))
    assert (found.kind, found.structure, found.box) == ("extra structure", "back", ((2, 5), (2, 7), (2, 7)))
    assert suggestion(found, geometry(), FRONT_BACK) == "erase 3"
    [place] = find_places(evidence(given, truth))
    assert (place.kind, place.voxels, place.box) == ("extra structure", 75, ((2, 5), (2, 7), (2, 7)))


def test_suggestions_are_in_values_and_axes_of_the_file():
    truth = halves()
    swap = explained(evidence(SWAP[truth], truth), usual())
    assert suggestion(swap, geometry(), FRONT_BACK) == "swap 1 3"
    shift = explained(evidence(shifted(truth, axis=1, voxels=3), truth), usual())
    assert shift.numbers == (0, -3, 0)
    assert suggestion(shift, geometry(), FRONT_BACK) == "shift 0 -3 0"
    assert suggestion(shift, geometry(turned=True), FRONT_BACK) == "shift 0 3 0"
    assert stored_offset((1, 2, 3), geometry()) == [3, 2, 1]
    assert stored_box(((1, 2), (3, 5), (0, 4)), geometry()) == [(0, 4), (3, 5), (1, 2)]
    assert stored_box(((1, 2), (3, 5), (0, 4)), geometry(turned=True)) == [(20, 24), (29, 31), (1, 2)]


def test_a_missing_island_is_a_place_of_its_own():
    truth = halves()
    truth[1:6, 1:6, 1:6] = 2
    given = truth.copy()
    given[:7, :7, :7] = 0
    places = find_places(evidence(given, truth))
    assert [place.kind for place in places] == ["missing structure"] and places[0].predicted == 2


def test_moved_loses_what_leaves_the_box():
    label = np.arange(1, 9).reshape(2, 2, 2)
    assert moved(label, (1, 0, 0)).tolist() == [[[0, 0], [0, 0]], [[1, 2], [3, 4]]]
    assert moved(label, (0, 0, -1)).tolist() == [[[2, 0], [4, 0]], [[6, 0], [8, 0]]]


def test_worth_is_bounded_and_nothing_where_a_voxel_is_ignored():
    found = worth_of(np.array([0.0, 1.0, 0.5]), np.array([True, True, False]))
    assert np.allclose(found, [np.log(99), -np.log(99), 0])


def test_planted_errors_are_what_they_are_called():
    truth = halves()
    assert (dilated(truth, 2) > 0).sum() > 1.5 * (truth > 0).sum()
    assert 0.3 < (half_missing(truth, last=False) > 0).sum() / (truth > 0).sum() < 0.7
    for kind in PLANTED:
        wrong = make_wrong(truth, kind, halves(5), random.Random(0))
        assert wrong.shape == truth.shape and (wrong != truth).any()
    assert on_shape(np.ones((2, 6, 3)), (4, 4, 3)).sum() == 24


def test_without_a_reason_there_is_neither_a_suggestion_nor_a_kind(tmp_path):
    truth = halves()
    swapped, large = (explained(evidence(given, truth), usual()) for given in (SWAP[truth], dilated(truth, 2)))
    cases = [(swapped, 9.0), (large, 3.0), (explained(evidence(truth, truth), usual()), 3.0), (None, 1.0)]
    place = Place(weight=150.0, voxels=40, given=2, predicted=0, apart=True, box=((2, 5), (2, 7), (2, 7)))
    audited = [
        Audited(case=str(number), label=tmp_path, label_digest="", geometry=geometry(), places=(place,), cpu_s=0.0,
                signals=signals(evidence(truth, truth)), explanation=found)
        for number, (found, _) in enumerate(cases)
    ]  # fmt: skip
    score = np.array([value for _, value in cases])
    for limit in (4.0, float("inf")):
        both = audit_rows(audited, score, limit, FRONT_BACK)
        rows = [row for row in both if row.scope == "case"]
        assert [(row.kind, row.suggestion) for row in rows] == [
            ("swapped classes", "swap 1 3"), ("dilated", ""), ("nothing special", ""), ("nothing special", "")
        ]  # fmt: skip
        assert [row.suspicious for row in rows] == [limit == 4.0, False, False, False]
        places = [row for row in both if row.scope == "place"]
        assert [(row.kind, row.suggestion) for row in places] == [
            ("extra structure", "erase 3"), *[("extra structure", "")] * 3
        ]  # fmt: skip
