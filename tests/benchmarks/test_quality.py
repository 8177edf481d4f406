"""Trials of settings: what is typed, which training it is, and the table of what came out, failures included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality import SETTINGS, Options, Trial, as_markdown, command, parse_trials
from utils.args import parse_config
from utils.errors import UserError


def options(tmp_path: Path, **changes) -> Options:
    return Options(prepared=tmp_path / "04_3d", results=tmp_path / "r", **changes)


def test_a_trial_is_a_setting_with_steps_and_seeds():
    assert parse_trials("rate4@250:1,2") == [
        Trial(name="rate4", flags="--learning_rate 0.004", steps=250, seed=seed) for seed in (1, 2)
    ]
    assert parse_trials("own=--ema 0.5 --focal@50") == [Trial(name="own", flags="--ema 0.5 --focal", steps=50, seed=1)]


@pytest.mark.parametrize("text", ["base", "base@0", "base@x", "nothing@250", "@250", "base@250:a", "base@30"])
def test_what_is_no_trial_is_refused(text):
    with pytest.raises(UserError, match="--trials"):
        parse_trials(text)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_a_command_line_of_so_many_steps_with_one_validation(tmp_path, name):
    [trial] = parse_trials(f"{name}@250:3")
    config = parse_config(command(trial, options(tmp_path)))
    assert config.optim.max_epochs * config.loader.batches_per_epoch == 250 and config.run.seed == 3
    assert config.optim.skip_first_n_eval == config.optim.max_epochs - 1


def test_the_table_has_means_and_failures(tmp_path):
    base = {"flags": "--amp", "steps": 250, "cpu_s_per_step": 0.5, "cpu_s": 125.0}
    records = [
        base | {"name": "base", "seed": 1, "dice": 0.8},
        base | {"name": "base", "seed": 2, "dice": 0.9},
        base | {"name": "fast", "seed": 1, "dice": 0.88, "flags": "--amp --focal"},
        base | {"name": "wrong", "seed": 1, "error": "no such flag"},
    ]
    lines = as_markdown(records, options(tmp_path, base="--amp")).splitlines()
    assert lines[4:] == [
        "| 250 | fast | `--focal` | 1 | 0.8800 |  | 0.50 |",
        "| 250 | base |  | 2 | 0.8500 | 0.8000 to 0.9000 | 0.50 |",
        "",
        "- wrong, 250 steps, seed 1: no such flag",
    ]


def test_a_failure_is_kept_and_not_tried_again(tmp_path, monkeypatch, capsys):
    calls = []
    real = quality.subprocess.run

    def run(words, **named):
        calls.append(words)
        return real(["sh", "-c", "echo it broke >&2; exit 2"], **named)

    monkeypatch.setattr(quality.subprocess, "run", run)
    words = ["--prepared", str(tmp_path / "04_3d"), "--results", str(tmp_path / "r"), "--trials", "base@250:1"]
    monkeypatch.setattr(quality, "environment", lambda: {})
    assert quality.main(words) == quality.main(words) == 0
    assert len(calls) == 1 and "failed: it broke" in capsys.readouterr().out
    assert json.loads((tmp_path / "r/quality.json").read_text())["trials"][0]["error"] == "it broke"


def test_a_table_keeps_trials_of_other_folders_and_is_not_mixed_with_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "environment", lambda: {})
    given, trial = options(tmp_path, base="--amp"), {"flags": "--amp", "steps": 250, "cpu_s_per_step": 0.5}
    table = tmp_path / "table.json"
    quality.write_table(table, [trial | {"name": "base", "seed": seed, "dice": 0.5} for seed in (1, 2)], given)
    (given.results / "base_250_2").mkdir(parents=True)
    (given.results / "base_250_2/trial.json").write_text(json.dumps(trial | {"name": "base", "seed": 2, "dice": 0.7}))
    records = quality.known(table, given)
    assert [(each["seed"], each["dice"]) for each in records] == [(2, 0.7), (1, 0.5)]
    with pytest.raises(UserError, match="is of trials with base '--amp', not '--focal'; give --table another file"):
        quality.known(table, options(tmp_path, base="--focal"))
