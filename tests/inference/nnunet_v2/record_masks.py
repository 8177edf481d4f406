"""Record what nnU-Net v2 (nnunetv2 2.8.1, CPU) makes of the scans of made_up_models.py, into nnunet_masks.npz.

Of two networks also a digest of all names that it has for their parameters, into nnunet_names.json.

Run where nnunetv2 is installed, from the top of the project: python -m tests.inference.nnunet_v2.record_masks
Names of models behind it record these alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]
from PIL import Image

from tests.inference.nnunet_v2.made_up_models import (
    MODELS,
    MadeUp,
    make_dataset,
    make_plans,
    make_weight,
    model_folder,
    parameter_shapes,
    write_model,
    write_scans,
)

OUT = Path(__file__).with_name("nnunet_masks.npz")
NAMES = OUT.with_name("nnunet_names.json")


def build(model: MadeUp, stage: MadeUp, configuration: str) -> torch.nn.Module:
    plans, dataset = PlansManager(make_plans(model)), make_dataset(model)
    manager = plans.get_configuration(configuration)
    outputs = plans.get_label_manager(dataset).num_segmentation_heads
    return nnUNetTrainer.build_network_architecture(plans, manager, stage.in_channels, outputs, False)


def digest_names(name: str) -> str:
    network = build(MODELS[name], MODELS[name], MODELS[name].configuration)
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fill_checkpoints(root: Path, model: MadeUp, stage: MadeUp, configuration: str) -> None:
    """Give checkpoints all names that nnU-Net's network has for its parameters; they must be those of `model`."""
    network = build(model, stage, configuration)
    shapes = dict(parameter_shapes(stage))
    assert {name: tuple(value.shape) for name, value in network.named_parameters()} == shapes
    for fold in range(stage.folds):
        path = model_folder(root, model, configuration) / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        network.load_state_dict({n: make_weight(n, s, fold) for n, s in shapes.items()}, strict=False)
        content["network_weights"] = network.state_dict()
        torch.save(content, path)


def predict(folder: Path, scans: Path, out: Path, previous: Path | None, *, mirror: bool = True) -> None:
    out.mkdir()
    cpu = torch.device("cpu")
    predictor = nnUNetPredictor(use_mirroring=mirror, perform_everything_on_device=False, device=cpu, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), None)
    before = None if previous is None else str(previous)
    predictor.predict_from_files_sequential(str(scans), str(out), folder_with_segs_from_prev_stage=before)


def read_masks(out: Path, model: MadeUp) -> list[np.ndarray]:
    paths = [out / f"scan{index}{model.ending}" for index in range(len(model.scans))]
    if model.reader == "NaturalImage2DIO":
        return [np.asarray(Image.open(path)).astype(np.uint8).T[..., None] for path in paths]
    return [np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in paths]  # type: ignore[attr-defined]


def record_trained() -> None:
    """Masks of trained_by_nnunet.zip for the scans of the isotropic model."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(OUT.with_name("trained_by_nnunet.zip")) as archive:
        root = Path(folder)
        archive.extractall(root)
        (root / "scans").mkdir()
        write_scans(root / "scans", MODELS["isotropic"])
        [target] = root.glob("*/nnUNetTrainer__*")
        predict(target, root / "scans", root / "out", None, mirror=False)
        masks = read_masks(root / "out", MODELS["isotropic"])
    np.savez_compressed(OUT.with_name("trained_masks.npz"), **{f"trained {i}": mask for i, mask in enumerate(masks)})


def main(chosen: list[str]) -> None:
    NAMES.write_text(json.dumps({name: digest_names(name) for name in ("isotropic", "residual")}, indent=1) + "\n")
    recorded = dict(np.load(OUT)) if chosen else {}
    for name, model in MODELS.items():
        if chosen and name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            scans, out, before = root / "scans", root / "out", root / "before"
            scans.mkdir()
            write_scans(scans, model)
            target = write_model(root / "models", model)
            fill_checkpoints(root / "models", model, model, model.configuration)
            previous = None
            if model.first_stage is not None:
                fill_checkpoints(root / "models", model, model.first_stage, "3d_lowres")
                predict(model_folder(root / "models", model, "3d_lowres"), scans, before, None)
                previous = before
            predict(target, scans, out, previous)
            for index, mask in enumerate(read_masks(out, model)):
                recorded[f"{name} {index}"] = mask
                print(name, index, mask.shape, np.bincount(mask.ravel()))
        np.savez_compressed(OUT, **recorded)
    if not chosen:
        record_trained()


if __name__ == "__main__":
    main(sys.argv[1:])
