"""Images and labels find each other by name; doubt is an error, never a guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_preprocessing.dataset.pairing import Rule, case_names, pair, unlabelled_cases
from data_preprocessing.dataset.scan_search import Scan


def scans(*keys: str) -> list[Scan]:
    return [Scan(key=key, paths=(Path(f"{key}.nii.gz"),)) for key in keys]


def pairs(images: list[str], labels: list[str]) -> dict[str, tuple[str, str]]:
    problems: list[str] = []
    cases, _ = pair(scans(*images), scans(*labels), problems)
    assert problems == []
    return {case.case: (case.images[0].name[:-7], case.label.name[:-7]) for case in cases}


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (["liver_1", "liver_11"], ["liver_1", "liver_11"], ["liver_1", "liver_11"]),
        (["case_1_img", "case_11_img"], ["case_1_seg", "case_11_seg"], ["case_1", "case_11"]),
        (["img01", "img02"], ["seg01", "seg02"], ["01", "02"]),
        (["ct_a", "ct_b"], ["a-label", "b-label"], ["a", "b"]),
        (["P1", "P2"], ["P1_seg", "P2_seg"], ["P1", "P2"]),
        (["p1_a1_img", "p1_a2_img"], ["p1_a1_seg", "p1_a2_seg"], ["p1_a1", "p1_a2"]),
        (["scan"], ["mask"], ["scan"]),
        (["x_img"], ["x_seg"], ["x"]),
    ],
)
def test_differing_prefixes_and_suffixes_are_found_out(images, labels, names):
    assert pairs(images, labels) == dict(zip(names, zip(images, labels)))


@pytest.mark.slow
def test_numbers_are_never_cut_in_two():
    labels = [f"seg_{n}" for n in range(1, 31)]
    found = pairs([f"img_{n}" for n in range(1, 31)], labels)
    assert found == {str(n): (f"img_{n}", f"seg_{n}") for n in range(1, 31)}


def test_folders_tell_cases_apart():
    problems: list[str] = []
    cases, _ = pair(scans("p1/image", "p2/image"), scans("p1/label", "p2/label"), problems)
    assert [(case.case, str(case.label)) for case in cases] == [("p1", "p1/label.nii.gz"), ("p2", "p2/label.nii.gz")]


def test_images_and_labels_without_partner_are_all_named():
    problems: list[str] = []
    cases, _ = pair(scans("a_img", "b_img", "c_img"), scans("a_seg", "b_seg", "d_seg"), problems)
    assert [case.case for case in cases] == ["a", "b"]
    assert problems == ["c_img.nii.gz has no label", "d_seg.nii.gz has no image"]


def test_one_label_among_several_images_goes_to_the_nearest_name():
    problems: list[str] = []
    cases, _ = pair(scans("a_1_img", "b_2_img"), scans("a_1_seg"), problems)
    assert [(case.case, case.images[0].name) for case in cases] == [("a_1", "a_1_img.nii.gz")]
    assert problems == ["b_2_img.nii.gz has no label"]


def test_names_with_nothing_in_common_are_not_paired():
    problems: list[str] = []
    assert pair(scans("anna", "bert"), scans("one", "two"), problems)[0] == []
    assert "without doubt" in problems[0] and "{case}" in problems[0]


def test_two_equally_good_ways_are_no_way():
    problems: list[str] = []
    assert pair(scans("1_x", "1_y"), scans("1_z"), problems)[0] == []
    assert "without doubt" in problems[0]


def test_scans_without_labels_are_named_by_the_same_rule():
    rule = Rule(image=("", "_img"), label=("", "_seg"))
    assert [case.case for case in unlabelled_cases(scans("c_img", "other"), rule)] == ["c", "other"]


def test_names_of_folders_are_used_only_where_file_names_do_not_do():
    assert case_names(["p1/scan", "p2/scan"]) == {"p1/scan": "p1_scan", "p2/scan": "p2_scan"}
    assert case_names(["p1/a", "p2/b"]) == {"p1/a": "a", "p2/b": "b"}
    assert case_names(["Müller (2)"]) == {"Müller (2)": "Müller_2"}


@pytest.mark.slow
def test_a_thousand_cases_are_paired_at_once():
    found = pairs([f"site_{n}_ct" for n in range(1000)], [f"site_{n}_mask" for n in range(1000)])
    assert len(found) == 1000 and found["site_999"] == ("site_999_ct", "site_999_mask")
