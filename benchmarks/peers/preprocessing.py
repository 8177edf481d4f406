"""One side's preprocessing of the same scans on disk.

`mr`: a whole task by the side's own command, start-up, inspection and planning included. `ct`: one large anisotropic
scan onto a given grid, from reading to writing, in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, Stopwatch, serve
from benchmarks.peers.nnunet_files import CONFIGURATION, PREPROCESS, dataset_json, plans_json, read_plan, set_folders

PROJECT = Path(__file__).resolve().parents[2]


def ours(job: Job) -> Outcome:
    """preprocess.py, or the part of it that makes a shard."""
    scratch, threads = Path(job["scratch"]), str(job["threads"])
    if job["kind"] == "mr":
        task = next((Path(job["folder"]) / "data").iterdir())
        number = task.name.partition("_")[0].removeprefix("Task").removeprefix("Dataset")
        words = ["--task", number, "--data", str(task), "--results", str(scratch), "--n_jobs", threads]
        return _command(job, [sys.executable, str(PROJECT / "preprocess.py"), *words])

    import numpy as np

    from data_preprocessing.dataset.case_files import CaseFiles
    from data_preprocessing.runner import write_cases
    from utils.files import read_json
    from utils.schema import Plan
    from utils.workers import Workers

    plan = read_json(Plan, Path(job["folder"]) / "plan.json")
    image, label = _scan(job)
    with Stopwatch() as watch, Workers(1) as workers:
        statuses = write_cases([CaseFiles(case="ct", images=(image,), label=label)], plan, scratch, workers)
    assert statuses[0].status == "written", statuses
    return _outcome(job, watch, np.load(scratch / "ct_y.npy"))


def nnunet(job: Job) -> Outcome:
    """nnU-Net v2's command for planning and preprocessing, or its preprocessor."""
    threads = str(job["threads"])
    if job["kind"] == "mr":
        raw = set_folders(Path(job["scratch"]))["nnUNet_raw"]
        raw.rmdir()
        raw.symlink_to(Path(job["folder"]) / "nnUNet_raw")
        return _command(job, [sys.executable, "-c", PREPROCESS, "-d", "4", "-c", CONFIGURATION, "-np", threads,
                              "-npfp", threads])  # fmt: skip

    set_folders(Path(job["scratch"]))
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plan = read_plan(job["folder"])
    manager = PlansManager(plans_json(plan))
    image, label = map(str, _scan(job))
    with Stopwatch() as watch:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(Path(job["scratch"]) / "ct"), [image], label, manager, manager.get_configuration(CONFIGURATION),
            dataset_json(plan, 1),
        )  # fmt: skip
    return _outcome(job, watch, nnUNetDatasetBlosc2(job["scratch"], ["ct"]).load_case("ct")[1][:])


def reference(job: Job) -> Outcome:
    """The NVIDIA reference's steps with scikit-image."""
    folder, scratch = Path(job["folder"]), Path(job["scratch"])
    if job["kind"] == "mr":
        script = str(Path(__file__).with_name("reference_steps.py"))
        return _command(job, [sys.executable, script, str(folder / "cases.json"), str(scratch), str(job["threads"])])

    import numpy as np

    from benchmarks.peers.reference_steps import prepare

    image, label = map(str, _scan(job))
    with Stopwatch() as watch:
        prepare(image, label, read_plan(folder), str(scratch))
    return _outcome(job, watch, np.load(next(scratch.glob("*_y.npy"))))


def _scan(job: Job) -> tuple[Path, Path]:
    return Path(job["folder"]) / "image.nii.gz", Path(job["folder"]) / "label.nii.gz"


def _command(job: Job, words: list[str]) -> Outcome:
    """Seconds of a command with all its processes."""
    with Stopwatch() as watch:
        subprocess.run(words, check=True, stdout=sys.stderr)
    cases = len(json.loads((Path(job["folder"]) / "cases.json").read_text())["cases"])
    return watch.seconds | {"items": cases, "settings": {"processes": job["threads"], "cases": cases}}


def _outcome(job: Job, watch: Stopwatch, label) -> Outcome:
    import numpy as np

    settings = {"processes": 1, "shape": list(label.shape[1:])}
    # nnU-Net marks what lies outside of the non-zero voxels by -1.
    counts = np.bincount(np.maximum(label, 0).ravel()).tolist()
    return watch.seconds | {"items": 1, "class_voxels": counts, "settings": settings}


if __name__ == "__main__":
    serve({"ours": ours, "nnunet": nnunet, "reference": reference})
