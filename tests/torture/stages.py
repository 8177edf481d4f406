"""The way of a small data set through the program, stage by stage, each with the state that it starts from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.tiny_task import write_scan
from tests.torture.commands import Limits, Outcome, run
from tests.torture.trees import Expected, expected_from, expected_of, put_back, read_tree

TASK = "77"
NETWORK = ("--depth", "2", "--filters", "4", "8", "8", "--batches_per_epoch", "2", "--num_workers", "1")
SHAPE = (44, 40, 48)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A command of the way.

    Attributes:
        name: for people.
        module: whose `main` runs.
        words: its flags; `{work}` stands for the folder of everything.
        kills: how many of a thousand kills it gets.
        chain: kills that follow one another before it may finish.
        resumed: a flag that users are told to add once this file is there.
    """

    name: str
    module: str
    words: tuple[str, ...]
    kills: int
    chain: int = 1
    limit_s: float = 120.0
    resumed: tuple[str, str] | None = None

    def command(self, work: Path) -> list[str]:
        """Its flags for a folder as it is now."""
        further = [] if self.resumed is None or not (work / self.resumed[0]).exists() else [self.resumed[1]]
        return [word.format(work=work) for word in [*self.words, *further]]


def _words(text: str, *more: str) -> tuple[str, ...]:
    return (*text.split(), *more)


