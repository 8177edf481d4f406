"""A tiny module, its batches and cases, and a training of it by Lightning alone."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from models.inferer import InferenceSettings
from models.nn_unet import NNUnet
from tests.models.builders import make_plan, make_stage
from utils.config import ModelConfig
from utils.optim_config import OptimConfig

OPTIM = OptimConfig(max_epochs=3, min_epochs=1)


def make_module(optim: OptimConfig = OPTIM, dim: int = 3) -> NNUnet:
    torch.manual_seed(0)
    plan = make_plan(make_stage((8,) * dim))
    model = ModelConfig(deep_supervision=True, deep_supr_num=1)
    return NNUnet(plan=plan, model=model, optim=optim, inference=InferenceSettings())


def batches(dim: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(2, 1, *(8,) * dim, generator=generator),
            "label": torch.randint(0, 3, (2, 1, *(8,) * dim), generator=generator).to(torch.uint8),
        }
        for _ in range(3)
    ]


def cases() -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.randn(1, 1, 9, 8, 10, generator=generator),
            "label": torch.randint(0, 3, (1, 1, 9, 8, 10), generator=generator).to(torch.uint8),
            "case": f"case_{number}",
        }
        for number in range(2)
    ]


def fit(
    module: NNUnet, folder: Path, *callbacks: Callback, epochs: int = 3, resume: Path | None = None, min_epochs: int = 1
) -> None:
    last = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, min_epochs=min_epochs, logger=False,
        callbacks=[*callbacks, last], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(
        module,
        DataLoader(batches(module.plan.stage.dim), batch_size=None),
        DataLoader(cases(), batch_size=None),
        ckpt_path=resume,
        weights_only=True,
    )
