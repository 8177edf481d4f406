"""Small models as cross-validation leaves them, and inference.py on them; for the tests of this folder."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np

from inference.decision import Decision, DecisionMember, PostProcessing
from scripts import inference
from tests.models.builders import make_plan, make_stage, with_spacing
from tests.models.checkpoints import save_ours
from tests.tiny_task import write_scan
from utils.errors import run_cli
from utils.files import write_json

SPACING = (1.2, 1.0, 0.9)
FULL = with_spacing(make_plan(make_stage((8, 8, 8))), SPACING)
LOW = with_spacing(make_plan(dataclasses.replace(make_stage((8, 8, 8)), name="3d_lowres")), (1.8, 1.8, 1.8))
SECOND = dataclasses.replace(FULL, previous_stage="3d_lowres")
PLANS = {"2d": with_spacing(make_plan(make_stage((8, 8))), (1.0, 1.0)), "3d_fullres": FULL, "3d_lowres": LOW,
         "3d_cascade_fullres": SECOND}  # fmt: skip
ORGAN_ONLY = PostProcessing(foreground=True, classes=("anterior", "posterior"))


def train(root, *configurations: str, folds=(0, 1)):
    """Models of random weights, as cross-validation leaves them."""
    for number, name in enumerate(configurations):
        for fold in folds:
            folder = root / f"04_{name}/fold_{fold}/checkpoints"
            folder.mkdir(parents=True)
            save_ours(folder / "last.ckpt", PLANS[name], seed=10 * number + fold)
    return root


def decide(root, *configurations: str, post: PostProcessing | None = None):
    members = tuple(
        DecisionMember(configuration=n, folder=f"../04_{n}", previous="../04_3d_lowres" if "cascade" in n else None)
        for n in configurations
    )
    decision = Decision(
        version=1, task="04", dataset="Task04_Test", members=members, post_processing=post or PostProcessing(),
        scores={"2d": 0.5}, command="",
    )  # fmt: skip
    (root / "04_best").mkdir(exist_ok=True)
    write_json(decision, root / "04_best/decision.json")
    return root / "04_best"


def scan() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 9, (13, 10, 15))


def predict(*words) -> int:
    return run_cli(lambda: inference.main([*map(str, words), "--gpus", "0"]))


def masks(folder) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def write_scans(folder):
    """Two scans, a and b."""
    for seed, name in enumerate("ab"):
        image = np.random.default_rng(seed).uniform(1, 9, (12, 10, 14)).astype(np.float32)
        write_scan(folder / f"{name}.nii.gz", image)
    return folder
