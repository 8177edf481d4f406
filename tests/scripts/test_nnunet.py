"""The command `nnunet`: its table of verbs, its messages, its version."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from scripts import nnunet
from tests.conftest import PROJECT
from utils import program
from utils.errors import UserError

HEAVY = ("torch", "numpy", "tyro", "matplotlib", "pytorch_lightning")


@pytest.mark.slow
@pytest.mark.parametrize("verb", nnunet.VERBS.values(), ids=list(nnunet.VERBS))
def test_every_verb_has_a_main_and_its_own_help(verb, capsys):
    assert callable(importlib.import_module(verb.module).main)
    with pytest.raises(SystemExit) as ended:
        nnunet.main([verb.name, "--help"])
    assert ended.value.code == 0
    assert f"nnunet {verb.name}" in capsys.readouterr().out
    assert program.program_name("main.py") == "main.py"


def test_overview_names_all_verbs_and_loads_nothing_heavy():
    code = (
        "import sys; from scripts.nnunet import main; main(['--help']); "
        f"print('heavy:', sorted(set({HEAVY}) & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert output.endswith("heavy: []\n")
    assert all(re.search(rf"^  {name}  +\S", output, re.MULTILINE) for name in nnunet.VERBS)


def test_a_verb_runs_with_its_own_words_before_the_users(monkeypatch):
    import main

    calls = []
    monkeypatch.setattr(main, "main", lambda words: calls.append(words) or 7)
    assert nnunet.main(["evaluate_model", "--task", "04"]) == 7
    assert calls == [["--exec_mode", "evaluate", "--task", "04"]]


@pytest.mark.parametrize(
    "word, near",
    [("plan_and_preprocess", "preprocess"), ("find-best-configuration", "find-best"), ("Evalute", "evaluate"),
     ("xyzzy", "verbs: download")],
)  # fmt: skip
def test_an_unknown_verb_is_refused_with_near_names(word, near, capsys):
    assert nnunet.main([word]) == 2
    message = capsys.readouterr().err
    assert near in message and word in message


def test_without_a_verb_the_overview_is_shown_and_the_status_is_2(capsys):
    assert nnunet.main([]) == 2
    assert "usage: nnunet VERB" in capsys.readouterr().out


def test_messages_of_a_verb_name_the_command_as_the_user_typed_it(tmp_path):
    with pytest.raises(UserError, match=r"\(see nnunet export-model --help\)"):
        nnunet.main(["export-model", "--model", str(tmp_path), "--output", "model.tar"])


def test_version_is_that_of_the_project_with_the_commit(capsys):
    assert nnunet.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(r"nnunet \d+\.\d+\.\d+( \(commit [0-9a-f]{40}(-dirty)?\))?\n", shown)
    assert program.program_version() in shown


def test_version_without_a_source_tree_is_the_installed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: f"1.2.3 of {name}")
    assert program.program_version(tmp_path) == "1.2.3 of nnunet-lightning"


def test_version_of_nothing_installed_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "DISTRIBUTION", "no-such-distribution")
    assert program.program_version(tmp_path) == "unknown"
