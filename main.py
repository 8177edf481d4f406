"""Train, evaluate or predict with a dynamic 2D/3D U-Net on shards that preprocess.py wrote.

python main.py --exec_mode train --task 04 --dim 3 --fold 0 --amp
python main.py --exec_mode evaluate --task 04 --dim 3 --fold 0 --ckpt_path results/checkpoints
python main.py --exec_mode predict --task 04 --dim 3 --fold 0 --ckpt_path results/checkpoints --save_preds
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from report.finishing import finish_run
from utils import runs
from utils.args import Config, parse_config
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, continues_with, run_cli
from utils.flag_roles import ineffective_options
from utils.out_of_memory import explained_memory
from utils.program import called_name, command_start_s


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    started_s = command_start_s(own_process=argv is None or called_name() is not None)
    config = parse_config(argv, doc=__doc__)
    for message in ineffective_options(config):
        print(f"warning: {message}", file=sys.stderr)
    modes = {"train": lambda c: train(c, started_s), "evaluate": evaluate, "predict": predict}
    chosen = benchmark if config.run.benchmark and config.run.exec_mode != "evaluate" else modes[config.run.exec_mode]
    with explained_memory(trains=config.run.exec_mode == "train"):
        status = chosen(config) or EXIT_OK
    finish_run(config.run)
    return status


def train(config: Config, started_s: float) -> None:
    """Train on the fold, validate as often as it is worth, keep last.ckpt and the best checkpoint."""
    from data_preprocessing.shards import shard_stamps
    from inference.start import features_of_start, read_start
    from models.callbacks import EpochReport
    from models.checkpoint import read_checkpoint, warm_start
    from models.loggers import build_loggers, require_loggers
    from models.resuming import TrainingCases, take_notes
    from models.saving import checkpoint_callbacks, early_stopping
    from models.trainer import build_trainer, profiler_callbacks
    from models.weight_average import weight_averages
    from training.budget import budget_summary, with_budget
    from training.building import build_data, build_module
    from training.run_setup import prepare, remarks, training_folder, warn
    from training.shard_watch import ShardWatch
    from utils.files import to_dict
    from utils.reporting import RunReport
    from utils.training_record import how_to_continue

    run = config.run
    require_loggers(run.logger)
    resume = runs.last_checkpoint(run) if run.resume_training else None
    stored = None if resume is None else read_checkpoint(resume)
    config, budget = with_budget(config, resume=stored, width_of=features_of_start, started_s=started_s)
    setup = prepare(config)
    start, differences = read_start(run.ckpt_path, setup.plan) if run.ckpt_path and not resume else (None, [])
    stamps = shard_stamps(setup.shards.cases, setup.cases, previous=True)
    cases, watch = TrainingCases(fold=setup.fold, stamps=stamps), ShardWatch(setup.shards, stamps)
    notes, warnings = take_notes(
        config, setup.plan, cases, processes=setup.runtime.world_size, start=start, resume=stored
    )
    del stored  # The next checkpoint replaces its file, which would take room on the disk until the end.
    warn(setup, [*warnings, *differences, *remarks(config, setup, resume)])
    data = build_data(config, setup)
    module = build_module(config, setup)
    for message in [] if start is None else warm_start(module.network, start):
        print(message)
    ending = (config.optim.patience, data.schedule.every)
    averages = weight_averages(config.optim.ema, setup.runtime.device)
    if not resume and setup.runtime.is_first_process and data.schedule.every > 1:
        print(data.schedule.in_words())
    held = training_folder(run, setup.runtime, resume=resume)
    with held as folder, RunReport(run, to_dict(config), setup.runtime) as report:
        keeping = [notes, *checkpoint_callbacks(folder, *ending)] if run.save_ckpt else early_stopping(*ending)
        figure = run.results / "progress.png"
        epochs = EpochReport(report.logger, figure, setup.plan.labels.target_names, setup.fold.val)
        trainer = build_trainer(
            setup.runtime,
            callbacks=[watch, epochs, *profiler_callbacks(run), *budget, *averages, *keeping],
            optim=config.optim,
            schedule=data.schedule,
            loggers=build_loggers(run.logger, run.results),
            sync_batchnorm=config.hardware.sync_batchnorm,
        )
        with continues_with(lambda: how_to_continue(folder)):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        if run.save_ckpt:
            notes.finish(trainer)
        report.finish(epochs.summary() | budget_summary(budget))


def evaluate(config: Config) -> None:
    """Score a checkpoint on the fold's validation cases."""
    from data_preprocessing.shards import shard_stamps
    from models.trainer import build_trainer, profiler_callbacks
    from training.building import build_data, build_module
    from training.run_setup import prepare_scoring
    from training.shard_watch import ShardWatch
    from utils.files import to_dict
    from utils.reporting import RunReport

    setup, config, stored = prepare_scoring(config)
    if setup.shards.is_test:
        raise UserError(f"{setup.shards.cases} has no labels to score against; use --exec_mode predict")
    watch = ShardWatch(setup.shards, shard_stamps(setup.shards.cases, setup.cases, previous=True))
    data = build_data(config, setup)
    module = build_module(config, setup, stored)
    with RunReport(config.run, to_dict(config), setup.runtime) as report:
        build_trainer(setup.runtime, callbacks=profiler_callbacks(config.run)).validate(module, data, verbose=False)
        assert module.last_validation is not None, "validated"
        if setup.runtime.is_first_process:
            watch.require_same("what was scored counts for nothing")
        report.finish(module.last_validation.summary(setup.plan.labels.target_names))


