"""Bring an exported model from a URL or a file into the cache, checked, and say where it lies.

python scripts/fetch_model.py https://example.org/liver.zip --sha256 5f0c...
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import EXIT_OK, UserError, run_cli
from utils.program import predict_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Bring an exported model from a URL or a file into the cache ($NNUNET_CACHE, else the user's cache folder), and
    say where it lies."""

    source: Annotated[str, tyro.conf.Positional]
    """An https://, http:// or file:// address, or a path."""
    sha256: str | None = None
    """SHA-256 that the file must have, in hexadecimal; without it the sum is printed for next time."""
    max_gb: float = 10.0
    """Most that is fetched, in 10^9 bytes."""

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise UserError(f"--max_gb must be positive, got {self.max_gb}")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch one model."""
    options = parse(FetchOptions, argv, prog="fetch_model.py")
    # After --help.
    from download import progress
    from inference.fetching import fetch_model

    with progress("model") as report:
        path, found = fetch_model(
            options.source, sha256=options.sha256, most_bytes=int(options.max_gb * 1e9), report=report
        )
    print(f"sha256 {found}" + ("" if options.sha256 else " (not compared: no --sha256 was given)"))
    print(f"model: {path}")
    print(f"predict with: {predict_command()} --input FOLDER --output FOLDER --model {path}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
