"""Jobs in a real Slurm of one node: submitted, queued again and continued, refused where nothing could run them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.slurm_node import epochs_done, is_running, is_training, slurm_node, stop, wait_for, wait_until_idle
from tests.tiny_task import make_task
from utils.errors import UserError
from utils.slurm import SlurmJob, write_job_scripts
from utils.slurm_cluster import fit_to_cluster
from utils.slurm_resources import SlurmResources

PROJECT = Path(__file__).resolve().parents[2]
COUNTING = """
import pathlib, signal, sys, time
done = pathlib.Path(sys.argv[1])
count = int(done.read_text()) if done.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("from", count, flush=True)
while count < 30:
    time.sleep(0.1)
    count += 1
    done.write_text(str(count))
print("done", flush=True)
"""
TRAINING = ("--max_epochs", "32", "--batches_per_epoch", "1", "--filters", "2", "4", "4", "--val_batch_size", "2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with slurm_node() as environment:
        yield environment


@pytest.fixture
def asking(cluster, monkeypatch):
    """This process asks the cluster, too."""
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    return cluster


def submit(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([folder / "submit.sh", *words], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["its time is over", "preempted"])
def test_a_job_that_is_stopped_is_queued_again_and_goes_on(cluster, tmp_path, how):
    (tmp_path / "count.py").write_text(COUNTING)
    words = (sys.executable, str(tmp_path / "count.py"), str(tmp_path / "done"))
    job = SlurmJob(name="count", words=words, gpus=0)
    write_job_scripts(tmp_path / "jobs", [job], SlurmResources(cpus=1, time="00:10:00"))
    assert submit(tmp_path / "jobs", cluster).returncode == 0
    done = tmp_path / "done"
    wait_for("counted to 3", lambda: done.exists() and int(done.read_text() or 0) >= 3, cluster, 30)
    stop(cluster, "count", how)
    wait_until_idle(cluster, 120)
    lines = (tmp_path / "jobs/count.out").read_text().splitlines()
    begun = [int(line.split()[1]) for line in lines if line.startswith("from ")]
    assert len(begun) == 2 and begun[0] == 0 < begun[1] < 30
    assert lines[-1] == "done"


def test_what_no_node_has_is_found_when_the_jobs_are_written(asking):
    for resources, message in (
        (SlurmResources(cpus=4096), "no node of this cluster has 4096 CPUs; there are cpu: "),
        (SlurmResources(memory_gb=900), "no node of this cluster has 900 GB"),
        (SlurmResources(partition="large"), "there is no partition large on this cluster; it has cpu, short"),
        (
            SlurmResources(time="30:00:00"),
            "no job may take so long here: cpu at most 1-00:00:00, short at most 2:00:00",
        ),
        (SlurmResources(time="3:00:00", partition="short"), "no job may take so long here: short at most 2:00:00"),
    ):
        with pytest.raises(UserError, match=message):
            fit_to_cluster(resources, gpus=0)
    with pytest.raises(UserError, match="no node of this cluster has a GPU"):
        fit_to_cluster(SlurmResources(), gpus=1)


def test_as_many_cpus_are_asked_for_as_there_are(asking):
    assert 1 <= (fit_to_cluster(SlurmResources(), gpus=0).cpus or 0) <= 8


def test_nothing_is_submitted_where_one_job_could_never_run(cluster, tmp_path):
    jobs = [SlurmJob(name=name, words=("true",), gpus=0) for name in ("one", "two")]
    write_job_scripts(tmp_path, jobs, SlurmResources(cpus=1))
    refused = submit(tmp_path, cluster, "--cpus-per-task=4096")
    assert refused.returncode == 2
    assert (
        "Requested node configuration is not available" in refused.stderr and "nothing was submitted" in refused.stderr
    )
    assert not subprocess.run(["squeue", "-h"], env=cluster, capture_output=True, text=True).stdout


def test_a_fold_that_is_stopped_as_a_job_ends_with_the_weights_and_records_of_one_that_runs_here(asking, tmp_path):
    task = make_task(tmp_path, num_cases=4, shape=(14, 18, 16))
    assert task.run("--nfolds", "2") == 0
    program = [sys.executable, str(PROJECT / "scripts/cross_validate.py"), "--task", "77", "--data", str(task.results)]
    program += ["--gpus", "0", "--folds", "0", "--no_report"]

    def run(results: str, *words: str) -> subprocess.CompletedProcess:
        words = ("--results", str(tmp_path / results), *words, "--", *TRAINING)
        return subprocess.run([*program, *words], env=asking, capture_output=True, text=True, timeout=900)

    written = run("jobs", "--slurm", str(tmp_path / "scripts"), "--memory_gb", "1", "--time", "00:30:00")
    assert written.returncode == 0, written.stderr
    (script,) = (tmp_path / "scripts").glob("*_fold_*.sh")
    assert {"#SBATCH --signal=B:USR1@120", "#SBATCH --requeue"} <= set(script.read_text().splitlines())
    assert submit(tmp_path / "scripts", asking).returncode == 0
    fold = tmp_path / "jobs/77_3d_fullres/fold_0"
    for restarts, how in enumerate(("preempted", "its time is over")):
        wait_for(f"it runs, queued again {restarts} times", partial(is_running, asking, script.stem, restarts), asking)
        # Those of the run before it are there at once, when the script may not yet listen to signals.
        epochs = epochs_done(fold) + 2
        wait_for(f"{epochs} epochs are done", partial(is_training, fold, epochs), asking)
        number = stop(asking, script.stem, how)
    assert run("here").returncode == 0
    wait_until_idle(asking, 600)
    job = subprocess.run(["scontrol", "show", "job", number], env=asking, capture_output=True, text=True).stdout
    assert "Restarts=2" in job and "JobState=COMPLETED" in job
    printed = "\n".join(path.read_text() for path in (tmp_path / "scripts").glob("*.out"))
    here, jobs = (_results(tmp_path / name) for name in ("here", "jobs"))
    assert here == jobs, printed
    here, jobs = (sorted((tmp_path / name).glob("*/fold_*/checkpoints/last.ckpt")) for name in ("here", "jobs"))
    assert len(here) == len(jobs) == 1
    for first, second in zip(here, jobs, strict=True):
        weights, others = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
        assert all(torch.equal(value, others[name]) for name, value in weights.items())


def _results(folder: Path) -> dict[str, bytes | str]:
    """Out-of-fold masks and probabilities as bytes, and the records without their times."""
    paths = [path for path in folder.glob("*/out_of_fold/*") if path.suffix in (".npy", ".gz")]
    found: dict[str, bytes | str] = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    assert len(found) == 4 and all(np.load(path).size for path in paths if path.suffix == ".npy")
    records = [*folder.glob("*_cross_validation.json"), *folder.glob("*/fold_0/done.json")]
    assert len(records) == 2
    return found | {path.name: json.dumps(_without_times(json.loads(path.read_text()))) for path in records}


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not k.endswith("_s") and k not in ("seconds", "made")}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def test_two_nodes_are_refused_where_there_is_one(asking, tmp_path):
    with pytest.raises(UserError, match="--nodes 2: this cluster has 1 such node"):
        fit_to_cluster(SlurmResources(cpus=1), gpus=0, nodes=2)
    write_job_scripts(tmp_path, [SlurmJob(name="two", words=("true",), nodes=2)], SlurmResources(cpus=1))
    refused = submit(tmp_path, asking)
    assert refused.returncode == 2 and "nothing was submitted" in refused.stderr