PREPROCESS = f"--task {TASK} --dim 3 --data {{work}}/raw --prepared {{work}}/prepared --nfolds 2 --gpu_memory_gb 0.03"
CROSS = f"--task {TASK} --prepared {{work}}/prepared --results {{work}}/results --gpus 0"
STAGES = (
    Stage(name="preprocess", module="preprocess", words=_words(PREPROCESS, "--n_jobs", "1"), kills=120),
    Stage(
        name="preprocess-lowres", module="preprocess", kills=80,
        words=_words(PREPROCESS, "--n_jobs", "2", "--lowres"),
    ),
    Stage(
        name="train", module="main", kills=200, chain=3,
        words=_words(
            f"--exec_mode train --task {TASK} --dim 3 --fold 0 --prepared {{work}}/prepared --results {{work}}/single "
            "--accelerator cpu --max_epochs 4", *NETWORK,
        ),
        resumed=("single/checkpoints/last.ckpt", "--resume_training"),
    ),
    Stage(
        name="cross-validate", module="scripts.cross_validate", kills=120, chain=8, limit_s=900,
        words=_words(
            f"{CROSS} --configurations 3d_lowres 3d_cascade_fullres -- --max_epochs 2", *NETWORK,
        ),
    ),
    Stage(
        name="find-best", module="scripts.find_best_configuration", kills=130,
        words=_words(f"--task {TASK} --prepared {{work}}/prepared --results {{work}}/results --n_jobs 1"),
    ),
    Stage(
        name="export-model", module="scripts.export_model", kills=110,
        words=_words(f"--model {{work}}/results/{TASK}_best --output {{work}}/model.zip --overwrite"),
    ),
    Stage(
        name="predict", module="scripts.inference", kills=140, chain=2,
        words=_words(
            "--input {work}/scans --output {work}/masks --model {work}/model.zip --gpus 0 --save_probabilities "
            "--save_soft organ"
        ),
    ),
    Stage(
        name="report", module="scripts.report", kills=100,
        words=_words("{work}/masks --output {work}/page.html --max_mb 20"),
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage that ran without disturbance: what it started from and what it left."""

    stage: Stage
    before: Path
    seconds: float
    expected: Expected


def write_data(work: Path, cases: int = 4) -> None:
    """Scans with an organ and a lesion, and three that are predicted."""
    rng, listed = np.random.default_rng(7), []
    for number in range(cases + 3):
        image = rng.uniform(1, 60, SHAPE).astype(np.float32)
        label = np.zeros(SHAPE, np.uint8)
        first = 3 + number % 3
        label[first : first + 20, 8:30, 9:31] = 1
        label[first : first + 8, 14:24, 12:22] = 2
        image += 80 * (label == 1) + 160 * (label == 2)
        affine = np.diag([1.0, 1.0 + 0.1 * (number % 2), 1.2, 1.0])
        if number >= cases:
            write_scan(work / f"scans/new{number}.nii.gz", image, affine)
            continue
        write_scan(work / f"raw/Task{TASK}_Torture/imagesTr/case{number}.nii.gz", image, affine)
        write_scan(work / f"raw/Task{TASK}_Torture/labelsTr/case{number}.nii.gz", label, affine)
        listed.append({kind: f"./{kind}sTr/case{number}.nii.gz" for kind in ("image", "label")})
    content = {
        "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ", "2": "lesion"}, "training": listed,
        "test": [],
    }  # fmt: skip
    (work / f"raw/Task{TASK}_Torture/dataset.json").write_text(json.dumps(content))


def run_stage(stage: Stage, work: Path, log: Path, limits: Limits | None = None) -> Outcome:
    """Run a stage without disturbance."""
    return run(stage.module, stage.command(work), folder=log, limits=limits or Limits(seconds=stage.limit_s))


def prepare(
    root: Path, names: Sequence[str] | None = None, *, once: bool = False, reuse: bool = False
) -> tuple[list[Prepared], list[str]]:  # fmt: skip
    """Write the data, and run all stages up to the last one that is wanted.

    Args:
        root: folder for all this; the folder `work` in it is what the last stage leaves.
        names: of the stages that are wanted (None: all), which run twice from the same state.
        once: no stage is run twice; only the folder `work` is wanted, and no stage is returned.
        reuse: what an earlier call has left in `root` holds still, as the program is the same.

    Returns:
        the wanted stages, and faults that came without any disturbance.
    """
    work, done = root / "work", []
    if not (reuse and (root / "before_0").exists()):
        shutil.rmtree(root, ignore_errors=True)
        work.mkdir(parents=True)
        write_data(work)
        put_back(work, root / "before_0")
    wanted = [stage for stage in STAGES if names is None or stage.name in names]
    number = -1
    for number, stage in enumerate(STAGES[: STAGES.index(wanted[-1]) + 1] if wanted else ()):
        twice = stage in wanted and not once
        try:
            prepared = _earlier(root, number, stage, twice) or _run_undisturbed(root, number, stage, twice)
        except ValueError as error:
            return done, [f"{stage.name} undisturbed: {error}"]
        if twice:
            done.append(prepared)
    put_back(root / f"before_{number + 1}", work)
    return done, []


def _earlier(root: Path, number: int, stage: Stage, twice: bool) -> Prepared | None:
    """A stage that ran in an earlier call, and as often."""
    record = root / f"stage_{number}.json"
    if not record.exists() or not (root / f"before_{number + 1}").exists():
        return None
    content = json.loads(record.read_text())
    expected = expected_from(content["expected"])
    if twice and expected.once:
        return None
    return Prepared(stage=stage, before=root / f"before_{number}", seconds=content["seconds"], expected=expected)


def _run_undisturbed(root: Path, number: int, stage: Stage, twice: bool) -> Prepared:
    """Run a stage, keep what it leaves, and write down what of it is the same each time.

    Raises:
        ValueError: it fails, or leaves other files each time.
    """
    work, before, outcomes, trees = root / "work", root / f"before_{number}", [], []
    for _ in range(2 if twice else 1):
        put_back(before, work)
        outcomes.append(run_stage(stage, work, root))
        trees.append(read_tree(work))
    for each in outcomes:
        if each.status != 0 or each.timed_out or each.orphans:
            raise ValueError(f"ends with {each.status}: {each.last_words}")
    prepared = Prepared(
        stage=stage, before=before, seconds=min(each.seconds for each in outcomes),
        expected=dataclasses.replace(expected_of(trees[0], trees[-1]), once=not twice),
    )  # fmt: skip
    put_back(work, root / f"before_{number + 1}")
    record = {"seconds": prepared.seconds, "expected": prepared.expected.to_json()}
    (root / f"stage_{number}.json").write_text(json.dumps(record))
    return prepared
