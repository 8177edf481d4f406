"""Unpack an archive as download.py does once its checksum was found to be right, and zips as inference.py does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.archives import unpack, unpack_zip


def main(argv: Sequence[str]) -> int:
    """Unpack the archive argv[0] as the folder argv[1]."""
    archive, target = map(Path, argv)
    (unpack_zip if archive.suffix == ".zip" else unpack)(archive, target)
    return 0
