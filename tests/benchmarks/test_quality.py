"""Trials of settings: what is typed, which training it is, and the table of what came out, failures included."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality import SETTINGS, Options, Trial, as_markdown, command, parse_trials
from tests.conftest import PROJECT
from utils.args import parse_config
from utils.errors import UserError, run_cli


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
        base | {"name": "base", "seed": 3, "error": "killed", "cpu_s_per_step": 0.001},
        base | {"name": "wrong", "seed": 1, "error": "no such flag"},
    ]
    lines = as_markdown(records, options(tmp_path, base="--amp")).splitlines()
    assert lines[4:] == [
        "| 250 | fast | `--focal` | 1 | 0.8800 |  | 0.50 |",
        "| 250 | base |  | 2 | 0.8500 | 0.8000 to 0.9000 | 0.50 |",
        "",
        "- base, 250 steps, seed 3: killed",
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
    monkeypatch.setattr(quality, "environment", lambda: {"cpu": "here", "commit": "1"})
    assert quality.main(words) == quality.main(words) == 0
    assert len(calls) == 1 and "failed: it broke" in capsys.readouterr().out
    [kept] = json.loads((tmp_path / "r/quality.json").read_text())["trials"]
    assert kept["error"] == "it broke" and kept["environment"] == {"cpu": "here"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--trials", "mine=--ema 0.8@250:1"), "flags"),
        (("--trials", "mine=--ema 0.8@250:2"), "flags"),
        (("--fold", "1", "--table", "other.json"), "fold 0 of 04_3d"),
        (("--prepared", "07_3d", "--table", "other.json"), "fold 0 of 04_3d"),
        (("--base=--amp --focal", "--table", "other.json"), "not of this fold, data and base"),
    ],
)
def test_a_trial_is_not_taken_for_another_one(changed, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 2, "", "no"))
    words = ["--prepared", "04_3d", "--results", "r", "--base=--amp", "--trials", "mine=--ema 0.9@250:1"]
    assert quality.main(words) == quality.main(words) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_cli(lambda: quality.main([*words, *changed])) == 2
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json") if path.name != "other.json"}.items() <= (
        before.items()
    )


def test_a_table_keeps_trials_of_other_folders_and_is_not_mixed_with_other_settings(tmp_path):
    given, trial = options(tmp_path, base="--amp"), {"flags": "--amp", "steps": 250, "cpu_s_per_step": 0.5}
    table = tmp_path / "table.json"
    quality.write_table(table, [trial | {"name": "base", "seed": seed, "dice": 0.5} for seed in (1, 2)], given)
    (given.results / "base_250_2").mkdir(parents=True)
    (given.results / "base_250_2/trial.json").write_text(json.dumps(trial | {"name": "base", "seed": 2, "dice": 0.7}))
    records = quality.known(table, given)
    assert [(each["seed"], each["dice"]) for each in records] == [(1, 0.5), (2, 0.7)]
    with pytest.raises(UserError, match="is of trials with base '--amp', not '--focal'; give --table another file"):
        quality.known(table, options(tmp_path, base="--focal"))


def test_what_a_table_says_of_machines_stays_and_without_news_it_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "environment", lambda: {"cpu": "here"})
    trial = {"flags": "--amp", "steps": 250, "cpu_s": 125.0, "cpu_s_per_step": 0.5, "dice": 0.5, "name": "base"}
    facts = {"base": "--amp", "fold": 0, "prepared": "04_3d", "idle_step_s": 0.25, "environment": {"cpu": "there"}}
    table, given = tmp_path / "table.json", options(tmp_path, base="--amp", table=tmp_path / "table.json")
    table.write_text(json.dumps({"version": 1, **facts, "trials": [trial | {"seed": 2}]}))
    words = ["--prepared", str(given.prepared), "--results", str(given.results), "--base=--amp", "--table", str(table)]
    assert quality.main(words) == 0
    # As it was, byte by byte; only the text beside it was missing.
    before = table.stat(), table.with_suffix(".md").stat()
    assert json.loads(table.read_text())["trials"] == [trial | {"seed": 2}]
    new = trial | {"seed": 1, "environment": {"cpu": "here"}}
    monkeypatch.setattr(quality, "_run", lambda *_: new)
    for folder in ("r", "other"):
        words[3] = str(tmp_path / folder)
        assert quality.main([*words, "--trials", "base@250:1"]) == 0
        content = json.loads(table.read_text())
        assert content == {"version": 1, **facts, "trials": [trial | {"seed": 2}, new]}
    changed = table.stat(), table.with_suffix(".md").stat()
    assert all(one.st_ino != two.st_ino for one, two in zip(before, changed, strict=True))
    assert quality.main(words) == 0 and table.stat() == changed[0] and table.with_suffix(".md").stat() == changed[1]
    assert quality.main([*words, "--idle_step_s", "0.5"]) == 0
    assert json.loads(table.read_text())["idle_step_s"] == 0.5


def test_the_published_table_is_read_and_left_as_it_is(tmp_path):
    table = tmp_path / "quality.json"
    published = PROJECT / "benchmarks/results/quality_hippocampus.json"
    table.write_bytes(published.read_bytes())
    base = json.loads(table.read_text())["base"]
    words = ["--prepared", str(tmp_path / "04_3d"), "--results", str(tmp_path / "r"), f"--base={base}"]
    assert quality.main([*words, "--table", str(table)]) == 0
    assert table.read_bytes() == published.read_bytes()
    assert table.with_suffix(".md").read_bytes() == published.with_suffix(".md").read_bytes()
