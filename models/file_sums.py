"""Checksums of checkpoints, and why one is refused: torch maps tensors into memory and does not look at them.

Nor does it mind how large a packed member becomes: one of a megabyte that says which version the file has took 2 GB.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import BinaryIO


def check_sums(file: Path | BinaryIO) -> None:
    """Compare every member of a checkpoint with its checksum; a file that is no zip (torch before 1.6) has none.

    Raises:
        ValueError: the file is damaged, or a member is packed, as none is that torch has written.
    """
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            for each in archive.infolist():
                if each.compress_type != zipfile.ZIP_STORED or each.file_size > each.compress_size:
                    raise ValueError(f"{each.filename} is packed, and torch packs nothing")
            member = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(str(error) or "it ends early") from None
    finally:
        if not isinstance(file, Path):
            file.seek(0)
    if member is not None:
        raise ValueError(f"the checksum of {member} is another one")


def refusal(said: str) -> str:
    """Why torch has refused a file, without its advice to trust the file, which comes first."""
    held = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?= was not| which is not|\n|$)", said)
    return held[0] if held else said.strip().split("\n")[0].replace("\x1b[1m", "").replace("\x1b[0m", "")
