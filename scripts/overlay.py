"""Draw predicted masks (and labels, where there are some) on top of their scans.

python scripts/overlay.py --images data/Task00_Phantom/imagesTs --preds results/preds_... --output overlay.png
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import EXIT_OK, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlayOptions:
    """Draw a predicted mask on top of its scan."""

    images: Path
    """Folder of the scans."""
    preds: Path
    """Folder of the predicted masks."""
    output: Path
    """PNG file to write."""
    lbls: Path | None = None
    """Folder of the labels."""
    case: str | None = None
    """Name of the case (default: the first prediction)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write one picture."""
    options = parse(OverlayOptions, argv, prog="overlay.py")
    # After --help.
    from utils.overlay import draw_overlay

    draw_overlay(options.output, options.images, options.preds, labels=options.lbls, case=options.case)
    print(f"wrote {options.output}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
