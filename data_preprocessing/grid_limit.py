"""How large a scan may become on a plan's grid; a wrong voxel size in a header would make it endless."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import UserError

MOST_VOXELS = 2**34
"""69 GB in single precision, a hundred times a large CT scan."""


def require_sensible(
    shape: Sequence[int], spacing_mm: Sequence[float], target_shape: Sequence[int], target_mm: Sequence[float]
) -> None:
    """Refuse a scan that would have more than `MOST_VOXELS` at the target spacing.

    Raises:
        UserError: it would.
    """
    if (voxels := math.prod(target_shape)) > MOST_VOXELS:
        stated, target = (" x ".join(f"{mm:.3g}" for mm in each) for each in (spacing_mm, target_mm))
        raise UserError(
            f"{' x '.join(map(str, shape))} voxels of {stated} mm would become {voxels:.3g} voxels of {target} mm; the "
            "header states a wrong voxel size, repair it"
        )
