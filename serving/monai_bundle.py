"""A MONAI bundle of a model: what `python -m monai.bundle run` takes, with this program doing the work.

| file | what |
|---|---|
| `configs/metadata.json` | what MONAI's tools read: task, versions, channels, structures |
| `configs/inference.json` | `run`: predicts a folder of scans by `predict` below |
| `models/model.zip` | the model |
| `docs/README.md` | the command; what it does and does not |

The masks are those of inference.py, as it is called: preprocessing, ensembles, cascades and post-processing of a model
are no transforms and networks of MONAI, so the bundle needs this program installed beside MONAI.
"""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inference.archive import LICENSE_NOTE, write_archive
from inference.card import card_lines, make_card
from inference.model import Model
from inference.run import NetworkUse, predict_folder
from inference.scan_run import ScanJob
from utils.errors import EXIT_OK, UserError
from utils.files import new_folder, write_json
from utils.program import program_version

MODEL = "models/model.zip"
CONFIG: dict[str, Any] = {
    "imports": ["$from serving.monai_bundle import predict"],
    "bundle_root": ".", "input_dir": "input", "output_dir": "output", "gpus": None, "tta": None,
    "model": f"$@bundle_root + '/{MODEL}'",
    "run": ["$predict(@model, @input_dir, @output_dir, gpus=@gpus, tta=@tta)"],
}  # fmt: skip
"""Each may be given on the command line: --input_dir scans."""


def write_bundle(folder: Path, model: Model, *, license_note: str = LICENSE_NOTE) -> str:
    """Write a new folder; returns the command that runs it.

    Raises:
        UserError: the weights do not fit the plan.
    """
    place = shlex.quote(str(folder))
    command = (
        f"python -m monai.bundle run --config_file {place}/configs/inference.json --meta_file "
        f"{place}/configs/metadata.json --bundle_root {place} --input_dir SCANS --output_dir MASKS"
    )
    with new_folder(folder) as temporary:
        for name in ("configs", "models", "docs"):
            (temporary / name).mkdir()
        write_json(metadata(model), temporary / "configs/metadata.json")
        write_json(CONFIG, temporary / "configs/inference.json")
        write_archive(temporary / MODEL, model, license_note=license_note)
        card = "\n".join(card_lines(make_card(model), license_note))
        text = f"# {model.plan.dataset}\n\n```\n{card}\n```\n\nWhere this program is installed:\n\n    {command}\n"
        (temporary / "docs/README.md").write_text(text, encoding="utf-8")
        (temporary / "LICENSE").write_text(license_note, encoding="utf-8")
    return command


def predict(model: str, input_dir: str, output_dir: str, *, gpus: int | None = None, tta: bool | None = None) -> None:
    """Masks of a folder of scans, as inference.py writes them; what the bundle's configuration calls.

    Raises:
        UserError: no such model or scans, or some scans could not be predicted.
    """
    job = ScanJob(
        input=Path(input_dir), output=Path(output_dir), model=Path(model), folds=None, save_probabilities=False,
        overwrite=False, memory_gb=None,
    )  # fmt: skip
    use = NetworkUse(batch_size=None, gpus=gpus, amp=False, compile=False, tta=tta, overlap=None, blend="gaussian")
    if predict_folder(job, use) != EXIT_OK:
        raise UserError(f"not all scans of {input_dir} could be predicted; the lines above say why")


def metadata(model: Model) -> dict[str, Any]:
    """What MONAI's tools read of a bundle."""
    plan, stage = model.plan, model.plan.stage
    labels = dict(zip(map(str, plan.labels.values), plan.labels.names))
    channels = {str(number): channel.name for number, channel in enumerate(plan.channels)}
    image = {
        "type": "image", "format": "magnitude", "modality": ", ".join(channels.values()), "dtype": "float32",
        "num_channels": len(channels), "spatial_shape": ["*"] * 3, "value_range": [], "is_patch_data": False,
        "channel_def": channels,
    }  # fmt: skip
    mask = {
        "type": "image", "format": "segmentation", "num_channels": 1, "spatial_shape": ["*"] * 3, "dtype": "uint8",
        "value_range": [0, max(plan.labels.values)], "is_patch_data": False, "channel_def": labels,
    }  # fmt: skip
    return {
        "version": program_version(), "changelog": {program_version(): "written by nnunet export-model"},
        "monai_version": version("monai"), "pytorch_version": version("torch"), "numpy_version": version("numpy"),
        "required_packages_version": {"nnunet-lightning": program_version(), "nibabel": version("nibabel")},
        "supported_apps": {}, "name": plan.dataset, "task": f"segmentation of {', '.join(plan.labels.names[1:])}",
        "description": f"{model.describe()}; window {'x'.join(map(str, stage.patch_size))}",
        "authors": "", "copyright": "", "data_source": plan.dataset, "data_type": "nibabel",
        "image_classes": ", ".join(channels.values()), "label_classes": ", ".join(plan.labels.names),
        "pred_classes": ", ".join(plan.labels.names), "eval_metrics": dict(make_card(model).dice),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": mask}},
    }  # fmt: skip
