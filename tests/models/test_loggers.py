"""--logger: where training curves go besides the DLLogger lines."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import main
from models.loggers import build_loggers
from tests.conftest import PROJECT
from tests.tiny_task import make_task
from utils.args import parse_config
from utils.errors import run_cli

CODE = """
import sys
from pathlib import Path
from models.loggers import build_loggers
[logger] = build_loggers([sys.argv[1]], Path(sys.argv[2]))
logger.log_metrics({"dice": 0.5}, step=1)
logger.log_metrics({"dice": 0.75}, step=2)
logger.finalize("success")
"""


def logged(name: str, folder: Path) -> None:
    """In a process of its own: these packages start threads and services, and warn of each other."""
    words = [sys.executable, "-c", CODE, name, str(folder)]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": str(PROJECT)}
    known = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW"))}
    run = subprocess.run(words, env=known | offline, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_csv_holds_each_step_and_a_continued_training_keeps_the_rows_before(tmp_path):
    for value in (0.5, 0.75):
        [logger] = build_loggers(["csv", "csv"], tmp_path)
        logger.log_metrics({"dice": value}, step=1)
        logger.finalize("success")
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("csv", "csv_2")]
    rows = [next(csv.DictReader(io.StringIO(text))) for text in texts]
    assert [float(row["dice"]) for row in rows] == [0.5, 0.75]


@pytest.mark.slow
def test_mlflow_keeps_a_run_in_the_results_folder(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    logged("mlflow", tmp_path)
    [metric] = tmp_path.glob("mlruns/*/*/metrics/dice")
    assert [line.split()[1:] for line in metric.read_text().splitlines()] == [["0.5", "1"], ["0.75", "2"]]


@pytest.mark.slow
def test_wandb_keeps_an_offline_run_in_the_results_folder(tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    logged("wandb", tmp_path)
    assert [path.stat().st_size > 0 for path in tmp_path.glob("wandb/offline-run-*/*.wandb")] == [True]


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["--logger", "csv", "wandb", "--data", str(tmp_path), "--results", str(tmp_path / "results")]
    assert run_cli(lambda: main.main(words)) == 2
    message = capsys.readouterr().err
    assert "--logger wandb" in message and "pip install -e '.[wandb]'" in message
    assert not (tmp_path / "results").exists()


def test_several_names_and_none_are_parsed():
    assert parse_config(["--logger", "csv", "wandb"]).run.logger == ("csv", "wandb")
    assert parse_config(["--logger"]).run.logger == ()
    assert parse_config([]).run.logger == ("tensorboard",)


@pytest.mark.slow
def test_a_training_writes_the_curves_that_were_asked_for_and_its_own_lines(tmp_path):
    task = make_task(tmp_path, num_cases=4)
    assert task.run("--nfolds", "2") == 0
    words = ["--data", task.results, "--results", tmp_path / "run", "--task", "77", "--fold", "0", "--gpus", "0",
             "--max_epochs", "1", "--batches_per_epoch", "1", "--filters", "4", "8", "--logger", "csv"]  # fmt: skip
    assert main.main([*map(str, words)]) in (0, None)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"csv", "logs.json"} <= names and "tensorboard" not in names
    columns = (tmp_path / "run/csv/metrics.csv").read_text().splitlines()[0]
    assert "train_loss" in columns or "dice" in columns, columns
    lines = (tmp_path / "run/logs.json").read_text().splitlines()
    assert any(json.loads(line[5:])["type"] == "LOG" for line in lines)
