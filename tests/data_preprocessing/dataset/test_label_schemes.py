"""Labels of both notations, regions, and BraTS told apart by names."""

from __future__ import annotations

import pytest

from data_preprocessing.dataset.label_schemes import parse_labels, with_brats_regions
from utils.errors import UserError
from utils.schema import LabelScheme, Region


def parsed(labels: object, **content: object) -> LabelScheme:
    problems: list[str] = []
    scheme = parse_labels({"labels": labels, **content}, problems)
    assert problems == []
    return scheme


def problem(labels: object, **content: object) -> str:
    problems: list[str] = []
    assert parse_labels({"labels": labels, **content}, problems) is None
    return "\n".join(problems)


def test_both_notations_give_the_same_scheme():
    decathlon = parsed({"0": "background", "10": "tail", "2": "head"})
    assert decathlon == parsed({"background": 0, "tail": 10, "head": 2})
    assert decathlon.names == ("background", "head", "tail") and decathlon.values == (0, 2, 10)


def test_ignore_is_no_class():
    scheme = parsed({"background": 0, "tumour": 1, "ignore": 2})
    assert scheme.num_classes == 2 and scheme.ignore_value == 2


def test_lists_of_values_are_regions_in_their_order():
    scheme = parsed({"background": 0, "whole": [1, 2, 5], "core": [2, 5], "active": 5}, regions_class_order=[1, 2, 5])
    assert scheme.names == ("background", "label 1", "label 2", "active") and scheme.values == (0, 1, 2, 5)
    assert scheme.regions == (
        Region(name="whole", classes=(1, 2, 3), write_class=1),
        Region(name="core", classes=(2, 3), write_class=2),
        Region(name="active", classes=(3,), write_class=3),
    )


@pytest.mark.parametrize("order", [None, [1], [1, 9], "12", [1, [2]]])
def test_regions_need_an_order_out_of_their_values(order):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    assert "regions_class_order" in problem(labels, regions_class_order=order)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (None, "'labels' must name"),
        ([], "'labels' must name"),
        ({"1": "tumour", "2": "organ"}, "value 0 and be called 'background'"),
        ({"0": "tumour", "1": "organ"}, "value 0 and be called 'background'"),
        ({"0": "background"}, "at least one class"),
        ({"0": "background", "1": "tumour", "2": "tumour"}, "2 labels are called 'tumour'"),
        ({"background": 0, "a": 1, "b": 1}, "must differ"),
        ({"background": 0, "a": 256}, "0..255"),
        ({"background": 0, "a": -1}, "0..255"),
        ({"background": 0, "a": 1.5}, "0..255"),
        ({"background": 0, "a": True}, "0..255"),
        ({"background": 0, "a": []}, "0..255"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, "'ignore'"),
        ({"0": "background", "1": 7}, "must be a name"),
        ({"0": "background", "1": ["a"]}, "must be a name"),
        ({"0": "background", "x": "tumour"}, "must be a name"),
    ],
)
def test_labels_that_make_no_scheme_are_problems(labels, complaint):
    assert complaint in problem(labels)


def test_brats_regions_follow_the_decathlon_names():
    scheme = with_brats_regions(
        parsed({"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"})
    )
    assert [(r.name, r.classes, r.write_class) for r in scheme.regions] == [
        ("WT", (1, 2, 3), 1), ("TC", (2, 3), 2), ("ET", (3,), 3),
    ]  # fmt: skip
    assert scheme.num_outputs == 3


@pytest.mark.parametrize(
    "names", [("necrotic tumor core", "peritumoral oedema", "GD-enhancing tumor"), ("NCR", "ED", "ET")]
)
def test_brats_regions_follow_the_brats21_names(names):
    scheme = with_brats_regions(parsed({"0": "background", **dict(zip("124", names))}))
    assert scheme.values == (0, 1, 2, 4)
    assert [(r.name, r.classes, r.write_class) for r in scheme.regions] == [
        ("WT", (1, 2, 3), 2), ("TC", (1, 3), 1), ("ET", (3,), 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "Anterior": 1, "Posterior": 2},
        {"background": 0, "edema": 1, "enhancing": 2},
        {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3, "cyst": 4},
        {"background": 0, "edema": 1, "oedema": 2, "necrosis": 3, "enhancing": 4},
    ],
)
def test_brats_with_names_that_do_not_tell_is_refused(labels):
    with pytest.raises(UserError, match=r"--brats: the labels .* cannot be told apart"):
        with_brats_regions(parsed(labels))
