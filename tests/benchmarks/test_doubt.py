"""What is counted of doubt."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.doubt import CLEAN, SIGNALS, Result, auroc, best_mix, summarise


def result(number: int, dice: float, kind: str = CLEAN, **scores: float) -> Result:
    return Result(
        case=f"{number}__{kind}", kind=kind, dice=dice, doubtful=None, remarks=(),
        scores={"doubt": 0.0, **dict.fromkeys(SIGNALS, 0.0), **scores},
    )  # fmt: skip


def test_auroc_counts_pairs_and_ties_half():
    assert auroc([True, False, False], [2, 1, 3]) == 0.5
    assert auroc([True, True, False, False], [1, 2, 1, 0]) == (0.5 + 1 + 1 + 1) / 4
    assert np.isnan(auroc([True, True], [1, 2]))


def test_questions_are_asked_of_the_right_scans():
    clean = [result(number, 0.5 + 0.01 * number, doubt=-number) for number in range(20)]
    noisy = [result(number, dice, "noise", doubt=1 - dice) for number, dice in enumerate((0.2, 0.9, 0.8))]
    table = summarise([*clean, *noisy])
    assert table["worst decile of 20 clean"]["doubt"] == 1.0
    # One clean scan beside them, of Dice 0.5, which is sure and wrong.
    assert table["Dice < 0.7 of 4 disturbed"]["doubt"] == pytest.approx(0.5)


def test_the_best_mix_finds_more_than_each_signal_and_leaves_out_what_is_wrong():
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.6, 0.9, 200)
    # Two signals on different scales, each with noise of its own; one that says nothing; one that is wrong.
    faint, loud = -dice + rng.normal(0, 0.05, 200), 100 * (-dice + rng.normal(0, 0.05, 200))
    results = [
        result(n, dice[n], overlap=faint[n], settled=loud[n], size=rng.normal(), agreement=dice[n]) for n in range(200)
    ]
    mix, alone = best_mix(results), summarise(results)["worst decile of 200 clean"]
    assert mix["auroc"] > max(alone[name] for name in SIGNALS) > 0.9
    assert mix["weights"]["agreement"] == 0 and min(mix["weights"][name] for name in ("overlap", "settled")) > 0
    assert best_mix([result(0, 0.5), result(1, 0.5)]) is None
