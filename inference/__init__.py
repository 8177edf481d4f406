"""From scans to masks. Public: `from inference import Predictor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> type[Predictor]:
    # On first use: torch need not be imported by whoever wants another module of this package.
    if name == "Predictor":
        from inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'inference' has no attribute {name!r}")
