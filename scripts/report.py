"""Write one HTML page about a training, cross-validation, evaluation or prediction; it opens without a server.

python scripts/report.py results
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write one HTML page about what a folder holds."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Results of a training or of a fold, of a cross-validation, scored masks, or predicted masks."""
    output: Path | None = None
    """File to write (default: report.html in the folder, <task>_report.html for a cross-validation)."""
    max_mb: float = 60.0
    """Most that the page may take, in MB; scans are made coarser or left out to keep to it."""
    viewer_cases: int | None = None
    """How many cases the viewer holds, the worst or most doubtful ones first; 0 leaves the viewer out (default: 12, or
    as many more as are doubtful or have a suspicious label, up to 40)."""
    cases: tuple[str, ...] = ()
    """Cases that the viewer holds in place of the worst ones."""

    def __post_init__(self) -> None:
        if not self.max_mb >= 1:
            raise UserError(f"--max_mb must be at least 1, got {self.max_mb}")
        if self.viewer_cases is not None and self.viewer_cases < 0:
            raise UserError(f"--viewer_cases must not be negative, got {self.viewer_cases}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one page."""
    options = parse(ReportOptions, argv, prog="report.py")
    from inference.page_scans import scans_again
    from report.numbers import plural
    from report.views import Room
    from report.writing import write_report
    from utils.disk import size_text
    from utils.files import require_own_kind

    if options.output is not None and not options.output.parent.is_dir():
        raise UserError(f"--output {options.output} cannot be written: {options.output.parent} is not a folder")
    if options.output is not None:
        require_own_kind(options.output, "--output", b"<!doctype html", "HTML page")
    room = Room(max_mb=options.max_mb, viewer_cases=options.viewer_cases, cases=options.cases)
    with scans_again(options.folder) as readers:
        written = write_report(options.folder, room, options.output, readers=readers)
    print(f"wrote {written.path}: {written.kind}, {plural(written.viewer_cases, 'case')} in the viewer, "
          f"{size_text(written.num_bytes)}; open it in a browser")  # fmt: skip
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
