"""Packages that only some users need: imported when they are needed, and named with the command when they are missing.

Which package belongs to which extra says requirements-extras.txt.
"""

from __future__ import annotations

import importlib
from typing import Any

from utils.errors import UserError


def optional_import(module: str, *, extra: str, purpose: str) -> Any:
    """The module of a package that is no requirement.

    Args:
        module: as it is imported.
        extra: the section of requirements-extras.txt that holds its package.
        purpose: what it is needed for, as the beginning of a sentence.

    Raises:
        UserError: it is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise UserError(
            f"{purpose} needs the package {missing.partition('.')[0]}, which is not installed; "
            f"in the folder of this program run: pip install -e '.[{extra}]'"
        ) from None
