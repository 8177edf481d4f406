"""The numbers that tell wrong labels, on ellipsoids of which one knows what was done to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.wrong_labels import dilated, shifted
from cross_validation.audit.edits import best_shift, best_swap, class_sums, growths, swap_gain, worth_of
from cross_validation.audit.evidence import make_evidence
from cross_validation.audit.places import find_places
from cross_validation.audit.ranking import THRESHOLD, find_usual, threshold
from cross_validation.audit.signals import Signals, edge, signals
from tests.cross_validation.audit.made import FRONT_BACK, NESTED, believed, evidence, geometry, halves
from utils.schema import LabelScheme


def volume(found: Signals, index: int = 0) -> float:
    """Of foreground or a class: log of the ratio of what is given to what is expected."""
    return float(np.log((found.given[index] + 10) / (found.expected[index] + 10)))


def test_edge_is_one_voxel_on_either_side():
    assert edge(np.array([[[0, 0, 1, 1, 1, 0]]])).tolist() == [[[False, True, True, False, True, True]]]


def test_a_shift_surprises_and_a_dilation_is_one_sided_and_too_large():
    truth = halves()
    sound, moved, large = (signals(evidence(given, truth)) for given in (
        truth, shifted(truth, axis=1, voxels=3), dilated(truth, 2)))  # fmt: skip
    assert moved.surprise > sound.surprise + 0.3 and abs(volume(moved) - volume(sound)) < 0.1
    assert large.sided < sound.sided - 1 and volume(large) > volume(sound) + 0.3
    assert sound.missed < 0.2 < 0.5 < large.missed


def test_a_missing_class_is_seen_in_its_volume():
    truth = halves()
    found = signals(evidence(np.where(truth == 2, 0, truth).astype(np.uint8), truth))
    assert volume(found, 2) < -3 and abs(volume(found, 1)) < 0.2


def test_ignored_voxels_say_nothing():
    labels = LabelScheme(names=FRONT_BACK.names, values=FRONT_BACK.values, ignore_value=7)
    truth = halves()
    given = truth.copy()
    given[truth == 2] = 3
    predicted, probabilities = truth, believed(truth)
    found = make_evidence(given, predicted, probabilities, labels, geometry())
    assert signals(found).surprise < 1 and find_places(found) == ()


def test_an_empty_label_and_an_empty_prediction_are_no_fault():
    empty = np.zeros_like(halves())
    found = signals(evidence(empty, empty))
    assert found.surprise == 0 and found.sided == 0 and find_places(evidence(empty, empty)) == ()


def test_regions_become_classes():
    truth = halves()
    plain, nested = evidence(truth, truth), evidence(truth, truth, NESTED)
    for index in range(3):
        assert np.abs(plain.probability(index) - nested.probability(index)).mean() < 0.02
    assert nested.probability(2)[nested.label == 2].mean() > 0.7 and plain.alike == nested.alike == (0, 1, 2)
    swapped = np.array([0, 2, 1], np.uint8)[truth]
    assert best_swap(class_sums(evidence(swapped, truth, NESTED)))[0] == (1, 2)


def test_classes_in_no_region_of_their_own_count_as_one():
    labels = LabelScheme(names=("background", "a", "b"), values=(0, 1, 3), regions=NESTED.regions[:1])
    truth = halves()
    shares = believed(truth)
    found = make_evidence(truth, (truth > 0).astype(np.uint8), shares[1:].sum(0)[None], labels, geometry())
    assert found.alike == (0, 1, 1) and set(np.unique(found.label)) == {0, 1}
    assert signals(found).given[2] == signals(found).expected[2] == 0 and abs(volume(signals(found))) < 0.3


@pytest.mark.parametrize("offset", [(0, 3, 0), (-2, 0, 1)])
def test_the_best_shift_brings_a_label_back(offset):
    truth = halves()
    found = evidence(np.roll(truth, offset, (0, 1, 2)), truth)
    worth = worth_of(found.probability(0), found.counts)
    assert best_shift(found.label > 0, worth).offset == tuple(-step for step in offset)
    sound = evidence(truth, truth)
    assert best_shift(sound.label > 0, worth_of(sound.probability(0), sound.counts)).offset == (0, 0, 0)


def shrunk_by_one(label: np.ndarray) -> np.ndarray:
    return np.where(ndimage.binary_erosion(label > 0), label, 0).astype(np.uint8)


def test_growths_count_in_the_finest_voxels():
    truth = halves()
    found = evidence(dilated(truth, 2), truth)
    worth = worth_of(found.probability(0), found.counts)
    shrunk = dict(growths(found.label, found.label > 0, worth, (1, 1, 1)))
    assert list(shrunk) == [-1, -2, -3] and (shrunk[-2] != truth[found.box]).mean() < 0.01
    # Across slices that are three voxels thick nothing is within two of the finest.
    thick = dict(growths(found.label, found.label > 0, worth, (3, 1, 1)))
    assert (thick[-2] > 0).sum() > (shrunk[-2] > 0).sum()
    small = evidence(shrunk_by_one(truth), truth)
    worth = worth_of(small.probability(0), small.counts)
    grown = dict(growths(small.label, small.label > 0, worth, (1, 1, 1)))
    assert list(grown) == [1, 2, 3] and (grown[1] != truth[small.box]).mean() < 0.02
    for nothing in (np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)):
        assert growths(nothing.astype(np.uint8), nothing, np.ones((3, 3, 3)), (1, 1, 1)) == []


def test_of_classes_to_exchange_the_two_that_gain_most_are_chosen():
    sums = np.array([[0.0, 0, 0, 0], [0, -9, -8, -1], [0, -8, -9, -9], [0, -2, -9, -9]])
    assert best_swap(sums) == ((1, 3), 15.0) and swap_gain(sums, (7, 2, 4, 1)) == 5.0
    # Only of classes that the label has a gain for each voxel is known.
    assert swap_gain(sums, (7, 2, 4, 0)) == 2 / 6 and np.isnan(swap_gain(sums, (7, 2, 0, 0)))
    assert best_swap(sums[:2, :2])[1] == 0


def ranked(found: list[Signals]) -> np.ndarray:
    usual = find_usual(found)
    return np.array([usual.score(each) for each in found])


def test_scores_rank_each_error_above_all_sound_labels():
    truths = [halves(seed) for seed in range(12)]
    swap, missing = np.array([0, 2, 1], np.uint8), np.array([0, 0, 2], np.uint8)
    wrong = [shifted(truths[8], axis=0, voxels=3), dilated(truths[9], 2), swap[truths[10]], missing[truths[11]]]
    givens = [*truths[:8], *wrong]
    score = ranked([signals(evidence(g, t, seed=s)) for s, (g, t) in enumerate(zip(givens, truths))])
    assert score[8:].min() > score[:8].max() and score[8:].min() > threshold(12) > score[:8].max()


def test_equal_labels_and_a_handful_of_cases_are_not_suspicious():
    one = signals(evidence(halves(), halves()))
    score = ranked([one] * 10)
    assert not (score > threshold(10)).any()
    assert threshold(3) == float("inf")


def test_of_a_few_cases_a_wrong_one_stands_out_and_sound_ones_do_not():
    truths = [halves(seed) for seed in range(4)]
    givens = [*truths[:3], np.array([0, 2, 1], np.uint8)[truths[3]]]
    score = ranked([signals(evidence(g, t, seed=s)) for s, (g, t) in enumerate(zip(givens, truths))])
    assert score[3] > THRESHOLD > 2 * score[:3].max() and threshold(4) == float("inf")
    # One case, or two that differ, say nothing of which is wrong.
    for number in (2, 3):
        assert max(ranked([signals(evidence(givens[s], truths[s], seed=s)) for s in range(number, 4)])) < THRESHOLD


def test_a_class_that_is_rightly_absent_is_no_wonder_though_it_is_a_bit_probable():
    truths = [halves(seed) for seed in range(12)]
    truths[0] = np.where(truths[0] == 2, 0, truths[0]).astype(np.uint8)
    score = ranked([signals(evidence(truth, truth, seed=seed)) for seed, truth in enumerate(truths)])
    assert score[0] < THRESHOLD
