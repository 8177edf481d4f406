"""A module that keeps what it is given, and a Trainer for it."""

from __future__ import annotations

import pytorch_lightning as pl
import torch


class Recorder(pl.LightningModule):
    """Keeps what it is given; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[int, list[torch.Tensor]] = {}
        self.cases: list[str] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        self.batches.setdefault(self.current_epoch, []).append(batch["image"].clone())
        return self.weight * 1

    def validation_step(self, batch: dict, index: int) -> None:
        self.cases.append(batch["case"])

    def predict_step(self, batch: dict, index: int) -> str:
        return batch["case"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(max_epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
