"""main.py --budget: measured, chosen, kept and resumed on a task of tiny scans, in one process and in two."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.main_runs import TINY_NETWORK, checkpoint, command, history, outcome, train
from tests.tiny_task import Task, make_folds
from training.budget import _kept
from training.budget_exchange import decided_in
from utils.args import parse_config
from utils.errors import UserError
from utils.program import command_start_s

PROJECT = Path(__file__).resolve().parents[2]

FLAGS = (*TINY_NETWORK, "--nfolds", "3", "--no_report")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return make_folds(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def budget_s(task, tmp_path_factory) -> int:
    """A time that is short and yet long enough, however slow the machine is at the moment."""
    start_s = time.monotonic()
    short = ("--max_epochs", "2", "--min_epochs", "1", "--validate_every", "2")
    assert train(task, tmp_path_factory.mktemp("short"), *FLAGS, *short) == 0
    return max(8, round(3 * (time.monotonic() - start_s)))


@pytest.mark.slow
def test_a_training_ends_in_its_time_says_what_it_chose_and_records_it(task, budget_s, tmp_path, capsys):
    start_s = time.monotonic()
    assert train(task, tmp_path, *FLAGS, "--budget", f"{budget_s}s", "--learning_rate", "0.003") == 0
    assert 0.5 * budget_s < time.monotonic() - start_s < 1.5 * budget_s
    said = capsys.readouterr().out
    assert "a step takes" in said and "given, not chosen: filters, learning_rate" in said
    found, contents = outcome(tmp_path), checkpoint(tmp_path)
    assert found["budget_s"] == budget_s and found["epochs"] == len(history(tmp_path)) and "best_dice" in found
    options = contents["training"]["options"]
    assert (options["learning_rate"], options["scheduler"], options["schedule_by"]) == (0.003, "cosine", "step")
    assert options["batches_per_epoch"] >= 1 and contents["callbacks"]["BudgetKeeper"]["total"] == found["steps"]
    assert contents["global_step"] == found["steps"]
    recorded = json.loads((tmp_path / "run.json").read_text())["options"]
    assert recorded["optim"]["budget"] == f"{budget_s}s" and recorded["optim"]["patience"] == 0
    # Done; what was chosen is what it is compared with.
    assert (
        train(task, tmp_path, *FLAGS, "--budget", f"{budget_s}s", "--learning_rate", "0.003", "--resume_training") == 0
    )
    assert outcome(tmp_path)["steps"] == found["steps"]
    assert train(task, tmp_path, *FLAGS, "--budget", "9h", "--learning_rate", "0.003", "--resume_training") == 2
    assert f"--budget was {budget_s}s, now it is 9h" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_by_what_the_first_one_decides(task, tmp_path):
    words = command(task, tmp_path, "train", *FLAGS, "--budget", "1h", "--processes", "2")
    program = Path(__file__).with_name("decided_run.py")
    done = subprocess.run([sys.executable, str(program), *words], timeout=400, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("decided once") == 1
    contents = checkpoint(tmp_path)
    assert contents["training"]["processes"] == 2 and contents["training"]["options"]["learning_rate"] == 0.005
    assert contents["global_step"] == outcome(tmp_path)["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--budget", "0.01s"), "is too short to show each of 4 cases once"),
        (("--budget", "1h", "--max_epochs", "3", "--batches_per_epoch", "5"), "leave one of the three out"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_written(task, tmp_path, capsys, flags, says):
    assert train(task, tmp_path / "r", *FLAGS, *flags) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_training_without_a_budget_is_not_continued_with_one(task, tmp_path, capsys):
    assert train(task, tmp_path, *FLAGS, "--max_epochs", "1", "--batches_per_epoch", "1") == 0
    assert train(task, tmp_path, *FLAGS, "--budget", "1h", "--resume_training") == 2
    assert "was not begun with --budget" in capsys.readouterr().err


def test_others_learn_what_the_first_process_decides_and_why_it_refuses():
    def refuse() -> dict:
        raise UserError("too short")

    for decide in (lambda: {"options": {"filters": [4, 8]}}, refuse):
        store, learned = dist.HashStore(), []

        def follow(store=store, learned=learned) -> None:
            try:
                learned.append(decided_in(store, None))
            except UserError as error:
                learned.append(str(error))

        other = threading.Thread(target=follow)
        other.start()
        try:
            expected = decided_in(store, decide)
        except UserError as error:
            expected = str(error)
        other.join(timeout=30)
        assert learned == [expected]


def test_what_a_recipe_sets_is_kept_and_its_length_is_not():
    kept = _kept(parse_config(["--recipe", "nnunet", "--budget", "1h", "--filters", "8", "16"]))
    assert {"scheduler", "augment", "learning_rate", "filters"} <= kept
    assert not kept & {"max_epochs", "batches_per_epoch", "validate_every"}
    assert "validate_every" in _kept(parse_config(["--scheduler", "plateau"]))
    assert "learning_rate" in _kept(parse_config(["--optimizer", "sgd"]))


@pytest.mark.slow
def test_a_command_starts_with_its_process_or_now():
    now_s = time.monotonic()
    assert now_s <= command_start_s(own_process=False) <= time.monotonic()
    words = "import time; time.sleep(0.3); from utils.program import command_start_s as s; "
    words += "print(time.monotonic() - s(own_process=True))"
    done = subprocess.run([sys.executable, "-c", words], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert 0.3 <= float(done.stdout) < 120
