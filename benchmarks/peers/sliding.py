"""One side's sliding window over a volume in memory: overlap 0.5, Gaussian weights, class of every voxel at the end.

All sides have the same weights, so the number of voxels of each class tells whether they do the same.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, Stopwatch, serve
from benchmarks.peers.nnunet_files import dataset_json, make_network, plans_json, read_plan, set_folders


def ours(job: Job) -> Outcome:
    """The predictor of scripts/inference.py, from the prepared image on."""
    import numpy as np
    import torch

    from inference.configuration import ConfigurationModel, FoldWeights
    from inference.configuration_predictor import ConfigurationPredictor, window_batch
    from inference.preparing import PreparedScan
    from models.inferer import InferenceSettings
    from utils.config import HardwareConfig, ModelConfig
    from utils.files import read_json
    from utils.runtime import configure_backends, resolve_hardware
    from utils.schema import Plan

    configure_backends(resolve_hardware(HardwareConfig(accelerator="cpu", precision=job["precision"])))
    image = _image(job)
    folder, device = Path(job["folder"]), torch.device("cpu")
    plan = read_json(Plan, folder / "plan.json")
    arrays = np.load(folder / "weights.npz", allow_pickle=False)
    weights = FoldWeights(name="weights", fold=None, state_dict={n: torch.from_numpy(arrays[n]) for n in arrays.files})
    together = window_batch(plan.stage, device, num_outputs=plan.labels.num_outputs, tta=job["tta"])
    predictor = ConfigurationPredictor(
        ConfigurationModel(source=folder, plan=plan, model=ModelConfig(), folds=(weights,)),
        device=device, amp=torch.bfloat16 if job["precision"] == "bf16" else None,
        settings=InferenceSettings(tta=job["tta"], window_batch=together),
    )  # fmt: skip
    with Stopwatch() as watch:
        slabs = predictor.stream(PreparedScan(image=image, meta=None))
        mask = np.concatenate([slab.argmax(axis=0).astype(np.uint8) for slab in slabs])
    return _outcome(job, watch, mask, windows_together=together)


def monai(job: Job) -> Outcome:
    """MONAI's DynUNet and sliding window, flips as a loop around it."""
    import itertools

    import numpy as np
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import DynUNet

    image = torch.from_numpy(_image(job))[None]
    folder = Path(job["folder"])
    plan = read_plan(folder)
    stage = plan["stage"]
    network = DynUNet(
        3, len(plan["channels"]), len(plan["labels"]["names"]), kernel_size=stage["kernels"], strides=stage["strides"],
        upsample_kernel_size=stage["strides"][1:], filters=stage["filters"], trans_bias=True,
        norm_name=("INSTANCE", {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )  # fmt: skip
    arrays = np.load(folder / "weights.npz", allow_pickle=False)
    network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files}, strict=False)
    network.eval()
    inferer = SlidingWindowInferer(stage["patch_size"], sw_batch_size=4, overlap=0.5, mode="gaussian")
    axes = range(2, 5) if job["tta"] else ()
    flips = [f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)]

    def averaged(windows):
        return sum(network(windows.flip(f)).flip(f) if f else network(windows) for f in flips) / len(flips)

    with Stopwatch() as watch, torch.inference_mode(), _autocast(job):
        mask = inferer(image, averaged).float().softmax(dim=1).argmax(dim=1)[0].to(torch.uint8).numpy()
    return _outcome(job, watch, mask, windows_together=4)


def nnunet(job: Job) -> Outcome:
    """nnU-Net v2's predictor, from the preprocessed image on."""
    set_folders(Path(job["scratch"]))
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    image = torch.from_numpy(_image(job))
    plan = read_plan(job["folder"])
    network = make_network(plan, Path(job["folder"]) / "weights.npz")
    manager = PlansManager(plans_json(plan))
    predictor = nnUNetPredictor(use_mirroring=job["tta"], device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, manager, manager.get_configuration("3d_fullres"), None, dataset_json(plan, 1), "nnUNetTrainer",
        (0, 1, 2),
    )  # fmt: skip
    with Stopwatch() as watch, _autocast(job):
        logits = predictor.predict_sliding_window_return_logits(image)
        mask = logits.float().softmax(dim=0).argmax(dim=0).to(torch.uint8).numpy()
    return _outcome(job, watch, mask, windows_together=1)


def _image(job: Job):
    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    return np.load(Path(job["folder"]) / "volume.npy")[(slice(None), *(slice(size) for size in job["shape"]))].copy()


def _autocast(job: Job):
    import torch

    return torch.autocast("cpu", torch.bfloat16) if job["precision"] == "bf16" else nullcontext()


def _outcome(job: Job, watch: Stopwatch, mask, **settings: int) -> Outcome:
    import numpy as np

    names = ("shape", "tta", "precision", "threads", "seed")
    return watch.seconds | {
        "items": 1,
        "class_voxels": np.bincount(mask.ravel()).tolist(),
        "settings": {name: job[name] for name in names} | settings | {"overlap": 0.5, "blend": "gaussian"},
    }


if __name__ == "__main__":
    serve({"ours": ours, "monai": monai, "nnunet": nnunet})
