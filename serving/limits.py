"""What a service takes from its clients: bytes, voxels, waiting requests and seconds."""

from __future__ import annotations

import dataclasses

from utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Each keeps one client from taking the machine away from the others."""

    upload_mb: float = 1000.0
    """Most that one request may send, in 10^6 bytes."""
    voxels: int = 300_000_000
    """Most voxels of a scan, all channels together, before and after it is resampled (memory is checked, too)."""
    queue: int = 8
    """Requests that may wait while others are worked on; one more is answered 503."""
    upload_seconds: float = 120.0
    """Most time that sending a scan may take."""
    seconds: float = 600.0
    """Most time that predicting a scan may take; it is ended after that."""

    def __post_init__(self) -> None:
        for name in ("upload_mb", "voxels", "upload_seconds", "seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}")
        if self.queue < 0:
            raise UserError(f"--queue must not be negative, got {self.queue}")

    @property
    def upload_bytes(self) -> int:
        """`upload_mb` in bytes."""
        return int(self.upload_mb * 1e6)
