"""The LightningModule: one network of a plan, its loss, optimiser, validation and prediction.

It reads no file and prints nothing; what it needs is handed in, and what it finds out is in `last_validation` and in
the values that it logs (`train_loss`; `val_loss`, `dice`, `dice_<target>`, with `patch_` before them where patches
were shown).

Shapes: N batch, C channels, K classes or regions, D H W space, T scored targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from models.acceleration import Acceleration
from models.inferer import InferenceSettings, plane_blocks, to_probabilities
from models.loss import SegmentationLoss
from models.metrics import DiceAccumulator, case_counts, discretise
from models.schedules import LossPlateau, build_optimizer, build_scheduler
from models.sliding_window import Ensemble, predict_volume, stream_probabilities
from models.unet import PLAIN, build_network
from models.volume_loss import volume_loss
from utils.config import ModelConfig
from utils.files import to_dict
from utils.optim_config import OptimConfig
from utils.schema import FORMAT_VERSION, Plan, StagePlan

Scorer = Callable[[str, Iterator[Tensor]], Tensor]
"""(case name, slabs (K, d, H, W) on the CPU) -> (T, 3) true positives, false positives, false negatives. Slabs hold
probabilities, or logits where the plan's rules average those."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Dice (0..1, NaN where a target is in no case) per target, their mean, and the mean loss of the cases."""

    dice: tuple[float, ...]
    mean_dice: float
    loss: float
    has_target: bool = True
    """Whether some case has a voxel of some target. Without any, Dice says nothing: NaN, or 0 for one wrong voxel."""
    whole: bool = True
    """Of whole cases; else of one patch of each."""

    def summary(self, target_names: tuple[str, ...]) -> dict[str, float]:
        """The same numbers by the names under which they are logged."""
        each = {f"dice_{name}": value for name, value in zip(target_names, self.dice)}
        numbers = {"dice": self.mean_dice, **each, "val_loss": self.loss}
        return numbers if self.whole else {f"patch_{name}": value for name, value in numbers.items()}


