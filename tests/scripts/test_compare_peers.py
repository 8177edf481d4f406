"""scripts/compare_peers.py: choosing, absent peers, results that grow; the workers are pretended."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers import comparing, harness
from benchmarks.peers.stages import COMPARISONS, choose
from scripts import compare_peers
from utils.errors import run_cli

COSTS = {"prepare": 0.0, "ours": 1.0, "nnunet": 3.0, "nnunet_sequential": 2.0}


@pytest.fixture
def pretended(monkeypatch):
    """Workers cost what COSTS says; nnU-Net is installed and nothing else."""
    jobs = []

    def run(command: list[str], environment: dict[str, str]) -> harness.Run:
        job = json.loads(command[2])
        jobs.append(job | {"python": command[0], "threads_allowed": environment["OMP_NUM_THREADS"]})
        cost = COSTS[job.get("side", "prepare")]
        return {"cpu_s": cost, "wall_s": cost, "peak_bytes": 1, "items": 1, "settings": {}}

    monkeypatch.setattr(harness, "run_worker", run)
    monkeypatch.setattr(harness, "installed", lambda python, packages: {"nnunetv2": "2"})
    return jobs


def results(path) -> dict:
    return json.loads(path.read_text())["comparisons"]


def test_names_are_unique_and_a_stage_means_all_its_cases():
    names = [comparison.name for comparison in COMPARISONS]
    assert len(set(names)) == len(names)
    assert [c.name for c in choose(["step"])] == ["step/batch_2", "step/batch_9"]
    assert [c.name for c in choose(["step/batch_9"])] == ["step/batch_9"]


def test_unknown_stage_is_refused_with_the_known_ones(capsys):
    assert run_cli(lambda: compare_peers.main(["--stages", "stairs"])) == 2
    assert "stairs" in (said := capsys.readouterr().err) and "step/batch_2" in said


def test_sides_run_in_turn_with_their_own_python(pretended, tmp_path):
    words = ["--stages", "step/batch_2", "--repetitions", "2", "--threads", "3", "--json", str(tmp_path / "r.json")]
    assert compare_peers.main([*words, "--peers_python", "/peers/python"]) == 0
    sides = [(job.get("side"), job.get("seed")) for job in pretended]
    assert sides == [(None, None), ("ours", 0), ("nnunet", 0), ("nnunet", 1), ("ours", 1)]
    assert {job["python"] for job in pretended if job.get("side") == "nnunet"} == {"/peers/python"}
    assert {job["threads_allowed"] for job in pretended} == {"3"}
    record = results(tmp_path / "r.json")["step/batch_2"]
    assert record["ratios"]["nnunet"]["cpu_s"] == 3 and record["peers"] == {"nnunetv2": "2"}
    assert "| step/batch_2 | nnunet | 3 |" in (tmp_path / "r.md").read_text()


def test_absent_peer_is_named_and_skipped(pretended, tmp_path, capsys):
    assert compare_peers.main(["--stages", "loader_reference/small", "--json", str(tmp_path / "r.json")]) == 0
    assert {job.get("side") for job in pretended} == {None, "ours"}
    absent = results(tmp_path / "r.json")["loader_reference/small"]["absent"]
    assert absent == {"batchgenerators": "batchgeneratorsv2 not installed", "monai": "monai not installed"}
    assert "absent: monai not installed" in capsys.readouterr().out


def test_results_of_other_stages_and_sides_stay(pretended, tmp_path):
    words = ["--repetitions", "1", "--json", str(tmp_path / "r.json")]
    for more in (["--stages", "step/batch_2"], ["--stages", "step/batch_9", "--sides", "ours"]):
        assert compare_peers.main([*words, *more]) == 0
    assert compare_peers.main([*words, "--stages", "step/batch_9", "--sides", "nnunet"]) == 0
    found = results(tmp_path / "r.json")
    assert set(found) == {"step/batch_2", "step/batch_9"}
    assert list(found["step/batch_9"]["runs"]) == ["ours", "nnunet"]
    assert found["step/batch_9"]["ratios"]["nnunet"]["wall_s"] == 3


def test_more_runs_are_added_with_further_seeds(pretended, tmp_path):
    words = ["--stages", "step/batch_2", "--repetitions", "2", "--json", str(tmp_path / "r.json")]
    assert compare_peers.main([*words, "--more"]) == 0
    assert compare_peers.main([*words, "--more", "--sides", "ours"]) == 0
    assert [job["seed"] for job in pretended if job.get("side") == "ours"] == [0, 1, 2, 3]
    runs = results(tmp_path / "r.json")["step/batch_2"]["runs"]
    assert {side: len(each) for side, each in runs.items()} == {"ours": 4, "nnunet": 2}


def test_folders_are_recorded_by_name(pretended, tmp_path):
    task = tmp_path / "somewhere" / "Task04_Hippocampus"
    task.mkdir(parents=True)
    words = ["--stages", "step/batch_2", "--data", str(task), "--json", str(tmp_path / "r.json")]
    assert compare_peers.main(words) == 0
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()
    assert results(tmp_path / "r.json")["step/batch_2"]["job"]["data"] == "Task04_Hippocampus"


def test_quick_run_writes_no_results(pretended, monkeypatch, tmp_path):
    monkeypatch.setattr(comparing, "PROJECT", tmp_path)
    assert compare_peers.main(["--stages", "step", "--quick", "--repetitions", "1"]) == 0
    assert not list(tmp_path.iterdir())


def test_foreign_result_file_is_not_overwritten(pretended, tmp_path, capsys):
    (tmp_path / "r.json").write_text("[]")
    assert run_cli(lambda: compare_peers.main(["--stages", "step", "--json", str(tmp_path / "r.json")])) == 2
    assert (tmp_path / "r.json").read_text() == "[]" and not pretended


def test_masks_of_every_side_are_scored_alike(pretended, monkeypatch, tmp_path):
    scored = []

    def dice(predictions, labels) -> float:
        scored.append((predictions.name, labels.name))
        return 0.5

    pretending = harness.run_worker
    monkeypatch.setattr(
        harness, "run_worker", lambda *words: pretending(*words) | {"predictions": str(tmp_path / "masks")}
    )
    monkeypatch.setattr(comparing, "mean_dice", dice)
    words = ["--stages", "accuracy", "--repetitions", "1", "--json", str(tmp_path / "r.json")]
    assert compare_peers.main(words) == 0
    assert scored == [("masks", "labels")] * 2
    record = results(tmp_path / "r.json")["accuracy/train"]
    assert record["medians"]["ours"]["dice"] == 0.5 and "predictions" not in record["runs"]["ours"][0]


def test_options_reach_the_workers_that_ask_for_them(pretended, tmp_path):
    words = ["--repetitions", "1", "--json", str(tmp_path / "r.json"), "--data", str(tmp_path), "--scans", "7"]
    assert compare_peers.main([*words, "--stages", "predict/tta", "step/batch_9"]) == 0
    predicting = next(job for job in pretended if job["worker"] == "predict")
    assert (predicting["data"], predicting["scans"], predicting["tta"]) == (str(tmp_path), 7, True)
    stepping = next(job for job in pretended if job["worker"] == "step")
    assert stepping["batch_size"] == 9 and "scans" not in stepping
