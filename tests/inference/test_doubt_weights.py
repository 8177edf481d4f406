"""Weights of signals: fitted to the Dice, none below 0, near the given ones where little is known."""

from __future__ import annotations

import numpy as np
import pytest

from inference.doubt_weights import LEAST_SHARE, equal_weights, fitted_weights

ALIKE = (0.5, 0.5)
RNG = np.random.default_rng(3)
FIRST, SECOND = RNG.normal(size=(2, 80))


def fitted(dice: np.ndarray, *, cases: int = 80, prior: tuple[float, ...] = ALIKE) -> tuple[float, ...]:
    rows = np.stack([FIRST, SECOND], axis=1)[:cases]
    return fitted_weights(rows.tolist(), dice[:cases].tolist(), prior=prior, per_case=1)


def test_the_shares_are_those_of_the_fit():
    assert fitted(FIRST + SECOND) == pytest.approx((0.5, 0.5), abs=0.05)
    # Three to one, of what is not shared equally.
    expected = (1 - LEAST_SHARE) * 0.75 + LEAST_SHARE / 2
    assert fitted(0.75 * FIRST + 0.25 * SECOND) == pytest.approx((expected, 1 - expected), abs=0.03)


def test_a_signal_that_runs_the_other_way_does_not_count_against():
    assert fitted(FIRST - 0.5 * SECOND) == pytest.approx((1 - LEAST_SHARE / 2, LEAST_SHARE / 2))
    assert sum(fitted(-FIRST - SECOND)) == pytest.approx(1)


def test_few_cases_leave_them_nearly_alike():
    many, few = fitted(FIRST)[0], fitted(FIRST, cases=3)[0]
    assert many > 0.85 and 0.5 < few < many


def test_one_extreme_case_does_not_decide():
    rows, dice = np.stack([FIRST, SECOND], axis=1), FIRST.copy()
    rows[0], dice[0] = (-50.0, 50.0), 50.0
    assert fitted_weights(rows.tolist(), dice.tolist(), prior=ALIKE, per_case=1)[0] > 0.7


def test_a_signal_that_is_given_little_weight_has_little_until_cases_speak_for_it():
    few, many = (fitted(SECOND, cases=cases, prior=(0.9, 0.1))[1] for cases in (3, 80))
    assert few < fitted(SECOND, cases=3)[1] and many > 0.7
    assert fitted(FIRST, prior=(0.9, 0.1)) == pytest.approx((0.98, 0.02), abs=0.03)


def test_equal_weights():
    assert equal_weights(4) == (0.25,) * 4
