"""Turn a model of nnU-Net v2, a folder or its exported zip, into one zip of this program: tensors and JSON only.

python scripts/import_model.py nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres model.zip
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import UserError, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Turn a model of nnU-Net v2 into one zip, for inference.py and any other use of a model here.

    inference.py takes such a model as it is, too; the zip is smaller and holds nothing that could run.
    """

    model: tyro.conf.Positional[Path]
    """Folder <trainer>__<plans>__<configuration> with plans.json, dataset.json and fold_0, ..., or the zip that
    nnUNetv2_export_model_to_zip wrote."""
    output: tyro.conf.Positional[Path]
    """Zip file to write."""
    folds: tuple[int, ...] | None = None
    """Folds to take (default: all)."""
    allow_unfinished: bool = False
    """Take trainings that did not end: checkpoint_best.pth where there is no checkpoint_final.pth."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        if self.output.suffix != ".zip":
            raise UserError(f"the file to write must end in .zip, got {self.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one model."""
    options = parse(ImportOptions, argv, prog="import_model.py")
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} exists; choose another name or give --overwrite")

    from inference.archive import write_archive
    from inference.nnunet_v2.folder import is_nnunet_v2, nnunet_model
    from utils.runs import prepare_folder

    if not is_nnunet_v2(options.model):
        what = "holds no plans.json beside a dataset.json" if options.model.exists() else "does not exist"
        raise UserError(f"{options.model} is no model of nnU-Net v2: it {what}")
    model = nnunet_model(options.model, options.folds, allow_unfinished=options.allow_unfinished)
    prepare_folder(options.output.parent, "the folder of the zip")
    write_archive(options.output, model)
    print(f"wrote {options.output}: {model.describe()}, {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
