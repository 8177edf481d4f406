"""Parts of a prediction: together they are the single run, side by side, killed, torn and run again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from inference.configuration_predictor import ConfigurationPredictor
from inference.part_table import together
from inference.parts import read_record
from tests.scripts.trained import predict, train
from tests.tiny_task import write_scan
from utils.errors import UserError
from utils.locks import folder_lock
from utils.parts import Part, Place, part_folder

PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("anna", "bert", "carl", "dora", "emil", "fred", "gina")
BROKEN = "dora"


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """Seven scans of which one is broken, a model, and what one run makes of them: `masks`, with exit status 1."""
    root = tmp_path_factory.mktemp("single")
    train(root, "2d", folds=(0,))
    rng = np.random.default_rng(3)
    for name in NAMES:
        write_scan(root / f"scans/{name}.nii.gz", rng.uniform(1, 9, (6, 8, 7)).astype(np.float32))
    (root / f"scans/{BROKEN}.nii.gz").write_bytes(b"no scan")
    assert run(root, "masks") == 1
    return root


def words(root: Path, output: str | Path, *more: str) -> list[str]:
    return [
        "--input", str(root / "scans"), "--model", str(root / "04_2d"), "--output", str(root / output), *more,
    ]  # fmt: skip


def run(root: Path, output: str | Path, *more: str) -> int:
    return predict(*words(root, output, *more))


def content(folder: Path) -> dict:
    """What a prediction wrote, without times and without what says how it was run."""
    found: dict = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".gz", ".csv")}
    found |= {path.name: json.loads(path.read_text()) for path in folder.glob("*.doubt.json")}
    record = json.loads((folder / "run.json").read_text())
    outcome = {name: value for name, value in record["outcome"].items() if name != "parts"}
    stamps = json.loads((folder / "masks.json").read_text())["masks"]
    for stamp in stamps.values():
        stamp["mask"].pop("mtime_ns")
    options = {name: value for name, value in record["options"].items() if name != "output"}
    page = (folder / "report.html").read_text()
    # Up to the record of the run, which names its command.
    shown = page[: page.index("<h2>Run</h2>")].replace(str(folder), "") if "<h2>Run</h2>" in page else ""
    # The page's own time.
    return found | {"outcome": outcome, "stamps": stamps, "options": options, "page": re.sub(r"\d\d:\d\d", "", shown)}


def test_parts_of_a_list_are_all_of_it_once():
    for count in (1, 2, 3, 7, 9):
        parts = [Part(index=index, count=count).own(NAMES) for index in range(1, count + 1)]
        assert sorted(name for part in parts for name in part) == sorted(NAMES)
    # Those of one part, split among the processes of one machine.
    pieces = [Part(index=2, count=3).split(number, 2) for number in range(2)]
    assert pieces == [Part(index=3, count=6), Part(index=4, count=6)]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match="--part takes I/N"):
        Part.parse(text)


@pytest.mark.slow
def test_parts_are_together_what_the_single_run_is(single, capsys):
    assert [run(single, "in_parts", "--part", f"{index}/3") for index in (2, 3)] == [0, 0]
    out = single / "in_parts"
    # Nothing says that it is finished before it is.
    assert not (out / "run.json").exists() and not (out / "report.html").exists() and not (out / "doubt.csv").exists()
    assert "part 1/3: not finished" in capsys.readouterr().out
    assert predict("--output", out, "--status") == 1
    shown = capsys.readouterr().out
    assert "1/3   not begun" in shown and "1 not begun, 2 finished" in shown and "--part 1/3" in shown
    # The part with the broken scan.
    assert run(single, out, "--part", "1/3") == 1
    assert content(out) == content(single / "masks")
    assert not [path for path in out.rglob(".*")]
    capsys.readouterr()
    assert predict("--output", out, "--status") == 1
    assert re.search(r"1/3   finished  2 of 3  1 ", capsys.readouterr().out)


@pytest.mark.slow
def test_a_part_again_does_what_is_missing_of_its_own_and_renews_the_record(single, capsys):
    out = single / "again"
    shutil.copytree(single / "masks", out)
    (out / "run.json").unlink()
    for index in (1, 2):
        run(single, out, "--part", f"{index}/2")
    assert content(out)["outcome"]["kept"] == 6
    # Of part 2, and of part 1.
    for name in ("bert", "anna"):
        (out / f"{name}.nii.gz").unlink()
    capsys.readouterr()
    assert run(single, out, "--part", "2/2") == 1
    assert re.search(r"part 2/2 \[./2\] bert: .* s\n", capsys.readouterr().out) and not (out / "anna.nii.gz").exists()
    assert content(out)["outcome"]["written"] == 1


@pytest.mark.slow
def test_scans_that_came_later_and_parts_of_other_weights_are_named(single, tmp_path, capsys):
    shutil.copytree(single / "scans", tmp_path / "scans")
    train(tmp_path, "2d", folds=(0,))
    assert [run(tmp_path, "out", "--part", f"{index}/2") for index in (1, 2)] == [0, 1]
    write_scan(tmp_path / "scans/zoe.nii.gz", np.ones((6, 8, 7), np.float32))
    capsys.readouterr()
    assert run(tmp_path, "out", "--part", "1/2") == 0
    assert "part 2/2: 1 scans came after it had finished" in capsys.readouterr().out
    assert run(tmp_path, "out", "--part", "2/2", "--overlap", "0.25") == 1
    assert "part 1/2: --overlap was 0.5, now it is 0.25" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_side_by_side_lose_nothing(single, monkeypatch):
    """Every part writes while all the others do."""
    together_now, stream = threading.Barrier(3), ConfigurationPredictor.stream

    def meet(self, *rest):
        if not together_now.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                together_now.wait(20)
        return stream(self, *rest)

    monkeypatch.setattr(ConfigurationPredictor, "stream", meet)
    from inference.run import NetworkUse, predict_folder
    from inference.scan_run import ScanJob

    use = NetworkUse(batch_size=None, gpus=0, amp=False, compile=False, tta=None, overlap=None, blend="gaussian")

    def part(index: int) -> None:
        job = ScanJob(
            input=single / "scans", output=single / "beside", model=single / "04_2d", folds=None,
            save_probabilities=True, overwrite=False, memory_gb=None, part=Part(index=index, count=3),
        )  # fmt: skip
        predict_folder(job, use)

    threads = [threading.Thread(target=part, args=(index,)) for index in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whoever ended last wrote the record of all.
    assert json.loads((single / "beside/run.json").read_text())["outcome"]["scans"] == len(NAMES)
    stamps = json.loads((single / "beside/masks.json").read_text())["masks"]
    assert set(stamps) == set(NAMES) - {BROKEN}
    for name in stamps:
        for end in (".nii.gz", ".doubt.json"):
            assert (single / f"beside/{name}{end}").read_bytes() == (single / f"masks/{name}{end}").read_bytes()
        assert (single / f"beside/{name}.npy").is_file()
    assert not list((single / "beside").rglob(".*"))


@pytest.mark.slow
def test_a_killed_part_is_lost_and_leaves_nothing_once_it_is_run_again(single, monkeypatch, capsys):
    out, stream, calls = single / "killed", ConfigurationPredictor.stream, []

    def die(self, *rest):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stream(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(ConfigurationPredictor, "stream", die)
        assert run(single, out, "--part", "2/2") == 130
    (part_folder(out, Part(index=2, count=2)) / ".tmp-0123456789abcdef.npy").write_bytes(b"left")
    capsys.readouterr()
    assert predict("--output", out, "--status") == 1
    assert "2/2   lost       1 of 3" in capsys.readouterr().out
    assert run(single, out, "--part", "2/2") in (0, 1) and run(single, out, "--part", "1/2") in (0, 1)
    assert not list(out.rglob(".*"))
    outcome = content(out)["outcome"]
    assert (outcome["written"], outcome["kept"]) == (5, 1)


@pytest.mark.slow
def test_a_run_over_everything_waits_for_parts_and_they_for_it(tmp_path, capsys):
    place, part = Place(output=tmp_path), Place(output=tmp_path, part=Part(index=1, count=2))
    order = []

    def everything():
        with place.held():
            order.append("everything")

    with part.held():
        (part.scratch / ".tmp-0123456789abcdef.npy").write_bytes(b"in use")
        other = threading.Thread(target=everything)
        other.start()
        other.join(0.3)
        assert other.is_alive() and (part.scratch / ".tmp-0123456789abcdef.npy").is_file()
        order.append("part")
    other.join()
    assert order == ["part", "everything"] and "waiting for parts 1/2" in capsys.readouterr().err

    def piece():
        with part.held():
            order.append("part again")

    with folder_lock(tmp_path):
        other = threading.Thread(target=piece)
        other.start()
        other.join(0.3)
        order.append("over")
    other.join()
    assert order[-2:] == ["over", "part again"]


@pytest.mark.slow
def test_processes_of_torchrun_do_a_part_each_and_end_together(single):
    """The first one has the broken scan and must not take the others with it."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(PROJECT / "scripts/inference.py"), *words(single, "torchrun"), "--gpus", "0",
    ]  # fmt: skip
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, cwd=PROJECT)
    assert done.returncode == 1, done.stderr
    records = [read_record(single / "torchrun", Part(index=index, count=2)) for index in (1, 2)]
    assert [record is not None and record.state for record in records] == ["finished", "finished"]
    assert content(single / "torchrun") == content(single / "masks")


def test_what_came_of_parts_is_told_as_of_one_run():
    assert together([], ("a",)) == {"scans": 1, "written": 0, "kept": 0, "failed": {}, "parts": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--part", "1/2", "--parts", "2"), "give one of the two"),
        (("--parts", "2"), "belong together"),
        (("--slurm", "jobs"), "belong together"),
        (("--slurm", "jobs", "--parts", "2", "--overwrite"), "contradict"),
        (("--cpus", "2"), "add --slurm"),
        (("--status",), "no part has begun"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, message):
    assert predict("--input", tmp_path, "--output", tmp_path, "--model", tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_who_waits_for_the_same_part_goes_on_when_its_folder_was_taken_away(tmp_path):
    place, ended = Place(output=tmp_path, part=Part(index=1, count=2)), []

    def again():
        with place.held():
            ended.append(place.scratch.is_dir())

    with place.held():
        other = threading.Thread(target=again)
        other.start()
        other.join(0.3)
        assert other.is_alive()
    place.discard()
    other.join(20)
    assert ended == [True]