def predict(config: Config) -> int:
    """Predict the cases of `--data`; with --save_preds write masks, and score them where labels are at hand.

    Returns the exit status: 1 where cases failed.
    """
    from data_preprocessing.case_restorer import CaseRestorer
    from data_preprocessing.shards import shard_stamps
    from inference.shard_masks import MadeMasks, made_by_checkpoint, masks_folder
    from models.certainty import recording
    from models.metrics import DiceAccumulator
    from models.prediction_sink import PredictionSink
    from models.trainer import build_trainer, profiler_callbacks
    from training.building import build_data, build_module
    from training.run_setup import prepare_scoring
    from training.shard_watch import ShardWatch
    from utils.files import to_dict
    from utils.reporting import RunReport

    setup, config, stored = prepare_scoring(config)
    stamps = shard_stamps(setup.shards.cases, setup.cases, previous=True)
    watch = ShardWatch(setup.shards, stamps)
    data = build_data(config, setup, setup.cases)
    module = build_module(config, setup, stored)
    folder = runs.prediction_folder(config.run, setup.plan, tta=config.inference.tta)
    held: contextlib.AbstractContextManager[Path | None] = contextlib.nullcontext()
    if config.inference.save_preds:
        by = made_by_checkpoint(stored, setup.plan, config.model, config.inference, setup.runtime.precision)
        made = MadeMasks(made_by=by, cases={"test" if setup.shards.is_test else "training": stamps})
        held = masks_folder(folder, made, is_first_process=setup.runtime.is_first_process)
    with held as output, RunReport(config.run, to_dict(config), setup.runtime) as report:
        restorer = CaseRestorer(
            folder=setup.shards.cases,
            plan=setup.plan,
            output=output,
            save_probabilities=config.inference.save_probabilities,
        )
        kept = output if config.inference.save_probabilities else None
        sink = PredictionSink(
            recording(restorer.restore, setup.plan, kept, restorer.scan_box), DiceAccumulator(setup.plan.labels)
        )
        trainer = build_trainer(setup.runtime, callbacks=[sink, *profiler_callbacks(config.run)])
        trainer.predict(module, data, return_predictions=False)
        if setup.runtime.is_first_process:
            watch.require_same("some masks may be of other shards than their scans")
        scores = sink.summary(setup.plan.labels.target_names)
        failed = {"failed": sink.num_failed, "reasons": sink.reasons} if sink.num_failed else {}
        written = {"predictions": str(output)} if output else {}
        report.finish({"cases": len(setup.cases), **failed, **scores, **written})
    return EXIT_PARTIAL if sink.num_failed else EXIT_OK


def benchmark(config: Config) -> None:
    """Measure the throughput and latency of training or prediction; nothing is learned or saved."""
    from models.benchmark_timer import BenchmarkTimer
    from models.measuring import measured
    from models.trainer import build_trainer, profiler_callbacks
    from training.building import build_data, build_module
    from training.run_setup import prepare
    from utils.files import to_dict
    from utils.reporting import RunReport
    from utils.throughput import LatencyRecorder

    run = config.run
    setup = prepare(config)
    runs.prepare_folder(run.results, "--results")
    training = run.exec_mode == "train"
    data = build_data(config, setup, () if training else setup.fold.train)
    module = build_module(config, setup)
    batch_size = setup.plan.stage.batch_size if training else config.loader.val_batch_size
    recorder = LatencyRecorder(items_per_batch=batch_size * setup.runtime.world_size, warmup=run.warmup)
    callbacks = [BenchmarkTimer(recorder), *profiler_callbacks(run)]
    with RunReport(run, to_dict(config), setup.runtime) as report:
        if training:
            optim = dataclasses.replace(config.optim, max_epochs=1, min_epochs=1)
            build_trainer(setup.runtime, callbacks=callbacks, optim=optim).fit(module, data)
        else:
            build_trainer(setup.runtime, callbacks=callbacks).predict(module, data, return_predictions=False)
        report.finish(measured(config, setup.plan, setup.runtime, recorder.summary(), batch_size=batch_size))


if __name__ == "__main__":
    sys.exit(run_cli(main))
