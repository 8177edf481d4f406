"""Put a trained model into one file that inference.py takes on another machine, or into a folder for other programs.

python scripts/export_model.py --model results --output model.zip
python scripts/export_model.py --model results --output folder --format nnunet-v2
python scripts/export_model.py --model results --output folder --format onnx
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import UserError, run_cli

if TYPE_CHECKING:
    from inference.engines.export import NetworkForm
    from inference.model import Model

Format = Literal["zip", "nnunet-v2", "onnx", "torch-export", "aot-inductor", "triton", "monai-bundle"]
NETWORK_FORMATS = ("onnx", "torch-export", "aot-inductor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Put a trained model into one zip: weights, plan, network options, label scheme, decision, licence note.

    With --format nnunet-v2 it becomes a folder that nnUNetv2_predict_from_modelfolder takes; with onnx, torch-export
    and aot-inductor a folder of networks in that form, each compared with torch, and a model.json of all around them.
    """

    model: Path
    """Checkpoint, folder of checkpoints (the best is taken), folder with fold_0, fold_1, ..., the folder of a
    decision.json (scripts/find_best_configuration.py), an exported zip, or a model of nnU-Net v2."""
    output: Path
    """Zip file to write, or the new folder of the other formats."""
    format: Format = "zip"
    """zip: for this program; nnunet-v2: for nnU-Net v2; what has no equivalent there is refused by its name; onnx
    (pip install -e '.[onnx]'), torch-export (.pt2) and aot-inductor (native code for this CPU): the networks alone;
    triton: a model repository for Triton Inference Server; monai-bundle: for python -m monai.bundle run
    (docs/how-to/serve.md)."""
    folds: tuple[int, ...] | None = None
    """Folds to export (default: all)."""
    license_note: Path | None = None
    """Text on what the weights may be used for (default: a general note)."""
    note: str | None = None
    """A sentence for the card of the zip: on what data it was trained, by whom (nnunet info shows it)."""
    check_scan: tuple[Path, ...] = ()
    """With onnx, torch-export and aot-inductor: a scan (one file, or one per channel) of which the written networks
    must make torch's mask; without it they are compared on random windows only."""
    overwrite: bool = False
    """Replace an existing file."""
    allow_unfinished: bool = False
    """Export trainings that were interrupted, and a cross-validation of which folds are missing, as they are."""

    def __post_init__(self) -> None:
        if self.format == "zip" and self.output.suffix != ".zip":
            raise UserError(f"--output must end in .zip, got {self.output}")
        if self.format != "zip" and self.output.suffix == ".zip":
            raise UserError(f"--output {self.output} is called a zip, and --format {self.format} writes a folder")
        if self.check_scan and self.format not in NETWORK_FORMATS:
            raise UserError(f"--check_scan is for --format {', '.join(NETWORK_FORMATS)}, got --format {self.format}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one archive or folder."""
    options = parse(ExportOptions, argv, prog="export_model.py")
    if options.format != "zip":
        _require_new_folder(options)
    elif options.output.exists() and not options.overwrite:
        raise UserError(f"--output {options.output} exists; choose another name or give --overwrite")
    note = {} if options.license_note is None else {"license_note": _read_text(options.license_note, "--license_note")}

    from inference.archive import load_model
    from utils.runs import prepare_folder

    model = load_model(options.model, options.folds, allow_unfinished=options.allow_unfinished)
    prepare_folder(options.output.parent, "--output")
    if options.note is not None and options.format != "zip":
        print(f"warning: --note has no effect with --format {options.format}", file=sys.stderr)
    FORMATS[options.format](options, model, note)
    return 0


def _require_new_folder(options: ExportOptions) -> None:
    if options.output.exists():
        raise UserError(f"--output {options.output} exists, and folders are not replaced; choose another name")


def _zip(options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from cross_validation.records import scores_of_model
    from inference.archive import write_archive
    from inference.card import make_card

    card = make_card(model, scores_of_model(model), "" if options.note is None else options.note)
    write_archive(options.output, model, **note, card=card)
    print(f"wrote {options.output}: {model.describe()}, {options.output.stat().st_size / 1e6:.1f} MB")


def _nnunet_v2(options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from inference.nnunet_v2.export import export_folder

    if note:
        print("warning: --license_note has no effect with --format nnunet-v2", file=sys.stderr)
    folder, notes = export_folder(options.output, model)
    for difference in notes:
        print(f"note: with nnU-Net {difference}")
    print(f"wrote {folder}: {model.describe()}")
    print(f"predict with: nnUNetv2_predict_from_modelfolder -i FOLDER -o FOLDER -m {folder}")


def _triton(options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from serving.triton_repository import SCANS, write_repository

    name, lines = write_repository(options.output, model, **note)
    for line in lines:
        print(line)
    print(f"wrote {options.output}: {model.describe()}, as the model {name}")
    print(f"serve with: tritonserver {shlex.quote(f'--model-repository={options.output / SCANS}')}")


def _onnx(options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from inference.engines.export import trtexec_commands

    _networks("onnx", options, model, note)
    print("TensorRT, on a machine with a GPU (never tried here; keep norms in fp32, see docs/how-to/deploy.md):")
    for command in trtexec_commands(options.output, model):
        print(f"  {command}")


def _networks(form: NetworkForm, options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from inference.archive import LICENSE_NOTE
    from inference.engines.export import export_networks
    from inference.preparing import read_scan

    scan = read_scan(options.check_scan) if options.check_scan else None
    terms = note.get("license_note", LICENSE_NOTE)
    lines = export_networks(options.output, model, form, license_note=terms, scan=scan)
    for line in lines:
        print(line)
    print(f"wrote {options.output}: {model.describe()}; model.json says what is done around the networks")


def _bundle(options: ExportOptions, model: Model, note: dict[str, str]) -> None:
    from serving.monai_bundle import write_bundle

    command = write_bundle(options.output, model, **note)
    print(f"wrote {options.output}: {model.describe()}")
    print(f"predict, where this program is installed (pip install -e '.[bundle]'), with: {command}")


FORMATS: Mapping[Format, Callable[[ExportOptions, Model, dict[str, str]], None]] = {
    "zip": _zip,
    "nnunet-v2": _nnunet_v2,
    "onnx": _onnx,
    "torch-export": partial(_networks, "torch-export"),
    "aot-inductor": partial(_networks, "aot-inductor"),
    "triton": _triton,
    "monai-bundle": _bundle,
}
"""--format -> what writes it; all but the zip are new folders."""
assert set(FORMATS) == set(get_args(Format))


def _read_text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"{flag} {path} cannot be read: {reason}") from None


if __name__ == "__main__":
    sys.exit(run_cli(main))
