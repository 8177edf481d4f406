"""One side's training steps on a batch that lies in memory: network, loss, gradient, clipping, optimiser.

SGD with Nesterov momentum and gradient clipping on both sides, deep supervision as nnU-Net weighs it.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, serve, timed_steps
from benchmarks.peers.nnunet_files import make_trainer, read_plan, set_folders


def ours(job: Job) -> Outcome:
    """This program's module as main.py builds it, with the nnunet recipe."""
    import shlex

    import torch

    from models.schedules import build_optimizer
    from training.building import build_module
    from training.run_setup import Setup
    from utils.args import parse_config
    from utils.files import read_json
    from utils.runs import ShardFolder
    from utils.runtime import configure_backends, resolve_hardware
    from utils.schema import Fold, Plan

    image, label = _batch(job)
    folder = Path(job["folder"])
    config = parse_config(["--recipe", "nnunet", "--precision", job["precision"], *shlex.split(job["our_flags"])])
    runtime = resolve_hardware(config.hardware)
    configure_backends(runtime)
    module = build_module(
        config,
        Setup(
            shards=ShardFolder(root=folder, cases=folder), plan=read_json(Plan, folder / "plan.json"),
            fold=Fold(train=(), val=()), cases=(), runtime=runtime,
        ),
    )  # fmt: skip
    module.train()
    # As Lightning does where gradients are clipped in float32.
    optimizer = build_optimizer(module.network.parameters(), module.optim, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(job):
            loss = module.training_step({"image": image, "label": label}, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), config.optim.gradient_clip_val)
        optimizer.step()

    return _measured(
        job, step, optimizer="fused SGD, Nesterov 0.99, gradient norm clipped at 12", flags=job["our_flags"]
    )


def nnunet(job: Job) -> Outcome:
    """The step of nnU-Net v2's trainer, as it is."""
    set_folders(Path(job["scratch"]))
    trainer = make_trainer(read_plan(job["folder"]), batch_size=job["batch_size"])
    labels = trainer.label_manager
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, labels.num_segmentation_heads, True
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    trainer.network.train()
    image, label = _batch(job)
    label = label.float()
    strides = (1, 2, 4)
    targets = [label[..., ::step, ::step, ::step] for step in strides[: len(trainer._get_deep_supervision_scales())]]

    def step() -> None:
        with _autocast(job):
            trainer.train_step({"data": image, "target": targets})

    return _measured(job, step, optimizer="SGD, Nesterov 0.99, gradient norm clipped at 12")


def _batch(job: Job):
    """The batch that was prepared; seeds and threads are set on the way."""
    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    arrays = (np.load(Path(job["folder"]) / f"{name}.npy")[: job["batch_size"]] for name in ("image", "label"))
    return tuple(torch.from_numpy(array) for array in arrays)


def _autocast(job: Job):
    import torch

    return torch.autocast("cpu", torch.bfloat16) if job["precision"] == "bf16" else nullcontext()


def _measured(job: Job, step, **settings: str) -> Outcome:
    seconds = timed_steps(step, warmup=job["warmup"], count=job["count"])
    names = ("batch_size", "precision", "threads", "seed", "warmup")
    return seconds | {"items": job["count"], "settings": {name: job[name] for name in names} | settings}


if __name__ == "__main__":
    serve({"ours": ours, "nnunet": nnunet})