class NNUnet(pl.LightningModule):
    """Trains and applies the U-Net of a plan.

    Args:
        plan: what the shards and the network look like; saved in every checkpoint.
        model: options of the network beyond the plan.
        optim: loss, optimiser and schedule.
        inference: sliding window and test-time augmentation.
        native_scorer: scores a case in its scan's own grid; None scores on the preprocessed grid.
        acceleration: order of memory, fused operators, torch.compile.
        mirrored: whether training patches are flipped; saved, because flips at test time help only then.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        model: ModelConfig,
        optim: OptimConfig,
        inference: InferenceSettings,
        native_scorer: Scorer | None = None,
        acceleration: Acceleration = PLAIN,
        mirrored: bool = True,
    ) -> None:
        super().__init__()
        self.mirrored = mirrored
        self.plan, self.model_config, self.optim = plan, model, optim
        self.inference, self.native_scorer = inference, native_scorer
        self.network = build_network(
            plan.stage,
            in_channels=plan.in_channels,
            num_outputs=plan.labels.num_outputs,
            model=model,
            acceleration=acceleration,
        )
        self.loss = SegmentationLoss(
            plan.labels, focal=optim.focal, batch_dice=uses_batch_dice(optim.batch_dice, plan.stage)
        )
        self.acceleration = acceleration
        self._loss_of = self._forward_loss
        if acceleration.compiles:
            # Network and loss in one graph, so that the loss's passes over the logits fuse, too.
            self._loss_of = torch.compile(self._forward_loss, **acceleration.compile_options())
            # In place, so that names of parameters stay; for validation and prediction.
            self.network.compile(**acceleration.compile_options())
        self.dice = DiceAccumulator(plan.labels)
        self.last_validation: ValidationResult | None = None
        self.shown_patches = False
        """Whether the validation that comes is of patches, in their own grid, and not of whole cases."""
        self.case_counts: dict[str, Tensor] = {}
        self._loss_sum = torch.zeros(2)
        self._val_loss_sum = torch.zeros(2)
        self._target_voxels = torch.zeros(())

    def training_step(self, batch: dict, batch_index: int) -> Tensor:
        """Loss of one batch: image (N, C, *patch) float32, label (N, 1, *patch) uint8 class indices."""
        if self.acceleration.records_graphs:
            # The loss of the step before may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss_of(batch["image"], batch["label"])
        # Summed on the device and read once an epoch: a number read every step would make the GPU wait. A loss that is
        # not finite is a step that fp16 leaves out; in other precisions it ends the training (finite.py).
        found = loss.detach().float()
        finite = found.isfinite()
        counted = torch.stack([torch.where(finite, found, 0.0), finite.float()])
        self._loss_sum = self._loss_sum.to(loss.device) + counted
        return loss

    def _forward_loss(self, image: Tensor, label: Tensor) -> Tensor:
        # Past `__call__`, which may hold a graph without the loss.
        return self.loss(self.network.forward(image), label)

    def on_train_start(self) -> None:
        """End at once where a resumed training had ended for its learning rate."""
        self._stop_below_least_rate()

    def on_train_epoch_start(self) -> None:
        """Forget the losses and scores of the last epoch, so that what is logged is this epoch's."""
        self._loss_sum = torch.zeros(2)
        self.last_validation = None

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean training loss, judge the plateau, and end when the learning rate is low enough.

        Lightning would step a plateau schedule after the checkpoint is written; a resumed run would lack that step.
        """
        loss = self.mean_train_loss()
        self.log("train_loss", loss)
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LossPlateau):
            scheduler.step(loss)
        elif isinstance(scheduler, ReduceLROnPlateau) and self.last_validation and self.last_validation.has_target:
            scheduler.step(self.last_validation.mean_dice)
        self._stop_below_least_rate()

    def _stop_below_least_rate(self) -> None:
        if self.trainer.optimizers[0].param_groups[0]["lr"] < self.optim.min_learning_rate:
            self.trainer.should_stop = True

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: None) -> None:
        """Step a schedule that follows the number of epochs or steps; the plateau is judged after validation."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def mean_train_loss(self) -> float:
        """Mean loss of this epoch's batches over all processes; every process has to ask for it."""
        total, count = self.reduce_sum(self._loss_sum).tolist()
        return total / max(count, 1)

    def on_validation_start(self) -> None:
        """Let processes validate different numbers of cases, none included."""
        # DDP would copy buffers to all processes in the first forward pass, which a process without a case never makes.
        model = self.trainer.model
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = False

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation."""
        self.dice = DiceAccumulator(self.plan.labels)
        self.case_counts = {}
        self._val_loss_sum = torch.zeros(2)
        self._target_voxels = torch.zeros(())

    def validation_step(self, batch: dict, batch_index: int) -> None:
        """Score one case, or a patch of it: image (1, C, D, H, W), label (1, 1, D, H, W)."""
        labels, logits = self.plan.labels, self.predict_logits(batch["image"])
        label = batch["label"].to(logits.device)
        loss = volume_loss(self.loss, logits, label).cpu()
        self._val_loss_sum = self._val_loss_sum + torch.stack([loss, torch.ones(())])
        # A few planes at a time: with many classes the logits of a scan are most of what fits the device.
        parts = plane_blocks(logits)
        if self.native_scorer is not None and not self.shown_patches:
            in_logits = self.plan.rules.average == "logits"
            shares = (logits[:, :, p] if in_logits else to_probabilities(logits[:, :, p], labels) for p in parts)
            slabs = (share[0].cpu() for share in shares)
            counts = self.native_scorer(batch["case"], slabs)
        else:
            each = (case_counts(discretise(logits[:, :, p], labels)[0], label[0, 0, p], labels) for p in parts)
            counts = torch.stack(list(each)).sum(0)
        self.dice.add(counts)
        self.case_counts[batch.get("case", str(batch_index))] = counts.cpu()
        # True positives and false negatives.
        self._target_voxels = self._target_voxels + counts[:, [0, 2]].sum()

    def on_validation_epoch_end(self) -> None:
        """Pool the cases of all processes and log Dice (0..1) and loss."""
        self.dice.merge(self.reduce_sum)
        per_target = self.dice.compute()
        loss_sum, count = self.reduce_sum(self._val_loss_sum).tolist()
        mean = self.dice.mean()
        self.last_validation = ValidationResult(
            dice=tuple(per_target.tolist()),
            mean_dice=mean,
            loss=loss_sum / max(count, 1),
            has_target=self.reduce_sum(self._target_voxels).item() > 0,
            whole=not self.shown_patches,
        )
        for name, value in self.last_validation.summary(self.plan.labels.target_names).items():
            self.log(name, value)

    def predict_step(
        self, batch: dict[str, Any], batch_index: int
    ) -> tuple[str, Iterator[Tensor]] | Tensor | tuple[Tensor, ...]:
        """Case name and probabilities of one preprocessed case, as slabs (K, d, H, W) on the CPU, in order.

        The slabs are computed when they are asked for, in the precision of this call.
        A batch without a case name is a batch of patches (N, C, *patch) of a benchmark: the logits of one forward pass.
        """
        if "case" not in batch:
            return self.network(batch["image"])
        kind = self.device.type
        ensemble = Ensemble(
            names=("the network",), networks=(self.network,), labels=self.plan.labels, device=self.device,
            amp=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            rules=self.plan.rules, mirror_axes=self.plan.mirror_axes,
        )  # fmt: skip
        return batch["case"], stream_probabilities(
            batch["image"], ensemble, stage=self.plan.stage, settings=self.inference
        )

    def predict_logits(self, image: Tensor) -> Tensor:
        """Sliding-window logits (1, K, D, H, W) of a whole case (1, C, D, H, W)."""
        plan = self.plan
        return predict_volume(
            image, self.network, num_outputs=plan.labels.num_outputs, stage=plan.stage, settings=self.inference,
            rules=plan.rules, mirror_axes=plan.mirror_axes,
        )  # fmt: skip

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser and schedule of `OptimConfig`."""
        optim = self.optim
        # In mixed precision Lightning refuses to clip gradients that a fused step might unscale by itself.
        fused = optim.gradient_clip_val == 0 or self.trainer.precision == "32-true"
        optimizer = build_optimizer(self.network.parameters(), optim, fused=fused)
        # Lightning counts the steps of all epochs by looking at the loader.
        steps = int(self.trainer.estimated_stepping_batches) if optim.moves_by_step else 0
        scheduler = build_scheduler(optimizer, optim, steps=steps)
        if scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": "step" if optim.moves_by_step else "epoch",
                "reduce_on_plateau": False,
            },
        }

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Make the checkpoint self-contained: plan and network options as plain JSON-able values."""
        checkpoint["hyper_parameters"] = {
            "format_version": FORMAT_VERSION,
            "plan": to_dict(self.plan),
            "model": to_dict(self.model_config),
            "optim": to_dict(self.optim),
            "mirrored": self.mirrored,
        }

    def reduce_sum(self, value: Tensor) -> Tensor:
        """Sum of `value` over all processes; every process has to call it."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")


def uses_batch_dice(choice: str, stage: StagePlan) -> bool:
    """Whether Dice is taken over a batch as one volume, for `--batch_dice`.

    Source: nnU-Net v2, experiment planner, for `auto`: where a patch shows only part of what a scan shows.
    """
    return choice == "always" or (choice == "auto" and (stage.dim == 2 or stage.batch_dice))
