"""main.py --budget: measured, chosen, kept and resumed on a task of tiny scans, in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from models import checkpoint as checkpoint_reading
from tests.main_runs import TINY_NETWORK, checkpoint, command, history, outcome, train
from tests.tiny_task import Task, make_folds
from training import budget, budget_exchange
from training.budget import _kept, _stored_options
from training.budget_exchange import decided_in
from training.budget_keeper import BudgetPlan, Course, Pace
from training.budget_rules import Facts, Speed
from training.run_setup import prepare, with_network
from utils.args import parse_config, with_options
from utils.errors import Interrupted, SaidElsewhere, UserError, run_cli
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
    assert "a step takes" in said and "given or the recipe's, not chosen: filters, learning_rate" in said
    found, contents = outcome(tmp_path), checkpoint(tmp_path)
    assert found["budget_s"] == budget_s and found["epochs"] == len(history(tmp_path)) and "best_dice" in found
    options = contents["training"]["options"]
    assert (options["learning_rate"], options["scheduler"]) == (0.003, "wsd")
    assert f"--optimizer {options['optimizer']}" in said
    assert options["batches_per_epoch"] >= 1 and contents["callbacks"]["BudgetKeeper"]["total"] == found["steps"]
    assert contents["global_step"] == found["steps"]
    recorded = json.loads((tmp_path / "run.json").read_text())["options"]
    assert recorded["optim"]["budget"] == f"{budget_s}s" and recorded["optim"]["patience"] == 0
    # Done; what was chosen is what it is compared with.
    assert (
        train(task, tmp_path, *FLAGS, "--budget", f"{budget_s}s", "--learning_rate", "0.003", "--resume_training") == 0
    )
    assert outcome(tmp_path)["steps"] == found["steps"]
    longer = ("--learning_rate", "0.003", "--max_epochs", "999", "--resume_training")
    assert train(task, tmp_path, *FLAGS, "--budget", f"{budget_s}s", *longer) == 2
    assert "now it is 999: a training with --budget is continued with the length" in capsys.readouterr().err
    assert train(task, tmp_path, *FLAGS, "--budget", "9h", "--learning_rate", "0.003", "--resume_training") == 2
    assert f"--budget was {budget_s}s, now it is 9h" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_begins_with_weights_has_their_width(task, budget_s, tmp_path, capsys):
    narrow, whole = ("--depth", "2", "--nfolds", "3", "--no_report"), ("--max_epochs", "1", "--batches_per_epoch", "1")
    assert train(task, tmp_path / "first", *narrow, "--filters", "4", "8", "12", *whole) == 0
    begins = ("--ckpt_path", str(tmp_path / "first/checkpoints"), "--budget", f"{budget_s}s")
    assert train(task, tmp_path / "next", *narrow, *begins) == 0
    assert "features 4 8 12: as --ckpt_path has them" in capsys.readouterr().out
    contents = checkpoint_reading.read_checkpoint(tmp_path / "next/checkpoints/last.ckpt")
    assert contents.model is not None and contents.model.filters == (4, 8, 12)
    resumed = (*narrow, "--budget", f"{budget_s}s", "--resume_training")
    assert train(task, tmp_path / "next", *resumed) == 0


@pytest.mark.slow
def test_the_rate_is_one_of_the_optimiser_that_trains(task, tmp_path):
    found = {}
    for optimizer in ("muon", "adam"):
        words = command(task, tmp_path, "train", *FLAGS, "--optimizer", optimizer, "--budget", "1h")
        found[optimizer] = budget.decide(parse_config(words), time.monotonic()).options["learning_rate"]
    assert found["muon"] == 0.01 and found["adam"] in (0.002, 0.004)


@pytest.mark.slow
def test_weights_of_another_number_of_levels_are_refused_with_what_to_do(task, tmp_path, capsys):
    whole = ("--max_epochs", "1", "--batches_per_epoch", "1", "--nfolds", "3", "--no_report")
    assert train(task, tmp_path / "first", "--depth", "1", "--filters", "4", "8", *whole) == 0
    begins = ("--ckpt_path", str(tmp_path / "first/checkpoints"), "--budget", "60s", "--nfolds", "3")
    assert train(task, tmp_path / "next", "--depth", "2", *begins) == 2
    said = capsys.readouterr().err
    assert "has 2 levels, and here it has 3" in said and "--depth 1" in said
    assert not (tmp_path / "next").exists()


def test_data_and_device_are_looked_at_once_however_many_networks_are_measured(monkeypatch):
    asked, measured = [], []

    def speed(config, setup, size, budget_s) -> Speed:
        measured.append((setup, *size))
        return Speed(step_s=0.01, validation_s=0.1, patches_s=0.1)

    facts = Facts(budget_s=3600, dim=3, optimizer="muon", widths=((32, 64), (16, 32), (8, 16)), batch_size=2, cases=4)
    monkeypatch.setattr(budget, "prepare", lambda config: asked.append(config) or "setup")
    monkeypatch.setattr(budget, "look_at", lambda config, setup, budget_s: facts)
    monkeypatch.setattr(budget, "measure_speed", speed)
    found = budget.decide(parse_config(["--budget", "1h"]), time.monotonic())
    assert found.options["max_epochs"] > 1
    assert measured == [("setup", (8, 16), 2), ("setup", (16, 32), 2), ("setup", (32, 64), 2)] and len(asked) == 1


@pytest.mark.slow
def test_what_was_looked_at_fits_every_network_that_is_measured(task, tmp_path):
    config = parse_config(command(task, tmp_path, "train", *FLAGS))
    for options in ({"filters": (2, 4, 4), "batch_size": 3}, {"filters": (8, 8, 8), "batch_size": 1}):
        wanted = with_options(config, options)
        assert with_network(prepare(config), wanted) == prepare(wanted) != prepare(config)


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "reference"])
def test_a_checkpoint_is_read_and_checked_once_before_it_is_resumed(augment, task, tmp_path, monkeypatch):
    flags = (*FLAGS, "--batches_per_epoch", "1", "--budget", "1h")
    options = {"max_epochs": 1, "augment": augment, "mirror_axes": ("none",)}
    pace = Pace(step_s=1, epoch_s=0, validation_s=0, patches_s=0, end_s=0)
    plan = BudgetPlan(budget_s=3600, total=1, pace=pace, course=Course(per_epoch=1, every=1, only_last=True, limit=1))
    monkeypatch.setattr(budget, "decide", lambda *given: budget.Decision(options=options, plan=plan, lines=()))
    assert train(task, tmp_path, *flags) == 0
    contents = checkpoint_reading.read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert contents.plan.mirror_axes == ()
    # Though a record leaves out what does nothing.
    assert ("mirror_axes" in contents.options) == (augment != "none")
    config = parse_config(command(task, tmp_path, "train", *flags))
    assert _stored_options(contents, config)["mirror_axes"] == ("none",)
    assert "mirror_axes" not in _stored_options(contents, with_options(config, {"recipe": "nnunet"}))
    checked, real = [], checkpoint_reading.check_sums
    monkeypatch.setattr(checkpoint_reading, "check_sums", lambda path: checked.append(path) or real(path))
    assert train(task, tmp_path, *flags, "--resume_training") == 0
    assert checked == [tmp_path / "checkpoints/last.ckpt"]


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
        (("--budget", "0.01s"), "--budget 0.01s is over before anything can be trained"),
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


def refuse() -> dict:
    raise UserError("too short")


def test_others_learn_what_the_first_process_decides_and_why_it_refuses(monkeypatch):
    monkeypatch.setattr(budget_exchange, "HEARD_S", 0.0)
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


def ask(store: dist.Store, said: list[str]) -> threading.Thread:
    def follow() -> None:
        try:
            decided_in(store, None)
        except UserError as error:
            said.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_who_refuses_stays_until_all_have_heard_of_it(monkeypatch):
    monkeypatch.setattr(budget_exchange, "HEARD_S", 0.0)
    store, said, threads = dist.HashStore(), [], []
    late = threading.Timer(0.5, lambda: threads.append(ask(store, said)))
    late.start()
    with pytest.raises(UserError, match="too short"):
        decided_in(store, refuse, others=1)
    # Its end would be that of the store.
    assert store.add("heard", 0) == 1
    late.join(10)
    threads[0].join(10)
    assert said == ["UserError: too short"]
    monkeypatch.setattr(budget_exchange, "FAREWELL_S", 0.1)
    start_s = time.monotonic()
    with pytest.raises(UserError, match="too short"):
        decided_in(dist.HashStore(), refuse, others=1)
    assert 0.1 <= time.monotonic() - start_s < 5


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), Interrupted(signal.SIGTERM), SystemExit(143)])
def test_others_learn_that_the_first_process_was_interrupted_and_not_by_which_signal(ending, monkeypatch):
    monkeypatch.setattr(budget_exchange, "HEARD_S", 0.0)
    store = dist.HashStore()
    with pytest.raises(type(ending)):
        decided_in(store, lambda: (_ for _ in ()).throw(ending), others=1)
    with pytest.raises(UserError, match=r"^--budget: the first process of this run, .* was interrupted$"):
        decided_in(store, None)


@pytest.mark.parametrize("call", ["set", "add"])
def test_a_store_that_is_gone_does_not_hide_why_the_first_process_refuses(call):
    def fail(*_):
        raise dist.DistNetworkError("connection reset")

    store = type("Gone", (dist.HashStore,), {call: fail})()
    with pytest.raises(UserError, match="too short"):
        decided_in(store, refuse, others=1)


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, SaidElsewhere),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, SaidElsewhere),
        ({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, UserError),
        ({"NODE_RANK": "1"}, UserError),
    ],
)
def test_of_processes_on_one_screen_one_says_why(variables, kind, monkeypatch, capsys):
    monkeypatch.setattr(budget_exchange, "HEARD_S", 0.0)
    monkeypatch.setattr(os, "environ", variables)
    store = dist.HashStore()
    with pytest.raises(UserError, match="too short"):
        decided_in(store, refuse)
    assert run_cli(lambda: decided_in(store, None)) == 2
    assert ("error: too short" in capsys.readouterr().err) == (kind is UserError)


@pytest.mark.slow
def test_who_waits_for_a_first_process_that_is_killed_ends_with_a_message():
    """The store goes with the process that has it, as a kill takes it."""
    serve = "import sys, torch.distributed as d; s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)"
    words = [sys.executable, "-c", f"{serve}; print(s.port, flush=True); sys.stdin.read()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        store = dist.TCPStore("127.0.0.1", int(first.stdout.readline()), is_master=False)
        said: list[str] = []
        waiting = ask(store, said)
        time.sleep(0.2)
        first.kill()
        waiting.join(10)
    assert "has ended or cannot be reached" in said[0]


@pytest.mark.slow
def test_a_command_starts_with_its_process_or_now():
    now_s = time.monotonic()
    assert now_s <= command_start_s(own_process=False) <= time.monotonic()
    words = "import time; time.sleep(0.3); from utils.program import command_start_s as s; "
    words += "print(time.monotonic() - s(own_process=True))"
    done = subprocess.run([sys.executable, "-c", words], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert 0.3 <= float(done.stdout) < 120
