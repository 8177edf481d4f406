"""What the sides of a stage work on, written once into a folder; run by this program's own Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from scripts.peers.measure import Job

HIPPOCAMPUS, BRATS = "04", "01"


def step(job: Job, folder: Path) -> None:
    """The planned hippocampus network and a batch of noise."""
    plan = _write_plan(folder)
    rng = np.random.default_rng(0)
    shape = (job["batch_size"], 1, *plan.stage.patch_size)
    np.save(folder / "image.npy", rng.standard_normal(shape, np.float32))
    np.save(folder / "label.npy", rng.integers(0, plan.labels.num_classes, shape, np.uint8))


def sliding(job: Job, folder: Path) -> None:
    """The same network with weights, and a volume of noise."""
    plan = _write_plan(folder)
    _write_weights(plan, folder / "weights.npz")
    np.save(folder / "volume.npy", np.random.default_rng(0).standard_normal((1, *job["shape"]), np.float32))


def loader(job: Job, folder: Path) -> None:
    """Shards of noise with the patch and the channels of a task."""
    from data_preprocessing.synthetic import write_benchmark_shards

    made = write_benchmark_shards(folder, task=job["task"], dim=3)
    for path in made.iterdir():
        path.rename(folder / path.name)


def _write_plan(folder: Path):
    from data_preprocessing.synthetic import benchmark_plan
    from utils.files import write_json

    plan = benchmark_plan(HIPPOCAMPUS, 3)
    write_json(plan, folder / "plan.json")
    return plan


def _write_weights(plan, path: Path, seed: int = 0) -> None:
    import torch

    from models.unet import build_network
    from utils.config import ModelConfig

    torch.manual_seed(seed)
    network = build_network(
        plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=ModelConfig()
    )
    np.savez(path, **{name: value.numpy() for name, value in network.state_dict().items()})


PREPARATIONS: dict[str, Callable[[Job, Path], None]] = {"step": step, "sliding": sliding, "loader": loader}

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    PREPARATIONS[job["worker"]](job, Path(job["folder"]))
    print("{}", flush=True)
