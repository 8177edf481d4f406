"""The data of a cascade's second stage, as a job: made by preprocess.py from the first stage's out-of-fold masks."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from cross_validation.records import OUT_OF_FOLD, digest, finished_records, prediction_files
from cross_validation.scheduler import Command, Steps
from data_preprocessing.shards import list_cases, read_meta
from utils.configurations import CASCADE as SECOND
from utils.configurations import CONFIGURATIONS
from utils.configurations import FIRST_STAGE as FIRST
from utils.errors import UserError, list_problems
from utils.files import read_json, to_dict, write_json
from utils.json_text import parse_json
from utils.schema import Plan

PREPROCESS = Path(__file__).resolve().parent.parent / "preprocess.py"
FULL = "3d_fullres"
MARK = "data.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeData:
    """Makes `<data>/<task>_3d_cascade_fullres`.

    Attributes:
        task: two digits.
        data: folder of the preprocessed data.
        results: folder of `<task>_3d_lowres`, whose masks go in, and of `<task>_3d_cascade_fullres`.
        after: names of the jobs that predict those masks.
    """

    task: str
    data: Path
    results: Path
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{SECOND} data"

    @property
    def folder(self) -> Path:
        """Results of the second stage."""
        return self.results / f"{self.task}_{SECOND}"

    @property
    def lock(self) -> Path:
        """One process makes the data."""
        return self.folder / ".data.lock"

    @property
    def log(self) -> Path:
        """Output of preprocess.py."""
        return self.folder / "preprocess.log"

    @property
    def first(self) -> Path:
        """Results of the first stage."""
        return self.results / f"{self.task}_{FIRST}"

    @property
    def shards(self) -> Path:
        """What is made."""
        return self.data / f"{self.task}_{CONFIGURATIONS[SECOND]}"

    @property
    def full(self) -> Path:
        """What it is made from, besides the masks."""
        return self.data / f"{self.task}_{CONFIGURATIONS[FULL]}"

    def missing_cases(self) -> list[str]:
        """Training cases that the first stage has not predicted yet."""
        predicted = {case.case for record in finished_records(self.first) for case in record.cases}
        return [case for case in list_cases(self.full) if case not in predicted]

    def masks_digest(self) -> str:
        """Digest of the first stage's masks."""
        return digest({case.case: case.mask for record in finished_records(self.first) for case in record.cases})

    def mixed_folds(self) -> list[str]:
        """Which checkpoint predicted each fold of the first stage, where they are not all of one kind."""
        kinds = {record.fold: record.checkpoint or "best" for record in finished_records(self.first)}
        return [f"fold {fold}: {kind}" for fold, kind in kinds.items()] if len(set(kinds.values())) > 1 else []

    def is_current(self) -> bool:
        """Whether the data are there, made from the shards and masks that are there now."""
        if self.missing_cases() or self.mixed_folds() or not (self.shards / "plan.json").is_file():
            return False
        try:
            return parse_json((self.folder / MARK).read_bytes()) == self._inputs()
        except (OSError, ValueError):
            return False

    def words(self) -> tuple[str, ...]:
        """The command that makes the data."""
        places = ("--results", str(self.data), "--cascade", str(self.first / OUT_OF_FOLD))
        return (sys.executable, str(PREPROCESS), "--task", self.task, "--dim", "3", *places)

    def steps(self, gpu: str | None) -> Steps:
        """What is left to do.

        Raises:
            UserError: the first stage has not predicted all cases, or its folds with different checkpoints.
        """
        missing = self.missing_cases()
        if missing:
            problems = [str(prediction_files(self.first, case)[1]) for case in missing]
            raise list_problems(
                f"the cascade needs out-of-fold masks of {FIRST} that are missing:", problems,
                advice=f"Finish all folds of {FIRST}: the same command with --configurations {FIRST}.",
            )  # fmt: skip
        if mixed := self.mixed_folds():
            raise list_problems(
                f"the folds of {FIRST} were predicted by different checkpoints:", mixed,
                advice=f"Predict all of them by one kind: the same command with --configurations {FIRST} and "
                "--checkpoint last (or best).",
            )  # fmt: skip
        if self.is_current():
            return "already finished"
        inputs = self._inputs()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MARK).unlink(missing_ok=True)
        yield Command(name="preprocessing", words=self.words())
        if not (self.shards / "plan.json").is_file():
            raise UserError(f"{self.shards} was not made; see {self.log}")
        write_json(inputs, self.folder / MARK)
        return "finished"

    def _inputs(self) -> dict[str, str]:
        metas = [read_meta(self.full, case) for case in list_cases(self.full)]
        shards = {meta.case: [meta.source_stamp, meta.plan_stamp] for meta in metas}
        plan = to_dict(read_json(Plan, self.full / "plan.json"))
        return {"masks": self.masks_digest(), "shards": digest(shards), "plan": digest(plan)}
