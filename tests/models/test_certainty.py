"""Certainty: sums of a handful of voxels that can be checked by hand, the same however the planes come."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from models.certainty import CertaintyCounter, counted, recording
from models.inferer import InferenceSettings, to_probabilities
from models.sliding_window import Ensemble, stream_probabilities
from tests.models.builders import BRATS, TWO_CLASSES, make_network, make_plan
from utils.certainty import Certainty
from utils.files import read_json

# Four voxels in a row (K, 1, 1, 4): background, anterior, anterior, posterior.
UNSURE = torch.tensor([[0.8, 0.1, 0.2, 0.1], [0.1, 0.8, 0.6, 0.2], [0.1, 0.1, 0.2, 0.7]])[:, None, None]
# Background, anterior, posterior, posterior, without a doubt.
SURE = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 1.0]])[:, None, None]


def ensemble_of(plan, members):
    networks = tuple(make_network(plan, seed=seed).eval() for seed in range(members))
    names = tuple(map(str, range(members)))
    return Ensemble(names=names, networks=networks, labels=plan.labels, device=torch.device("cpu"))


def test_a_single_network_has_overlap_and_confidence_and_nothing_to_agree_with():
    counter = CertaintyCounter(TWO_CLASSES, 1)
    counter.add(UNSURE)
    found = counter.result()
    assert found.voxels == (2.0, 1.0)
    assert found.confidence == pytest.approx(((0.8 + 0.6) / 2, 0.7))
    # Twice what lies in the mask, by all probability and the voxels of the mask.
    assert found.overlap == pytest.approx((2 * 1.4 / (1.7 + 2), 2 * 0.7 / (1.1 + 1)))
    assert found.agreement == (None, None) and not found.flips
    # Two voxels and one, beside the four that no target is sure of.
    assert found.settled == pytest.approx((2 / (2 + 4), 1 / (1 + 4)))


def test_voxels_that_are_neither_in_nor_out_are_unsettled():
    counter, anterior = CertaintyCounter(TWO_CLASSES, 1), torch.tensor([0.96, 0.94, 0.6, 0.06, 0.04, 0.0])
    counter.add(torch.stack([1 - anterior, anterior, 0 * anterior])[:, None, None])
    # Three lie in the mask; of them two are not certain, nor is one outside.
    assert counter.result().settled == (pytest.approx(3 / (3 + 3)), None)
    regions = CertaintyCounter(BRATS, 1)
    regions.add(torch.stack([anterior, 0 * anterior, anterior])[:, None, None])
    assert regions.result().settled == (pytest.approx(0.5), None, pytest.approx(0.5))


@pytest.mark.parametrize("sure", [0, 9, 90], ids=["all unsure", "some unsure", "few unsure"])
def test_unsettled_voxels_are_counted_alike_however_many_there_are(sure):
    """Four voxels in doubt and any number of certain ones, which are not looked at where they are many."""
    counter, nothing = CertaintyCounter(TWO_CLASSES, 1), torch.tensor([[1.0], [0.0], [0.0]]).expand(3, sure)
    counter.add(torch.cat([UNSURE[:, 0, 0], nothing], dim=1)[:, None, None])
    assert counter.result().settled == pytest.approx((2 / (2 + 4), 1 / (1 + 4)))


def test_members_are_averaged_each_by_itself_and_compared_in_pairs():
    counter = CertaintyCounter(TWO_CLASSES, 2)
    counter.add(UNSURE)
    counter.add(SURE)
    found = counter.result()
    assert found.confidence == pytest.approx((0.85, 0.85)) and found.voxels == (1.5, 1.5)
    assert found.overlap == pytest.approx(((2 * 1.4 / 3.7 + 1) / 2, (2 * 0.7 / 2.1 + 1) / 2))
    assert found.each[0]["confidence"] == pytest.approx((0.7, 0.7)) and found.each[1]["overlap"] == (1.0, 1.0)
    # Of two and one voxels one is shared.
    assert found.agreement == pytest.approx((2 / 3, 2 / 3))


def test_planes_may_come_in_portions():
    planes = torch.rand(3, 6, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    other = torch.rand(3, 6, 5, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=0)
    whole, parts = CertaintyCounter(TWO_CLASSES, 2), CertaintyCounter(TWO_CLASSES, 2)
    whole.add(planes)
    whole.add(other)
    for part in (slice(0, 1), slice(1, 6)):
        parts.add(planes[:, part])
        parts.add(other[:, part])
    one, two = whole.result(), parts.result()
    for name in ("voxels", "confidence", "overlap", "settled", "agreement"):
        assert getattr(one, name) == pytest.approx(getattr(two, name))


@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
@pytest.mark.parametrize("members", [1, 2])
def test_what_pads_a_scan_is_not_counted(labels, members):
    planes = torch.rand(members, 3, 9, 5, 4, generator=torch.Generator().manual_seed(0))
    planes = planes if labels.regions else planes.softmax(dim=1)
    box = (slice(4, 7), slice(1, 4), slice(0, 3))
    padded, scan = CertaintyCounter(labels, members, inside=box), CertaintyCounter(labels, members)
    # Slabs before the scan, into it, out of it and behind it.
    for part in (slice(0, 2), slice(2, 5), slice(5, 8), slice(8, 9)):
        for member in planes:
            padded.add(member[:, part])
    for member in planes:
        scan.add(member[(slice(None), *box)])
    for name in ("voxels", "confidence", "overlap", "settled", "agreement"):
        assert getattr(padded.result(), name) == pytest.approx(getattr(scan.result(), name)), name


def test_a_target_that_nobody_finds_has_no_certainty():
    counter = CertaintyCounter(TWO_CLASSES, 2)
    for _ in range(2):
        counter.add(torch.tensor([0.9, 0.0, 0.1])[:, None, None, None])
    found = counter.result()
    assert (found.overlap, found.confidence, found.agreement) == ((None, None),) * 3


def test_a_member_that_misses_a_target_has_no_overlap_there():
    counter = CertaintyCounter(TWO_CLASSES, 2)
    counter.add(SURE)
    counter.add(torch.tensor([1.0, 0.0, 0.0])[:, None, None, None].expand(3, 1, 1, 4))
    assert counter.result().overlap == (0.5, 0.5) and counter.result().agreement == (0.0, 0.0)
    assert [each["overlap"] for each in counter.result().each] == [(1.0, 1.0), (None, None)]
    assert counter.result().settled == (0.5, 0.5) and counter.result().each[0]["settled"] == (1.0, 1.0)
    sizes = [each["size"] for each in counter.result().each]
    assert sizes == [pytest.approx((math.log(1), math.log(2))), (None, None)]


def test_regions_overlap_and_are_counted_one_by_one():
    counter = CertaintyCounter(BRATS, 2)
    counter.add(torch.tensor([[0.9, 0.8], [0.6, 0.1], [0.2, 0.1]])[:, None, None])
    counter.add(torch.tensor([[0.9, 0.2], [0.7, 0.1], [0.2, 0.1]])[:, None, None])
    found = counter.result()
    assert found.voxels == (1.5, 1.0, 0.0)
    assert found.confidence[:2] == pytest.approx((((0.9 + 0.8) / 2 + 0.9) / 2, 0.65)) and found.confidence[2] is None
    assert found.agreement == (pytest.approx(2 / 3), 1.0, None)


def test_flips_are_turned_back_before_they_are_compared():
    counter, logits = CertaintyCounter(TWO_CLASSES, 1), torch.zeros(1, 3, 1, 1, 2)
    logits[0, 1, 0, 0, 0] = 1
    counter.add(UNSURE)
    counter.add_flip(logits, ())
    counter.add_flip(logits.flip(4), (4,))
    assert counter.result().agreement == (1.0, None) and counter.result().flips
    counter.add_flip(logits, (4,))
    # One of two flips has the voxel elsewhere.
    assert counter.result().agreement == (0.5, None)


@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
@pytest.mark.parametrize("tta", [False, True])
def test_watching_changes_no_probability(labels, tta):
    plan = make_plan(labels=labels)
    image, settings = (
        torch.randn(1, 1, 9, 8, 11, generator=torch.Generator().manual_seed(1)),
        InferenceSettings(tta=tta),
    )
    for members in (1, 2):
        ensemble, counter = ensemble_of(plan, members), CertaintyCounter(labels, members)
        plain = stream_probabilities(image, ensemble, stage=plan.stage, settings=settings)
        watched = stream_probabilities(image, ensemble, stage=plan.stage, settings=settings, certainty=counter)
        slabs = list(watched)
        torch.testing.assert_close(torch.cat(slabs, 1), torch.cat(list(plain), 1), rtol=0, atol=0)
        found = counter.result()
        assert found.members == members and found.flips == (tta and members == 1)
        known = [value is not None for value in found.agreement]
        assert any(known) == (tta or members == 2)


def test_logits_that_a_rule_averages_are_counted_as_probabilities(tmp_path):
    plan = make_plan()
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(3))
    averaging = dataclasses.replace(plan, rules=dataclasses.replace(plan.rules, average="logits"))
    counters = [CertaintyCounter(plan.labels, 1) for _ in range(2)]
    passed = list(counted(iter([logits.numpy()]), averaging, counters[0]))
    counters[1].add(to_probabilities(logits[None], plan.labels)[0])
    np.testing.assert_array_equal(passed[0], logits.numpy())
    assert counters[0].result() == counters[1].result()


def test_a_case_is_recorded_before_what_consumes_it_is_done(tmp_path):
    def consume(case, slabs):
        assert len(list(slabs)) == 2
        assert (tmp_path / "a.certainty.json").is_file()
        return np.ones(3)

    def whole(case):
        return slice(0, 2), slice(0, 1), slice(0, 4)

    np.testing.assert_array_equal(recording(consume, make_plan(), tmp_path, whole)("a", iter([UNSURE.numpy()] * 2)), 1)
    assert read_json(Certainty, tmp_path / "a.certainty.json").voxels == (4.0, 2.0)
    assert recording(consume, make_plan(), None, whole) is consume


@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
def test_a_slab_is_counted_a_few_planes_at_a_time(labels, monkeypatch):
    planes = torch.rand(3, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    planes = planes if labels.regions else planes.softmax(dim=0)
    whole, parts = CertaintyCounter(labels, 2), CertaintyCounter(labels, 2)
    for member in (planes, planes.flip(1)):
        whole.add(member)
    with monkeypatch.context() as patched:
        patched.setattr("models.inferer.BLOCK_VALUES", 1)
        for member in (planes, planes.flip(1)):
            parts.add(member)
    for name in ("voxels", "confidence", "overlap", "settled", "agreement"):
        assert getattr(whole.result(), name) == pytest.approx(getattr(parts.result(), name)), name
