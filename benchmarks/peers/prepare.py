"""What the sides of a stage work on, written once into a folder; run by this program's own Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.peers.measure import Job

HIPPOCAMPUS = "04"


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
    _write_arrays(_random_weights(plan), folder / "weights.npz")
    np.save(folder / "volume.npy", np.random.default_rng(0).standard_normal((1, *job["shape"]), np.float32))


def loader(job: Job, folder: Path) -> None:
    """Shards of noise with the patch and the channels of a task."""
    from data_preprocessing.dataset.synthetic import write_benchmark_shards

    made = write_benchmark_shards(folder, task=job["task"], dim=3)
    for path in made.iterdir():
        path.rename(folder / path.name)


def preprocessing(job: Job, folder: Path) -> None:
    """A task for all sides, or one large CT."""
    from benchmarks.peers import scans
    from utils.files import to_dict, write_json

    if job["kind"] == "ct":
        scans.write_ct(folder, tuple(job["shape"]))
        write_json(scans.ct_plan(), folder / "plan.json")
        return
    dataset = scans.find_task(job["data"], folder / "made", scans=job["scans"])
    cases, plan = dataset.training[: job["scans"] or None], scans.plan_of(dataset)
    scans.link_task(dataset, cases, folder)
    scans.link_nnunet(plan, cases, folder)
    pairs = [[str(case.images[0].absolute()), str(case.label.absolute())] for case in cases]
    write_json({"cases": pairs, "plan": to_dict(plan)}, folder / "cases.json")


def predict(job: Job, folder: Path) -> None:
    """Scans that no fold 0 has seen, their labels, and one model in this program's and in common format."""
    from benchmarks.peers import scans
    from inference.archive import load_model, write_archive
    from inference.configuration import ConfigurationModel, FoldWeights
    from inference.model import single_model
    from utils.config import ModelConfig
    from utils.files import write_json

    dataset = scans.find_task(job["data"], folder / "made", scans=job["scans"])
    scans.link_scans(scans.first_fold(dataset)[: job["scans"] or None], folder)
    if job["model"]:
        [configuration] = load_model(Path(job["model"])).configurations
    else:
        plan = scans.plan_of(dataset)
        weights = FoldWeights(name="fold_0", fold=0, state_dict=_random_weights(plan))
        configuration = ConfigurationModel(source=folder, plan=plan, model=ModelConfig(), folds=(weights,))
    write_archive(folder / "model.zip", single_model(configuration))
    write_json(configuration.plan, folder / "plan.json")
    _write_arrays(configuration.folds[0].state_dict, folder / "weights.npz")


def accuracy(job: Job, folder: Path) -> None:
    """A whole task for both sides, with the folds of this program; nnU-Net prepares its part itself."""
    import preprocess
    from benchmarks.peers import scans
    from utils.files import read_json, write_json
    from utils.schema import Splits

    dataset = scans.find_task(job["data"], folder / "made", scans=10)
    scans.link_task(dataset, dataset.training, folder)
    scans.link_nnunet(scans.plan_of(dataset), dataset.training, folder)
    scans.link_scans(scans.first_fold(dataset), folder)
    words = ["--task", dataset.task, "--data", str(folder / "data"), "--results", str(folder / "shards")]
    assert preprocess.main(words) == 0
    folds = read_json(Splits, folder / "shards" / f"{dataset.task}_3d" / "splits.json").folds
    prepared = folder / "nnUNet_preprocessed" / "Dataset004_Compare"
    prepared.mkdir(parents=True)
    write_json([{"train": list(fold.train), "val": list(fold.val)} for fold in folds], prepared / "splits_final.json")


def _write_plan(folder: Path):
    from data_preprocessing.dataset.synthetic import benchmark_plan
    from utils.files import write_json

    plan = benchmark_plan(HIPPOCAMPUS, 3)
    write_json(plan, folder / "plan.json")
    return plan


def _random_weights(plan):
    import torch

    from models.unet import build_network
    from utils.config import ModelConfig

    torch.manual_seed(0)
    network = build_network(
        plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=ModelConfig()
    )
    return network.state_dict()


def _write_arrays(weights, path: Path) -> None:
    np.savez(path, **{name: value.numpy() for name, value in weights.items()})


PREPARATIONS: dict[str, Callable[[Job, Path], None]] = {
    function.__name__: function for function in (step, sliding, loader, preprocessing, predict, accuracy)
}

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    PREPARATIONS[job["worker"]](job, Path(job["folder"]))
    print("{}", flush=True)
