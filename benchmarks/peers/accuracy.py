"""One side's training for a given wall time on fold 0, and its masks of that fold's validation scans, without TTA.

The learning rate of both sides has come down when the time is up: ours finds out first how many epochs fit, which is
not counted; nnU-Net has a fixed number of epochs, each of as many steps as the time that is left allows. Ours keeps
the best model of its validations, nnU-Net its last one, as each does by default.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, Stopwatch, serve
from benchmarks.peers.nnunet_files import CONFIGURATION, DATASET, PLANS, PREPROCESS, set_folders

PROJECT = Path(__file__).resolve().parents[2]
SHARE = 0.98
"""Part of the time that is planned for; the rest is for a machine that is slower than it was a minute ago."""
NNUNET_EPOCHS = 25


def ours(job: Job) -> Outcome:
    """main.py with the flags of the comparison, then scripts/inference.py."""
    scratch, precision = Path(job["scratch"]), ["--precision", job["precision"]]
    # The others write no page about what they did.
    flags = [*shlex.split(job["flags"]), *precision, *shlex.split(job["our_flags"]), "--no_report"]

    def train(name: str, epochs: int, unvalidated: int) -> Stopwatch:
        words = ["--data", str(Path(job["folder"]) / "shards"), "--results", str(scratch / name), "--gpus", "0"]
        words += ["--seed", str(job["seed"]), "--fold", "0", *flags]
        words += ["--max_epochs", str(epochs), "--skip_first_n_eval", str(unvalidated)]
        with Stopwatch() as watch:
            subprocess.run([sys.executable, str(PROJECT / "main.py"), *words], check=True, stdout=sys.stderr)
        return watch

    epochs = job["max_epochs"]
    if not epochs:
        once, thrice, scored = (train(f"trial_{n}{v}", n, v).seconds["wall_s"] for n, v in ((1, 1), (3, 3), (1, 0)))
        epoch_s, validation_s = max((thrice - once) / 2, 1e-3), max(scored - once, 0.0)
        epochs = planned_epochs(job["seconds"], start_s=once - epoch_s, epoch_s=epoch_s, validation_s=validation_s)
    watch = train("run", epochs, unvalidated(epochs))
    words = ["--input", str(Path(job["folder"]) / "scans"), "--output", str(scratch / "masks"), "--gpus", "0"]
    words += ["--model", str(scratch / "run"), "--no_report"]
    subprocess.run([sys.executable, str(PROJECT / "scripts/inference.py"), *words], check=True, stdout=sys.stderr)
    return _outcome(job, watch, epochs=epochs, flags=shlex.join(flags))


def unvalidated(epochs: int) -> int:
    """Epochs at the beginning that are not validated: the model only gets good enough in the last tenth."""
    return min(epochs * 9 // 10, epochs - 1)


def planned_epochs(seconds: float, *, start_s: float, epoch_s: float, validation_s: float) -> int:
    """The most epochs that fit, with those validations that they come with; at least one."""
    epochs = 1
    while True:
        more = epochs + 1
        if start_s + more * epoch_s + (more - unvalidated(more)) * validation_s > SHARE * seconds:
            return epochs
        epochs = more


def nnunet(job: Job) -> Outcome:
    """nnU-Net v2's trainer with its own plan and augmentation, at the given batch size."""
    prepared = set_folders(Path(job["folder"]), Path(job["scratch"]))["nnUNet_preprocessed"] / DATASET
    if not (prepared / f"{PLANS}_{CONFIGURATION}").is_dir():
        words = ["-d", "4", "-c", CONFIGURATION, "-np", "2", "-npfp", "2"]
        subprocess.run([sys.executable, "-c", PREPROCESS, *words], check=True, stdout=sys.stderr)
    # Two cores: processes for augmentation would only take them from the network.
    os.environ.update({"nnUNet_n_proc_DA": "0"})

    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    trial = _trainer(job, prepared)
    trial.on_train_start()
    step_s = _step_seconds(trial)
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    with Stopwatch() as watch:
        # One thread without helpers: its CPU seconds are the wall time that it has where nothing else runs.
        clock = time.process_time if job["threads"] == 1 else time.perf_counter
        trainer = _trainer(job, prepared, pace=Pace(SHARE * job["seconds"], NNUNET_EPOCHS, step_s, clock))
        trainer.num_epochs, trainer.num_val_iterations_per_epoch = NNUNET_EPOCHS, 1
        # Drawing curves and keeping a best checkpoint would cost it time and change nothing in the result.
        trainer.logger.plot_progress_png = lambda folder: None
        trainer.disable_checkpointing = True
        trainer.run_training()
    _predict(trainer, Path(job["folder"]) / "scans", Path(job["scratch"]) / "masks")
    return _outcome(job, watch, epochs=NNUNET_EPOCHS, steps=trainer.pace.steps, batch_size=trainer.batch_size)


class Pace:
    """How many steps each epoch gets, so that all end in time though the machine is faster or slower than it was."""

    def __init__(self, seconds: float, epochs: int, step_s: float, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._step_s, self._start = clock, step_s, clock()
        self._end, self._epochs = self._start + seconds, epochs
        self.steps = self._asked = 0

    def next_epoch(self) -> int:
        """Steps of the epoch that begins now, by what one took in the last epoch with its validation."""
        now = self._clock()
        if self._asked:
            self._step_s = (now - self._start) / self._asked
        self._start, self._asked = now, max(int((self._end - now) / max(self._epochs, 1) / self._step_s), 1)
        self._epochs -= 1
        self.steps += self._asked
        return self._asked


def _trainer(job: Job, prepared: Path, pace: Pace | None = None):
    import json

    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):
        """Makes epochs as long as the clock asks for, in our precision."""

        def on_epoch_start(self) -> None:
            """Ask how many steps this epoch has."""
            super().on_epoch_start()
            self.num_iterations_per_epoch = self.pace.next_epoch()

        def train_step(self, batch: dict) -> dict:
            """A step in mixed precision on a CPU, which the trainer itself knows on GPUs only."""
            with torch.autocast("cpu", torch.bfloat16) if job["precision"] == "bf16" else nullcontext():
                return super().train_step(batch)

    plans = json.loads((prepared / f"{PLANS}.json").read_text()) | {"continue_training": False}
    plans["configurations"][CONFIGURATION]["batch_size"] = job["batch_size"]
    description = json.loads((prepared / "dataset.json").read_text())
    trainer = Trainer(plans, CONFIGURATION, 0, description, device=torch.device("cpu"))
    trainer.pace = pace
    return trainer


def _step_seconds(trainer) -> float:
    """Seconds of a training step with its batch."""
    trainer.network.train()
    for count in (2, 5):
        start = time.perf_counter()
        for _ in range(count):
            trainer.train_step(next(trainer.dataloader_train))
    return (time.perf_counter() - start) / count


def _predict(trainer, scans: Path, output: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, "nnUNetTrainer", None,
    )  # fmt: skip
    output.mkdir()
    files = sorted(scans.glob("*_0000.nii.gz"))
    names = [str(output / file.name.removesuffix("_0000.nii.gz")) for file in files]
    predictor.predict_from_files_sequential([[str(file)] for file in files], names)


def _outcome(job: Job, watch: Stopwatch, **settings) -> Outcome:
    names = ("seconds", "precision", "threads", "seed")
    return watch.seconds | {
        "items": 1,
        "predictions": str(Path(job["scratch"]) / "masks"),
        "settings": {name: job[name] for name in names} | settings,
    }


if __name__ == "__main__":
    serve({"ours": ours, "nnunet": nnunet})
