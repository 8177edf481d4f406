"""What a scan's prediction writes, under temporary names until all of it is there."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.nifti import write_mask
from utils.schema import Geometry
from utils.temporary import PREFIX


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NewFiles:
    """Files of a scan that have no name yet; `probabilities` (K, z, y, x) are zeros to be filled, in their file.

    `beside` has what else is said of the scan: the name that it will have -> where it is until then.
    """

    path: Path
    target: Path
    probabilities: np.memmap | None
    beside: dict[Path, Path]

    def name_beside(self, target: Path) -> Path:
        """Where to write a file that gets its name just before the mask does, so that neither is without the other."""
        return self.beside.setdefault(
            target, target.with_name(f"{PREFIX}{secrets.token_hex(8)}{''.join(target.suffixes)}")
        )

    def write(self, mask: np.ndarray, geometry: Geometry, write: Callable[..., None] = write_mask) -> None:
        """Write the mask (S, A, R) by a function of path, mask and grid.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write(self.path, mask, geometry)
        except UserError as error:
            raise UserError(str(error).replace(str(self.path), str(self.target))) from None
