"""The loaders and the network of a run of main.py, from its options and its plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data_loading.data_module import DataModule, LoadingSettings, ShardCases, ValidationSettings
from data_preprocessing.case_restorer import CaseRestorer
from models.acceleration import resolve_acceleration
from models.checkpoint import CheckpointContents, load_weights
from models.inferer import InferenceSettings
from models.nn_unet import NNUnet
from training.run_setup import Setup
from utils.args import Config


def build_data(config: Config, setup: Setup, predict_cases: Sequence[str] = ()) -> DataModule:
    """The loaders of a run."""
    run = config.run
    training = run.exec_mode == "train"
    scored = run.exec_mode != "predict" and not run.benchmark
    return DataModule(
        cases=ShardCases(
            folder=setup.shards.cases,
            train=setup.fold.train if training else (),
            val=setup.fold.val if scored else (),
            predict=tuple(predict_cases),
        ),
        plan=setup.plan,
        loader=config.loader,
        settings=LoadingSettings(
            seed=run.seed,
            num_threads=setup.runtime.num_threads(config.hardware.num_workers),
            on_gpu=setup.runtime.use_gpu,
            benchmark=run.benchmark,
            train_batches=run.train_batches,
            test_batches=run.test_batches,
        ),
        validation=ValidationSettings.of(config.optim, config.inference.overlap) if training and scored else None,
    )


def build_module(config: Config, setup: Setup, checkpoint: CheckpointContents | None = None) -> NNUnet:
    """The network of the plan, with the weights of the checkpoint to evaluate or predict."""

    acceleration = resolve_acceleration(config.hardware, setup.runtime, norm=config.model.norm)
    restorer = CaseRestorer(folder=setup.shards.cases, plan=setup.plan)
    options = config.inference
    if options.invert_resampled_y and config.run.exec_mode != "predict" and not config.run.benchmark:
        restorer.require_labels(setup.fold.val)
    module = NNUnet(
        plan=setup.plan,
        model=config.model,
        optim=config.optim,
        inference=InferenceSettings(
            tta=options.tta and config.run.exec_mode != "train",
            overlap=options.overlap,
            blend=options.blend,
            window_batch=config.loader.val_batch_size,
            fill_batches=acceleration.compiles,
        ),
        native_scorer=(lambda case, slabs: torch.from_numpy(restorer.restore(case, (slab.numpy() for slab in slabs))))
        if options.invert_resampled_y
        else None,
        acceleration=acceleration,
        mirrored=config.loader.augment != "none",
    )
    if checkpoint is not None:
        load_weights(module.network, checkpoint)
    return module
