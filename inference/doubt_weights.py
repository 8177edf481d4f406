"""How much each signal of certainty counts: a regression of the out-of-fold Dice on them, held near given weights.

Which signal follows the Dice differs from data set to data set, and a cross-validation has cases enough to find out
something of it, not much. So the weights of a least-squares fit are none below 0 (whatever makes a scan look worse
never makes it less doubtful, however far outside of the cross-validation it lies), and are drawn towards given ones
with the force of a few cases. Extreme cases are cut off: some broken ones would decide alone.

Source: ridge regression (Hoerl and Kennard, 1970), here towards given weights; non-negative least squares (Lawson and
Hanson, 1974).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PRIOR_CASES = 3.0
"""Given weights count as much as so many cases of the usual spread."""
LOWEST, HIGHEST = -2.0, 3.0
"""Cut-off of signals and Dice, on the scale on which 0 is the median and 1 is where the worst decile begins."""
LEAST_SHARE = 0.2
"""Of the weights, shared as given whatever the fit says: a scan may be broken in a way that no usual case is."""


def equal_weights(signals: int) -> tuple[float, ...]:
    """Of so many signals."""
    return (1 / signals,) * signals


def own_weights(
    signals: Sequence[Sequence[Sequence[float | None]]],
    dice: Sequence[Sequence[float | None]],
    prior: Sequence[float],
) -> tuple[float, ...]:  # fmt: skip
    """The weights that cases speak for, by their targets of which all is known; those given without such.

    Args:
        signals: case -> target -> signals, larger is worse.
        dice: case -> target, on the same scale.
        prior: of `fitted_weights`.
    """
    rows, wanted = [], []
    for targets, values in zip(signals, dice):
        for each, bad in zip(targets, values):
            known = [value for value in each if value is not None]
            if bad is not None and len(known) == len(each):
                rows.append(known)
                wanted.append(bad)
    return fitted_weights(rows, wanted, prior=prior, per_case=len(rows) / len(signals)) if rows else tuple(prior)


def fitted_weights(
    signals: Sequence[Sequence[float]], dice: Sequence[float], *, prior: Sequence[float], per_case: float
) -> tuple[float, ...]:
    """(F,) weights, which sum up to 1, of the signals that follow the Dice.

    Args:
        signals: R rows, one for each target of each case, of F signals, larger is worse.
        dice: (R,) of the Dice, on the same scale, larger is worse.
        prior: (F,) weights that are taken without anything known, above 0, together 1.
        per_case: rows of a case.
    """
    # A third of the start of a prediction, and only a cross-validation fits weights.
    from scipy.optimize import nnls

    rows, wanted = np.clip(np.array(signals, float), LOWEST, HIGHEST), np.clip(np.array(dice, float), LOWEST, HIGHEST)
    given = np.array(prior, float)
    together = rows @ given
    # What the given weights would be: of a signal that says nothing small, and never below 0.
    slope = max(float(together @ wanted) / max(float(together @ together), 1e-9), 0.1)
    # The smaller a given weight, the less is it left for one case that speaks for more.
    force = np.sqrt(PRIOR_CASES * per_case / (len(given) * given))
    found, _ = nnls(np.vstack([rows, np.diag(force)]), np.concatenate([wanted, force * slope * given]))
    shares = found / found.sum() if found.sum() > 0 else given
    return tuple(((1 - LEAST_SHARE) * shares + LEAST_SHARE * given).tolist())
