"""Put a trained model into one file that inference.py takes on another machine.

python scripts/export_model.py --model results --output model.zip
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import UserError, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Put a trained model into one zip: weights, plan, network options, label scheme, decision, licence note."""

    model: Path
    """Checkpoint, folder of checkpoints (the best is taken), folder with fold_0, fold_1, ..., the folder of a
    decision.json (scripts/find_best_configuration.py), or an exported zip."""
    output: Path
    """Zip file to write."""
    folds: tuple[int, ...] | None = None
    """Folds to export (default: all)."""
    license_note: Path | None = None
    """Text on what the weights may be used for (default: a general note)."""
    overwrite: bool = False
    """Replace an existing file."""
    allow_unfinished: bool = False
    """Export trainings that were interrupted, and a cross-validation of which folds are missing, as they are."""

    def __post_init__(self) -> None:
        if self.output.suffix != ".zip":
            raise UserError(f"--output must end in .zip, got {self.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one archive."""
    options = parse(ExportOptions, argv, prog="export_model.py")
    if options.output.exists() and not options.overwrite:
        raise UserError(f"--output {options.output} exists; choose another name or give --overwrite")
    note = {} if options.license_note is None else {"license_note": _read_text(options.license_note, "--license_note")}

    from inference.archive import load_model, write_archive
    from utils.runs import prepare_folder

    model = load_model(options.model, options.folds, allow_unfinished=options.allow_unfinished)
    prepare_folder(options.output.parent, "--output")
    write_archive(options.output, model, **note)
    print(f"wrote {options.output}: {model.describe()}, {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _read_text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"{flag} {path} cannot be read: {reason}") from None


if __name__ == "__main__":
    sys.exit(run_cli(main))
