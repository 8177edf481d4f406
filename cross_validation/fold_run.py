"""One run of a cross-validation: train a fold with main.py, predict the cases that it has not seen, gather them.

Every step leaves a mark, so that a run continues where it was killed: `options.json` (what was asked for), the
checkpoints, `run.json` (training is over), `prediction/checkpoint.json` (what predicts), `prediction/run.json` (it
has), `done.json`.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cross_validation.cascade_job import CascadeData
from cross_validation.nodes import ONE_NODE, Nodes
from cross_validation.records import FoldRecord, RunRequest, differences, plan_digest, read_record
from cross_validation.scheduler import Command, Steps, claim
from data_preprocessing.planning.adapt import adapt_plan, read_folds
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import shard_stamps
from inference.decision import Checkpoint
from inference.doubt import CALIBRATION_FILE
from inference.fold_folders import DONE, REQUEST, choose_checkpoint, fold_folders
from utils.args import GROUPS, Config, parse_config
from utils.errors import UserError, list_problems
from utils.files import json_ready, read_json, to_dict, write_json
from utils.flag_roles import ELSEWHERE_FLAGS
from utils.json_text import parse_json
from utils.locks import release_file
from utils.runs import LAST_CHECKPOINT, prediction_folder
from utils.schema import FORMAT_VERSION, Plan

MAIN = Path(__file__).resolve().parent.parent / "main.py"
LOG, PREDICTION, PREDICTOR, CONDEMNED = "output.log", "prediction", "checkpoint.json", "overwrite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of main.py that every run of a configuration gets, and what main.py makes of them."""

    passed: tuple[str, ...]
    train: Config
    predict: Config
    several_gpus: bool

    @classmethod
    def of(cls, passed: Sequence[str], *, dim: int, several_gpus: bool) -> RunFlags:
        """Parse them.

        Raises:
            UserError: main.py would refuse them.
        """
        train, predict = (
            parse_config([*passed, "--exec_mode", mode, "--dim", str(dim)]) for mode in ("train", "predict")
        )
        return cls(passed=tuple(passed), train=train, predict=predict, several_gpus=several_gpus)

    @property
    def options(self) -> dict[str, Any]:
        """The options that make a run what it is, JSON-ready."""
        flat = {name: value for group in GROUPS for name, value in to_dict(getattr(self.train, group)).items()}
        return {name: json_ready(value) for name, value in flat.items() if name not in ELSEWHERE_FLAGS}

    def plan(self, shards: Path) -> Plan:
        """The plan that main.py builds the network from; that it takes --mirror_axes is said by the options."""
        config = self.train
        return adapt_plan(
            read_plan(shards), config.model, batch_size=config.loader.batch_size, brats=config.labels.brats
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldRun:
    """A fold of a configuration, ready to be run; its folder may hold any part of an earlier attempt.

    Attributes:
        task: two digits.
        configuration: what is trained.
        fold: number, counted from 0.
        dim: of the network.
        shards: preprocessed data; of a cascade they may be made by another job before this one begins.
        folder: `<results>/<task>_<configuration>/fold_<k>`.
        flags: for main.py.
        checkpoint: of the training, which predicts the cases that it has not seen. Its last one has seen nothing of
            them; the best was chosen by them, and scores too well.
        overwritten: folds of the configuration of which this command removes an earlier attempt.
        cascade: what makes the shards of a cascade's second stage.
        after: names of the jobs that must be finished before.
        nodes: machines that it is trained on.
    """

    task: str
    configuration: str
    fold: int
    dim: int
    shards: Path
    folder: Path
    flags: RunFlags
    checkpoint: Checkpoint = "last"
    overwritten: tuple[int, ...] = ()
    cascade: CascadeData | None = None
    after: tuple[str, ...] = ()
    nodes: Nodes = ONE_NODE

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.configuration} fold {self.fold}"

    @property
    def lock(self) -> Path:
        """Beside the folder, as the folder may be removed."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def log(self) -> Path:
        """Output of main.py."""
        return self.folder / LOG

    def request(self) -> RunRequest:
        """What is asked for, by the shards as they are now.

        Raises:
            UserError: the shards are missing or faulty.
        """
        run = self.flags.train.run
        folds = read_folds(self.shards, nfolds=run.nfolds, splits=run.splits, group_by=run.group_by)
        if self.fold >= len(folds):
            raise UserError(f"{self.shards} has {len(folds)} folds now, there is no fold {self.fold}")
        cases = folds[self.fold]
        return RunRequest(
            version=FORMAT_VERSION, configuration=self.configuration, fold=self.fold, num_folds=len(folds),
            cases=cases, plan=plan_digest(self.flags.plan(self.shards)),
            options=self.flags.options, previous=None if self.cascade is None else self.cascade.masks_digest(),
            data=shard_stamps(self.shards, {*cases.train, *cases.val}),
        )  # fmt: skip

    @property
    def is_ready(self) -> bool:
        """Whether the shards are there and current; those of a cascade may have yet to be made."""
        return self.cascade is None or self.cascade.is_current()

    def conflicts(self) -> list[str]:
        """Why the folder cannot be continued, nor stand beside the folds that are there already."""
        if not (self.folder / REQUEST).is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            return [f"{self.folder} holds something else ({REQUEST} is missing); choose another --results"]
        wanted, found = self.request(), []
        for number, path in fold_folders(self.folder.parent).items():
            condemned = number in self.overwritten or (path / CONDEMNED).is_file()
            if (path / REQUEST).is_file() and not condemned:
                stored = read_json(RunRequest, path / REQUEST)
                each = differences(stored, wanted, same_fold=number == self.fold)
                found += [f"{self.configuration} fold {number}: {difference}" for difference in each]
        return found

    def record(self) -> FoldRecord | None:
        """What came out, if the run is finished and is what is asked for now."""
        return self._record(self.request()) if self.is_ready else None

    def _record(self, request: RunRequest) -> FoldRecord | None:
        record = read_record(self.folder, request.digest)
        return record if record is not None and (record.checkpoint or "best") == self.checkpoint else None

    def steps(self, gpu: str | None) -> Steps:
        """What is left to do.

        Raises:
            UserError: the data or an earlier run are not what they were when this command began.
        """
        start_s = time.perf_counter()
        refuse_conflicts([self])
        self.remove()
        request = self.request()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / REQUEST).is_file() or read_json(RunRequest, self.folder / REQUEST) != request:
            # The same run, perhaps in the words of an earlier version.
            write_json(request, self.folder / REQUEST)
        if self._record(request) is not None:
            return "already finished"
        # What it says of the predictions is over: they are made anew, or gathered again.
        (self.folder / DONE).unlink(missing_ok=True)
        if not (self.folder / "run.json").is_file():
            yield Command(name="training", words=self.nodes.start(self._train_words(gpu)))
            if not (self.folder / "run.json").is_file():
                raise UserError(f"the training was stopped before its end; see {self.log}")
        plan = self.flags.plan(self.shards)
        predictions = self._predictions(plan)
        predictor = self._predictor()
        if not self._is_predicted(predictions, request.cases.val, predictor):
            (self.folder / PREDICTION / "run.json").unlink(missing_ok=True)
            (self.folder / PREDICTION).mkdir(exist_ok=True)
            # Else they would be moved aside, where another checkpoint made them, and nobody would look at them again.
            shutil.rmtree(predictions, ignore_errors=True)
            write_json(predictor, self.folder / PREDICTION / PREDICTOR)
            yield Command(name="prediction", words=self._predict_words(gpu, predictor["file"]))
        yield lambda: self._finish(request, plan, predictions, start_s)
        return "finished"

    def _predictor(self) -> dict[str, Any]:
        """What predicts: the file of a checkpoint, by its name, size and time."""
        path = choose_checkpoint(self.folder / "checkpoints", self.checkpoint, "--checkpoint")
        found = path.stat()
        return {"checkpoint": self.checkpoint, "file": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def remove(self) -> None:
        """Take a condemned attempt away, with its out-of-fold predictions; renamed first, so that no part is left."""
        from cross_validation.out_of_fold import discard

        hidden = f".{self.folder.name}.removed-"
        if (self.folder / CONDEMNED).is_file():
            self.folder.rename(self.folder.with_name(f"{hidden}{secrets.token_hex(4)}"))
        # Those of a killed command, too.
        for removed in self.folder.parent.glob(f"{hidden}*"):
            if (removed / REQUEST).is_file():
                discard(self.folder.parent, read_json(RunRequest, removed / REQUEST).cases.val)
            removed.unlink() if removed.is_symlink() else shutil.rmtree(removed)

    def _train_words(self, gpu: str | None) -> tuple[str, ...]:
        resume = (self.folder / "checkpoints" / LAST_CHECKPOINT).is_file()
        return (*self._words("train", gpu, self.folder), *(("--resume_training",) if resume else ()))

    def _predict_words(self, gpu: str | None, file: str) -> tuple[str, ...]:
        checkpoints = ("--ckpt_path", str(self.folder / "checkpoints" / file))
        words = self._words("predict", gpu, self.folder / PREDICTION)
        return (*words, *checkpoints, "--save_preds", "--save_probabilities")

    def _words(self, mode: str, gpu: str | None, results: Path) -> tuple[str, ...]:
        # Ours come last, and of a flag that is given twice the last one counts.
        values = {"exec_mode": mode, "data": self.shards, "results": results, "task": self.task, "dim": self.dim}
        values |= {"fold": self.fold, "gpus": 0 if gpu is None else 1}
        ours = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        # Each process sees one GPU and would take the same cores for its own.
        alone = ("--affinity", "disabled") if self.flags.several_gpus else ()
        # One page about all folds is written at the end.
        return (sys.executable, str(MAIN), *alone, *self.flags.passed, *ours, "--no_report")

    def _predictions(self, plan: Plan) -> Path:
        config = self.flags.predict
        run = dataclasses.replace(config.run, results=self.folder / PREDICTION, nfolds=None, fold=self.fold)
        return prediction_folder(run, plan, tta=config.inference.tta)

    def _is_predicted(self, predictions: Path, cases: Sequence[str], predictor: dict[str, Any]) -> bool:
        try:
            if parse_json((self.folder / PREDICTION / PREDICTOR).read_text(encoding="utf-8")) != predictor:
                return False
        except (OSError, ValueError):
            return False
        files = [predictions / f"{case}{suffix}" for case in cases for suffix in (".nii.gz", ".npy")]
        return (self.folder / PREDICTION / "run.json").is_file() and all(path.is_file() for path in files)

    def _finish(self, request: RunRequest, plan: Plan, predictions: Path, start_s: float) -> None:
        from cross_validation.out_of_fold import gather, score_cases

        cases = score_cases(self.shards, predictions, request.cases.val, plan)
        gather(self.folder.parent, predictions, request.cases.val, plan)
        trained = parse_json((self.folder / "run.json").read_bytes())["outcome"]
        record = FoldRecord(
            version=FORMAT_VERSION, request=request.digest, configuration=self.configuration, fold=self.fold,
            num_folds=request.num_folds, targets=plan.labels.target_names, epochs=trained["epochs"],
            train_s=trained["train_s"], seconds=time.perf_counter() - start_s, cases=cases, checkpoint=self.checkpoint,
        )  # fmt: skip
        write_json(record, self.folder / DONE)


def condemn(runs: Sequence[FoldRun]) -> None:
    """With --overwrite: from here on nothing of earlier attempts passes for the new ones, whenever this is killed.

    All are condemned before any is removed or run. One at which another process works goes when that has ended.
    """
    overwritten = [run for run in runs if run.fold in run.overwritten and (run.folder / REQUEST).is_file()]
    for run in overwritten:
        (run.folder / CONDEMNED).touch()
        (run.folder / DONE).unlink(missing_ok=True)
        (run.folder.parent / CALIBRATION_FILE).unlink(missing_ok=True)
    for run in overwritten:
        lock = claim(run.lock)
        if lock is not None:
            try:
                run.remove()
            finally:
                release_file(run.lock, lock)


def refuse_conflicts(runs: Sequence[FoldRun]) -> None:
    """Refuse to go on in folders that were begun with other options.

    Raises:
        UserError: there are any; every difference is named.
    """
    problems = [problem for run in runs if run.is_ready for problem in run.conflicts()]
    if problems:
        raise list_problems(
            "earlier runs differ from what is asked for now:", list(dict.fromkeys(problems)),
            advice="Give the same options to continue, another --results, or --overwrite to train these runs anew.",
        )  # fmt: skip
