"""Several predictions become one: their mean. The one function for folds and for configurations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from torch import Tensor

Values = TypeVar("Values", Tensor, np.ndarray)


def mean_of(parts: Iterable[Values]) -> Values:
    """Mean of arrays of one shape; of a single one itself, untouched.

    They may come one after the other: beside the sum no more than one is held.
    """
    total, own, count = None, False, 0
    # Not by enumerate, which holds on to the part before while the next one is made.
    for part in parts:
        count += 1
        if total is None:
            total = part
        elif not own:
            # The first one's own array is left alone, and given up for the sum.
            total, own = total + part, True
        else:
            total += part
        del part
    assert total is not None, "the mean of nothing"
    if own:
        total /= count
    return total
