"""How large a scan may become on a plan's grid; a wrong voxel size in a header would make it endless, or nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import UserError

MOST_VOXELS = 2**34
"""69 GB in single precision, a hundred times a large CT scan."""
MOST_GROWTH = 1000
"""How many voxels may come of one where they are more than `LARGE_VOXELS`; slices of 5 mm at 0.5 mm make ten."""
LARGE_VOXELS = 2**26
MOST_TIMES = 100
"""How much finer or coarser than the plan's a scan's voxels may be along an axis; slices of 10 mm are 33 times as thick
as voxels of 0.3 mm."""


def require_sensible(
    shape: Sequence[int], spacing_mm: Sequence[float], target_shape: Sequence[int], target_mm: Sequence[float]
) -> None:
    """Refuse a scan that would have more than `MOST_VOXELS` at the target spacing, or more than `MOST_GROWTH` times
    its own, or of voxels of another order.

    Raises:
        UserError: it is one.
    """
    stated, target = (" x ".join(f"{mm:.3g}" for mm in each) for each in (spacing_mm, target_mm))
    voxels = math.prod(target_shape)
    if voxels > MOST_VOXELS or voxels > max(MOST_GROWTH * math.prod(shape), LARGE_VOXELS):
        raise UserError(
            f"{' x '.join(map(str, shape))} voxels of {stated} mm would become {voxels:.3g} voxels of {target} mm; the "
            "header states a wrong voxel size, repair it"
        )
    if any(max(own / wanted, wanted / own) > MOST_TIMES for own, wanted in zip(spacing_mm, target_mm)):
        raise UserError(
            f"voxels of {stated} mm are more than {MOST_TIMES} times finer or coarser than those of {target} mm that "
            "the plan asks for; the header states a wrong voxel size, repair it"
        )
