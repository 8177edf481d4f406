"""The LightningDataModule: shards of a folder as loaders for training, validation, prediction and benchmarks.

DALI is imported when the first loader is made, so this module can be imported (and its errors seen) without it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytorch_lightning as pl

from data_loading.augment.presets import choose_preset
from data_loading.sampling import BatchSpec, CaseShard, Place
from utils.axes import triple
from utils.config import LoaderConfig
from utils.errors import UserError, list_problems
from utils.optim_config import OptimConfig
from utils.schema import Plan
from utils.validation_schedule import ValidationSchedule, affordable_interval, count_windows

if TYPE_CHECKING:
    from data_loading.dali_loader import CentrePatchLoader, VolumeLoader
    from data_loading.train_loader import TrainLoader
    from data_loading.validation_loader import ValidationLoader


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardCases:
    """A folder of shards and the names of the cases that are trained on, validated on and predicted."""

    folder: Path
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    predict: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """How to load, apart from what a batch is.

    `train_batches` and `test_batches` count only with `benchmark`: exactly so many batches are made (0: as many as hold
    every case once).
    """

    seed: int
    num_threads: int
    on_gpu: bool
    benchmark: bool = False
    train_batches: int = 0
    test_batches: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """How often a training is validated.

    Attributes:
        every: epochs from one validation of whole cases to the next; None: as few as keep its share of the time small.
        skipped: epochs without any at the beginning.
        max_epochs: of the training.
        overlap: of neighbouring windows, as a share of the patch.
    """

    every: int | None = None
    skipped: int = 0
    max_epochs: int
    overlap: float = 0.5

    @classmethod
    def of(cls, optim: OptimConfig, overlap: float) -> ValidationSettings:
        """As the options of a training have it; a schedule that judges each epoch's Dice needs one."""
        every = 1 if optim.scheduler == "plateau" else optim.validate_every
        return cls(every=every, skipped=optim.skip_first_n_eval, max_epochs=optim.max_epochs, overlap=overlap)


