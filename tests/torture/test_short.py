"""A little of the torture, of what needs no long training; `make torture` does all of it for half an hour."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.torture.commands import Outcome
from tests.torture.fuzz import judge
from tests.torture.mutants import CORE, make_mutant, mutants_of
from tests.torture.trees import expected_of, read_tree


def torture(*words: str) -> subprocess.CompletedProcess:
    """In a process of its own: it forks, which one that has computed with threads must not."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=900
    )


@pytest.mark.slow
def test_commands_that_are_killed_leave_what_others_leave(tmp_path):
    file = tmp_path / "kills.json"
    done = torture(
        "tests.torture", "--parts", "kills", "--stages", "preprocess", "train", "--kills", "12", "--minutes", "5",
        "--work", str(tmp_path), "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kills = json.loads(file.read_text())["kills"]["kills"]
    assert all(each["kills"] and each["in_the_middle"] for each in kills.values()), kills


@pytest.mark.slow
def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "fuzz.json"
    targets = ("training scan", "mask", "dataset.json", "shards' JSON, again", "tar", "zip")
    done = torture(
        "tests.torture", "--parts", "fuzz", "--targets", *targets, "--fuzz", "90", "--minutes", "5",
        "--work", str(tmp_path), "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(file.read_text())["fuzz"]["targets"]
    assert set(counts) == set(targets) and all(each["refused"] for each in counts.values()), counts


@pytest.mark.slow
def test_changes_of_the_code_are_noticed():
    done = torture("tests.torture.mutants", "--modules", "utils/scores.py", "--number", "6")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_differs_is_found(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    (first / "run.json").write_text('{"time": 1, "value": 2}')
    (first / "mask.bin").write_bytes(b"1")
    one = read_tree(first)
    (first / "run.json").write_text('{"time": 3, "value": 2}')
    expected = expected_of(one, read_tree(first))
    assert expected.faults(read_tree(first)) == []
    (first / "run.json").write_text('{"time": 5, "value": 4}')
    (first / "mask.bin").write_bytes(b"2")
    (first / ".tmp-1").touch()
    found = "\n".join(expected.faults(read_tree(first)))
    assert all(words in found for words in ("run.json differs in /value", "mask.bin differs", ".tmp-1 is left over"))
    (first / "mask.bin").unlink()
    assert "mask.bin is missing" in expected.faults(read_tree(first))


@pytest.mark.parametrize(
    ("status", "text", "fault"),
    [
        (0, "fine", False), (2, "error: no\n", False), (1, "one case failed", False), (2, "error: a\nerror: b\n", True),
        (2, "", True), (1, "", True), (-11, "", True), (1, "Traceback (most recent call last):\nKeyError", True),
    ],
)  # fmt: skip
def test_how_a_command_may_end(status, text, fault):
    assert bool(judge(Outcome(status=status, text=text, seconds=0.0))) is fault


def test_every_module_of_the_core_can_be_changed():
    for module in CORE:
        source = (PROJECT / module).read_text()
        number = len(mutants_of(module, source))
        assert number > 5, module
        texts = {make_mutant(module, source, each).text for each in (0, number // 2, number - 1)}
        assert len(texts) == 3 and ast.unparse(ast.parse(source)) not in texts
