"""How much each signal of certainty counts: a regression of the out-of-fold Dice on them, held near equal weights.

Which signal follows the Dice differs from data set to data set, and a cross-validation has cases enough to find out
something of it, not much. So the weights of a least-squares fit are none below 0 (whatever makes a scan look worse
never makes it less doubtful, however far outside of the cross-validation it lies), and are drawn towards equal ones
with the force of a few cases. Extreme cases are cut off: some broken ones would decide alone.

Source: ridge regression (Hoerl and Kennard, 1970), here towards equal weights; non-negative least squares (Lawson and
Hanson, 1974).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

PRIOR_CASES = 3.0
"""Equal weights count as much as so many cases of the usual spread."""
LOWEST, HIGHEST = -2.0, 3.0
"""Cut-off of signals and Dice, on the scale on which 0 is the median and 1 is where the worst decile begins."""
LEAST_SHARE = 0.2
"""Of the weights, shared equally whatever the fit says: a scan may be broken in a way that no usual case is."""


def equal_weights(signals: int) -> tuple[float, ...]:
    """Of so many signals."""
    return (1 / signals,) * signals


def own_weights(
    signals: Sequence[Sequence[Sequence[float | None]]], dice: Sequence[Sequence[float | None]]
) -> tuple[float, ...]:  # fmt: skip
    """The weights that cases speak for, by their targets of which all is known; empty, all alike, without such.

    Args:
        signals: case -> target -> signals, larger is worse.
        dice: case -> target, on the same scale.
    """
    rows, wanted = [], []
    for targets, values in zip(signals, dice):
        for each, bad in zip(targets, values):
            known = [value for value in each if value is not None]
            if bad is not None and len(known) == len(each):
                rows.append(known)
                wanted.append(bad)
    return fitted_weights(rows, wanted, per_case=len(rows) / len(signals)) if rows else ()


def fitted_weights(signals: Sequence[Sequence[float]], dice: Sequence[float], *, per_case: float) -> tuple[float, ...]:
    """(F,) weights, which sum up to 1, of the signals that follow the Dice.

    Args:
        signals: R rows, one for each target of each case, of F signals, larger is worse.
        dice: (R,) of the Dice, on the same scale, larger is worse.
        per_case: rows of a case.
    """
    rows, wanted = np.clip(np.array(signals, float), LOWEST, HIGHEST), np.clip(np.array(dice, float), LOWEST, HIGHEST)
    number = rows.shape[1]
    together = rows.mean(axis=1)
    # What equal weights would be: of a signal that says nothing small, and never below 0.
    slope = max(float(together @ wanted) / max(float(together @ together), 1e-9), 0.1)
    force = np.sqrt(PRIOR_CASES * per_case)
    found, _ = nnls(
        np.vstack([rows, force * np.eye(number)]), np.concatenate([wanted, np.full(number, force * slope / number)])
    )
    shares = found / found.sum() if found.sum() > 0 else np.full(number, 1 / number)
    return tuple(((1 - LEAST_SHARE) * shares + LEAST_SHARE / number).tolist())