class DataModule(pl.LightningDataModule):
    """Loaders over the shards of a folder; an epoch depends on (seed, rank, epoch) and on no state in here.

    `schedule` says what is validated when; without settings of it all cases are shown whole.

    Raises:
        UserError: shards are missing, unreadable or do not fit the plan (all are named), or the batch does not divide.
    """

    def __init__(
        self, *, cases: ShardCases, plan: Plan, loader: LoaderConfig, settings: LoadingSettings,
        validation: ValidationSettings | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cases, self.settings, self.loader = cases, settings, loader
        self._training: TrainLoader | None = None
        self.spec = batch_spec(plan, loader)
        self._mirror_axes = plan.mirror_axes
        single_slice = plan.stage.dim == 2 and loader.data2d_dim == 2
        self._shards = find_shards(
            cases, channels=plan.image_channels, single_slice=single_slice, cascade=plan.previous_stage is not None
        )
        self.schedule = ValidationSchedule(last_epoch=0) if validation is None else self._schedule(validation)

    def _schedule(self, validation: ValidationSettings) -> ValidationSchedule:
        every = validation.every
        if every is None:
            shapes = [self._shards[name].shape for name in self.cases.val]
            batches = self.spec.per_epoch or -(-len(self.cases.train) // self.spec.cases_per_batch)
            windows = count_windows(shapes, self.spec.patch, validation.overlap)
            every = affordable_interval(windows, max(batches, 1) * self.spec.batch_size)
        return ValidationSchedule(every=every, skipped=validation.skipped, last_epoch=validation.max_epochs - 1)

    def train_dataloader(self) -> TrainLoader:
        """Batches {"image": (N, C, *patch) float32, "label": (N, 1, *patch) uint8}; 2D patches have no D."""
        from data_loading.train_loader import TrainLoader

        preset = choose_preset(
            self.loader.augment, self.spec.patch,
            foreground=self.loader.oversampling, elastic_probability=self.loader.elastic_probability,
            flip_axes=self._mirror_axes,
        )  # fmt: skip
        self._training = TrainLoader(
            self._of(self.cases.train, "training"),
            spec=self.spec, preset=preset, place=self._place,
            num_threads=self.settings.num_threads,
            benchmark_batches=self.settings.train_batches if self.settings.benchmark else 0,
            last_epoch=self._last_epoch,
        )  # fmt: skip
        return self._training

    def teardown(self, stage: str) -> None:
        """Release what was begun for an epoch that did not come: nobody knows before it when a training stops early."""
        if self._training is not None:
            self._training.close()

    def val_dataloader(self) -> ValidationLoader:
        """Cases {"image": (1, C, D, H, W) float32, "label": (1, 1, D, H, W) uint8, "case": name}, or patches."""
        from data_loading.validation_loader import ValidationLoader

        volumes = self._volumes(self._of(self.cases.val, "validation"))
        return ValidationLoader(volumes, spec=self.spec, place=self._place, in_patches=self._in_patches)

    def _in_patches(self) -> bool:
        trainer = self.trainer
        # What Lightning shows before the first epoch is to find mistakes in whole cases.
        if trainer is None or trainer.sanity_checking:
            return False
        return self.schedule.kind(trainer.current_epoch) == "patches"

    def predict_dataloader(self) -> VolumeLoader | CentrePatchLoader:
        """Cases {"image": (1, C, D, H, W), "case": name}; in a benchmark batches {"image": (N, C, *patch)}."""
        from data_loading.dali_loader import CentrePatchLoader

        shards = self._of(self.cases.predict, "prediction")
        if not self.settings.benchmark:
            return self._volumes([dataclasses.replace(shard, label=None) for shard in shards])
        spec = dataclasses.replace(self.spec, cases_per_batch=self.loader.val_batch_size, patches_per_case=1)
        return CentrePatchLoader(
            shards, spec=spec, place=self._place, num_threads=self.settings.num_threads,
            count=self.settings.test_batches,
        )  # fmt: skip

    def _volumes(self, shards: list[CaseShard]) -> VolumeLoader:
        from data_loading.dali_loader import VolumeLoader

        return VolumeLoader(
            shards, place=self._place, num_threads=self.settings.num_threads,
            previous_classes=self.spec.previous_classes,
        )  # fmt: skip

    def _of(self, names: tuple[str, ...], purpose: str) -> list[CaseShard]:
        if not names:
            raise UserError(f"there is no case for {purpose} in {self.cases.folder}; check the folds in splits.json")
        return [self._shards[name] for name in names]

    def _last_epoch(self) -> int | None:
        """The last epoch of a training, by its number; None where none is foreseen."""
        trainer = self.trainer
        if trainer is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            return None
        return trainer.max_epochs - 1

    def _place(self) -> Place:
        trainer = self.trainer
        if trainer is None:
            return Place(seed=self.settings.seed, device_id=0 if self.settings.on_gpu else None)
        return Place(
            seed=self.settings.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            epoch=trainer.current_epoch,
            device_id=trainer.strategy.root_device.index if self.settings.on_gpu else None,
        )


def batch_spec(plan: Plan, loader: LoaderConfig) -> BatchSpec:
    """What a training batch is made of.

    3D, and 2D with `data2d_dim` 2 or `nvol` 0: one patch of each case. Otherwise `nvol` cases give batch_size / nvol
    slices each.

    Raises:
        UserError: the slices of a batch cannot be shared out evenly over `nvol` volumes.
    """
    stage = plan.stage
    size = stage.batch_size if loader.batch_size is None else loader.batch_size
    many_slices = stage.dim == 2 and loader.data2d_dim == 3 and loader.nvol > 0
    if many_slices and size % loader.nvol:
        raise UserError(
            f"--batch_size {size} cannot be shared out over --nvol {loader.nvol} volumes; "
            f"choose a batch size that is a multiple of --nvol, or another --nvol"
        )
    cases_per_batch = loader.nvol if many_slices else size
    return BatchSpec(
        patch=stage.patch_size,
        channels=plan.image_channels,
        cases_per_batch=cases_per_batch,
        patches_per_case=size // cases_per_batch,
        per_epoch=loader.batches_per_epoch,
        mask_channels=int(plan.mask_channel),
        previous_classes=0 if plan.previous_stage is None else plan.labels.num_classes,
    )


def find_shards(cases: ShardCases, *, channels: int, single_slice: bool, cascade: bool = False) -> dict[str, CaseShard]:
    """The shards of all named cases, each file looked at (header only); those of a cascade have one file more.

    Raises:
        UserError: a file is missing, cut short, or not of the type or shape that the plan says; all are listed.
    """
    problems: list[str] = []
    shards: dict[str, CaseShard] = {}
    for case in dict.fromkeys((*cases.train, *cases.val, *cases.predict)):
        image, label, foreground, previous = (cases.folder / f"{case}_{part}.npy" for part in ("x", "y", "fg", "p"))
        size = (None, None, None)
        expected: dict[Path, tuple[type[np.generic], tuple[int | None, ...]]]
        expected = {image: (np.float32, (channels, *size))}
        if cascade:
            expected[previous] = (np.uint8, (1, *size))
        if case in cases.train or case in cases.val:
            expected[label] = (np.uint8, (1, *size))
        # Patches are chosen by it, for training and for the validation of one.
        if case in cases.train or (case in cases.val and cases.train):
            expected[foreground] = (np.int32, (None, 3))
        shapes = {path: _shape(path, *kind, problems=problems) for path, kind in expected.items()}
        volumes = {shape[1:] for path, shape in shapes.items() if shape and path != foreground}
        if len(volumes) > 1:
            listed = ", ".join(f"{path.name} {shape}" for path, shape in shapes.items() if path != foreground)
            problems.append(f"the files of {case} differ in shape: {listed}")
        if single_slice and any(volume[0] != 1 for volume in volumes):
            problems.append(f"{image.name} holds several slices, but --data2d_dim 2 says one")
        if volumes:
            shards[case] = CaseShard(
                case=case, image=image, label=label if label in expected else None,
                foreground=foreground if foreground in expected else None, shape=triple(volumes.pop()),
                previous=previous if cascade else None,
            )  # fmt: skip
    if problems:
        raise list_problems(f"shards in {cases.folder} cannot be used:", problems, advice="Run preprocess.py again.")
    return shards


def _shape(
    path: Path, dtype: type[np.generic], shape: tuple[int | None, ...], *, problems: list[str]
) -> tuple[int, ...] | None:
    """Shape of a .npy file of this type and shape (None: any size); None and a new problem where it is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError, EOFError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return None
    same_shape = array.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape))
    if array.dtype == dtype and same_shape and array.flags.c_contiguous:
        return array.shape
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    problems.append(f"{path.name} is {array.dtype} {array.shape}; needed is {np.dtype(dtype)} ({wanted}) in C order")
    return None
