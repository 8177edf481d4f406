"""Job arrays in a real Slurm of one node: scans predicted in parts, one of them lost and run again alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.scripts.trained import masks, predict, train
from tests.slurm_node import slurm_node, wait_until_idle
from tests.tiny_task import Task, files_of, make_task, write_scan

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with slurm_node() as environment:
        yield environment


def call(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, timeout=120)


def test_an_array_of_parts_is_the_single_run_and_a_lost_part_is_submitted_alone(cluster, tmp_path):
    train(tmp_path, "2d", folds=(0,))
    for index in range(4):
        image = np.random.default_rng(index).uniform(1, 9, (6, 8, 7)).astype(np.float32)
        write_scan(tmp_path / f"scans/scan{index}.nii.gz", image)
    own = ["--input", tmp_path / "scans", "--model", tmp_path / "04_2d", "--gpus", "0", "--no_report"]
    assert predict(*own, "--output", tmp_path / "single") == 0
    command = [
        sys.executable, PROJECT / "scripts/inference.py", *own, "--output", tmp_path / "masks", "--slurm",
        tmp_path / "jobs", "--parts", "2", "--cpus", "1", "--memory_gb", "1", "--time", "10:00",
    ]  # fmt: skip
    written = call(cluster, *command)
    assert "parts 1-2 of 2" in written.stdout, written.stderr
    assert call(cluster, tmp_path / "jobs/submit.sh").returncode == 0
    wait_until_idle(cluster, 300)
    said = "".join(path.read_text() for path in (tmp_path / "jobs").glob("predict_*.out"))
    single, parts = masks(tmp_path / "single"), masks(tmp_path / "masks")
    assert list(single) == list(parts), said
    assert all(np.array_equal(single[name], parts[name]) for name in single)
    outcomes = [json.loads((tmp_path / name / "run.json").read_text())["outcome"] for name in ("single", "masks")]
    assert outcomes[1] == {**outcomes[0], "parts": 2}
    assert "nothing to submit" in call(cluster, *command).stdout
    # The node of part 2 dies with what it had done.
    (tmp_path / "masks/scan1.nii.gz").unlink()
    (tmp_path / "masks/parts/2_of_2/part.json").unlink()
    assert "parts 2 of 2" in call(cluster, *command).stdout
    assert call(cluster, tmp_path / "jobs/submit.sh").returncode == 0
    wait_until_idle(cluster, 300)
    again = json.loads((tmp_path / "masks/run.json").read_text())["outcome"]
    assert (tmp_path / "masks/scan1.nii.gz").is_file() and again["scans"] == 4 and not again["failed"]
    assert "part 2/2 is done, and so are all" in (tmp_path / "jobs/predict_2.out").read_text()


def test_a_data_set_is_prepared_by_an_array_as_by_one_run(cluster, tmp_path):
    task = make_task(tmp_path, num_cases=4)
    single = Task(task.data, tmp_path / "single")
    assert single.run() == 0
    command = [
        sys.executable, PROJECT / "preprocess.py", "--task", "77", "--data", task.data, "--results", task.results,
        "--slurm", tmp_path / "jobs", "--parts", "2", "--cpus", "1",
    ]  # fmt: skip
    assert call(cluster, *command).returncode == 0
    assert call(cluster, tmp_path / "jobs/submit.sh").returncode == 0
    wait_until_idle(cluster, 300)
    said = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*.out"))
    assert files_of(task.results / "77_3d") == files_of(single.results / "77_3d"), said
    assert "nothing to submit" in call(cluster, *command).stdout
