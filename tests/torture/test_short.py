"""A little of the torture, of what needs no long training; `make torture` does all of it for half an hour."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import PROJECT
from tests.torture import disk, stages
from tests.torture.__main__ import _in_words
from tests.torture.__main__ import main as torture_here
from tests.torture.changes import make_mutant, mutants_of
from tests.torture.commands import MARK, Outcome, begin
from tests.torture.endure import what_grew
from tests.torture.equivalents import EQUIVALENTS, reason
from tests.torture.fuzz import judge
from tests.torture.mutants import CORE
from tests.torture.stages import STAGES, Prepared
from tests.torture.trees import OF_DATES, Expected, Tree, expected_of, read_tree

NOTHING = Expected(tree=Tree(files={}, folders=frozenset()), varying=frozenset(), varying_files=frozenset())


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
def test_what_hangs_says_where(tmp_path):
    """The command itself, and what it started and let write to a log of its own."""
    (tmp_path / "hangs.py").write_text(
        "import subprocess, sys, time\n"
        "def wait_for_ever():\n    time.sleep(60)\n"
        "def main(words):\n"
        "    log = open(words[0], 'w')\n"
        "    subprocess.Popen([sys.executable, '-c', 'import hangs; hangs.wait_for_ever()'], stderr=log)\n"
        "    wait_for_ever()\n"
    )
    code = (
        "from pathlib import Path; from tests.torture import activity; from tests.torture.commands import run; "
        f"activity.IDLE_S = 3.0; outcome = run('hangs', ['{tmp_path}/own.log'], folder=Path('{tmp_path}')); "
        "print(outcome.timed_out, outcome.last_words)"
    )
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("True "), done.stdout + done.stderr
    itself, log = done.stdout.split(f"{tmp_path}/own.log:")
    assert "in wait_for_ever" in itself and "in wait_for_ever" in log


def test_a_process_with_threads_starts_no_commands(tmp_path):
    """A fork has only one of them, and may wait for ever for what another one holds."""
    ending = threading.Event()
    other = threading.Thread(target=ending.wait)
    other.start()
    try:
        with pytest.raises(RuntimeError, match="threads run before a fork"):
            begin("hangs", [], log=tmp_path / "log.txt")
    finally:
        ending.set()
        other.join()


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


@pytest.mark.parametrize("words", [("--targets", "maks"), ("--stages", "trian"), ("--parts", "kill")])
def test_what_does_not_exist_is_no_success(words, capsys):
    with pytest.raises(SystemExit) as caught:
        torture_here(words)
    assert caught.value.code == 2 and f"invalid choice: '{words[1]}'" in capsys.readouterr().err


def test_runs_that_leave_different_files_are_a_fault_and_no_crash(tmp_path, monkeypatch):
    def run_stage(stage, work, log, limits=None) -> Outcome:
        (work / f"left_{time.monotonic_ns()}").touch()
        return Outcome(status=0, text="", seconds=1.0)

    monkeypatch.setattr(stages, "run_stage", run_stage)
    monkeypatch.setattr(stages, "write_data", lambda work: None)
    done, [fault] = stages.prepare(tmp_path / "root", ["preprocess"])
    assert done == [] and fault.startswith("preprocess undisturbed: two runs left different files: ['left_")


def test_each_trial_of_a_disk_keeps_its_faults(tmp_path, monkeypatch):
    """Also those that are alike but for their number."""
    prepared = {each.name: Prepared(stage=each, before=tmp_path, seconds=0.0, expected=NOTHING) for each in STAGES}
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(
        disk, "prepare", lambda _, names, reuse: ([prepared[name] for name in names], ["cannot"] * (not names))
    )
    monkeypatch.setattr(disk, "can_mount", lambda _: False)
    monkeypatch.setattr(disk, "full_disk", lambda *_: [])
    monkeypatch.setattr(disk, "file_changes", lambda *_: [])
    monkeypatch.setattr(disk, "worker_killed", lambda *values: [f"wrong at {values[2]}"])
    result = disk.run_disk(tmp_path, seed=1, seconds=60, names=["preprocess-lowres", "cross-validate"])
    assert len({entry["trial"] for entry in result["faults"]}) == disk.WORKERS_KILLED == len(result["faults"])
    assert result["trials"] == disk.SIZES + disk.WORKERS_KILLED + disk.CHANGES
    assert all(entry["trial"] in _in_words("disk", result | {"seconds": 1}) for entry in result["faults"])
    # Where no stage is left there is nothing to divide by.
    result = disk.run_disk(tmp_path, seed=1, seconds=60, names=["cross-validate"])
    assert (result["trials"], result["faults"], result["undisturbed"]) == (0, [], ["cannot"])


def test_a_worker_is_killed_that_the_command_started_and_no_other(tmp_path, monkeypatch):
    prepared = Prepared(stage=STAGES[1], before=tmp_path / "before_1", seconds=0.0, expected=NOTHING)
    (tmp_path / "before_1").mkdir()
    workers = {
        mark: subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", "spawn_main"], env=os.environ | {MARK: mark}
        )
        for mark in ("another", "own")
    }

    def run_for_a_moment(*_, meanwhile, **__) -> Outcome:
        until = time.monotonic() + 10
        while workers["own"].poll() is None and time.monotonic() < until:
            meanwhile(os.getpid(), "own")
        return Outcome(status=1, text="a worker died", seconds=1.0)

    missed: list[str] = []
    monkeypatch.setattr(disk, "run", run_for_a_moment)
    monkeypatch.setattr(disk, "_goes_on", lambda *_: [])
    try:
        assert disk.worker_killed(tmp_path, prepared, 0.5, missed) == [] and missed == []
        assert workers["own"].wait() == -signal.SIGKILL and workers["another"].poll() is None
        assert disk.worker_killed(tmp_path, prepared, 0.5, missed) == [] and missed == [STAGES[1].name]
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def test_a_file_is_cut_while_the_command_reads_and_whole_before_it_runs_again(tmp_path, monkeypatch):
    prepared = Prepared(stage=STAGES[0], before=tmp_path / "before_0", seconds=0.0, expected=NOTHING)
    scan = tmp_path / "work/raw/Task77/imagesTr/a.nii.gz"
    (prepared.before / "raw/Task77/imagesTr").mkdir(parents=True)
    (prepared.before / "raw/Task77/imagesTr/a.nii.gz").write_bytes(b"12345678")
    seen = []

    def run_and_read(*_, meanwhile, **__) -> Outcome:
        seen.append(scan.read_bytes())
        meanwhile(os.getpid(), "own")
        seen.append(scan.read_bytes())
        return Outcome(status=2, text="error: a.nii.gz is cut", seconds=1.0)

    monkeypatch.setattr(disk, "run", run_and_read)
    monkeypatch.setattr(disk, "_goes_on", lambda *_: seen.append(scan.read_bytes()) or [])
    assert disk.file_changes(tmp_path, prepared, 0.0, 0.5) == []
    assert seen == [b"12345678", b"1234", b"12345678"]


@pytest.mark.parametrize(
    ("memory", "files", "ran_s", "found"),
    [
        (lambda t: 500, lambda t: 9, lambda t: t, []),
        (lambda t: 500 + t, lambda t: 9, lambda t: t, ["MB of memory: 559 in the second quarter"]),
        (lambda t: 500, lambda t: t, lambda t: t, ["open files: 59 in the second quarter"]),
        (lambda t: 500, lambda t: 9, lambda t: t**4, ["seconds of an epoch"]),
    ],
)  # fmt: skip
def test_what_grows_in_a_long_training_is_found(memory, files, ran_s, found):
    looks = [(t, t, memory(t), files(t), 3, ran_s(t)) for t in range(160)]
    assert [words[: len(wanted)] for words, wanted in zip(what_grew(looks), found, strict=True)] == found
    assert what_grew(looks[:10])[0].startswith("too short")


def test_the_largest_new_file_bounds_a_disk(tmp_path):
    for name, size in (("before_3/old", 9), ("before_4/old", 9), ("before_4/a/new", 5), ("before_4/b", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    prepared = Prepared(stage=STAGES[3], before=tmp_path / "before_3", seconds=0.0, expected=NOTHING)
    assert disk._state_after(tmp_path, prepared) == tmp_path / "before_4"
    assert disk._largest_new(tmp_path / "before_3", tmp_path / "before_4") == 5


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


def test_another_wall_time_is_no_fault_though_both_first_runs_had_the_same(tmp_path):
    record = tmp_path / "run.json"
    record.write_text('{"outcome": {"elapsed_s": 0.183, "cases": 2}, "epochs": [{"epoch_s": 0.1}]}')
    expected = expected_of(read_tree(tmp_path), read_tree(tmp_path))
    record.write_text('{"outcome": {"elapsed_s": 0.184, "cases": 2}, "epochs": [{"epoch_s": 0.2}]}')
    assert expected.faults(read_tree(tmp_path)) == []
    record.write_text('{"outcome": {"elapsed_s": 0.183, "cases": 3}, "epochs": [{"epoch_s": 0.1}]}')
    assert "/outcome/cases" in expected.faults(read_tree(tmp_path))[0]


def test_dates_of_files_may_differ_and_logs_say_what_happened(tmp_path):
    stamps = tmp_path / "masks.json"
    stamps.write_text('{"masks": {"a": {"scan": "1", "mask": "2"}}}')
    (tmp_path / "output.log").write_text("epoch 1\n")
    one = read_tree(tmp_path)
    expected = expected_of(one, one)
    stamps.write_text('{"masks": {"a": {"scan": "9", "mask": "2"}}}')
    (tmp_path / "output.log").write_text("interrupted\nepoch 1\n")
    assert expected.faults(read_tree(tmp_path), but=OF_DATES) == [] != expected.faults(read_tree(tmp_path))
    stamps.write_text('{"masks": {"a": {"scan": "9", "mask": "8"}}}')
    (tmp_path / "output.log").unlink()
    found = expected.faults(read_tree(tmp_path), but=OF_DATES)
    assert found[0] == "output.log is missing" and "/masks/a/mask" in found[1] and len(found) == 2


@pytest.mark.parametrize(
    ("status", "text", "fault"),
    [
        (0, "fine", False), (2, "error: no\n", False), (1, "one case failed", False), (2, "error: a\nerror: b\n", True),
        (2, "", True), (1, "", True), (-9, "", True), (-11, "", True),
        (1, "Traceback (most recent call last):\nKeyError", True),
    ],
)  # fmt: skip
def test_how_a_command_may_end(status, text, fault):
    assert bool(judge(Outcome(status=status, text=text, seconds=0.0))) is fault


def test_every_module_of_the_core_can_be_changed():
    for module in CORE:
        source = (PROJECT / module).read_text()
        number = len(mutants_of(source))
        assert number > 5, module
        texts = {make_mutant(module, source, each).text for each in (0, number // 2, number - 1)}
        assert len(texts) == 3 and ast.unparse(ast.parse(source)) not in texts


def test_each_equivalent_change_is_one_of_a_line_that_is_there():
    for module, line, change in EQUIVALENTS:
        lines = (PROJECT / module).read_text().splitlines()
        made = [words for at, words in mutants_of("\n".join(lines)) if lines[at - 1].strip() == line]
        assert any(reason(module, line, words) == EQUIVALENTS[module, line, change] for words in made), (line, made)


def test_statements_are_left_out_wherever_they_stand():
    source = """
def work(things):
    for thing in things:
        in_for()
    else:
        in_for_else()
    while thing:
        in_while()
    if thing:
        in_if()
    elif things:
        in_elif()
    else:
        in_else()
    with thing:
        in_with()
    try:
        in_try()
    except ValueError:
        in_except()
    finally:
        in_finally()
    return (lambda: one())() if thing else two()
"""
    changes = mutants_of(source)
    left_out = {words: number for number, (_, words) in enumerate(changes) if words.endswith(": left out")}
    places = ("for", "for_else", "while", "if", "elif", "else", "with", "try", "except", "finally")
    assert set(left_out) == {f"in_{place}(): left out" for place in places}
    for words, number in left_out.items():
        call = words.removesuffix(": left out")
        assert ast.unparse(ast.parse(source)).replace(call, "pass") == make_mutant("work.py", source, number).text
    assert sum(words.endswith(": the opposite") for _, words in changes) == 4
