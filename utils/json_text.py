"""JSON text of files that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(content: str | bytes, **options: Any) -> Any:
    """What `json.loads` gives.

    Raises:
        ValueError: it is no JSON, or nested so deeply that Python gives up.
    """
    try:
        return json.loads(content, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
