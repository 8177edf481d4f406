"""Where `Predictor` was before it got a room of its own: programs that import it from here go on working.

New programs: `from inference import Predictor`.
"""

from __future__ import annotations

from inference.predictor import Prediction, Predictor
from inference.preparing import as_volume, read_scan

__all__ = ["Prediction", "Predictor", "as_volume", "read_scan"]
