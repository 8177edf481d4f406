from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils import memory_limits
from utils.errors import UserError
from utils.files import write_atomically
from utils.memory_limits import limit_memory
from utils.workers import THREAD_VARIABLES, Workers, progress

PROJECT = Path(__file__).resolve().parents[2]
CASES = tuple(f"case{i}" for i in range(11))


def name_of(case: str) -> str:
    return f"name of {case}"


def threads_of(case: str) -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in THREAD_VARIABLES)


def die(case: str) -> str:
    os._exit(9)


def stay(folder: Path) -> None:
    """Note this process, then work for longer than any test."""
    note = folder / f".tmp-{os.getpid()}"
    note.touch()
    note.rename(folder / str(os.getpid()))
    time.sleep(600)


def is_running(process: int) -> bool:
    """A process that has ended may stay as a zombie where nobody asks for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, timeout_s: float = 60) -> bool:
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def end_at_a_file(path: Path) -> None:
    write_atomically(path, lambda file: os.kill(os.getpid(), signal.SIGTERM))


def pid(case: object) -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_come_in_the_order_of_the_cases(n_jobs):
    with Workers(n_jobs) as workers:
        assert workers.map(name_of, CASES, title="test") == [f"name of {case}" for case in CASES]


def test_one_job_stays_in_this_process():
    with Workers(1) as workers:
        assert set(workers.map(pid, CASES, title="test")) == {os.getpid()}


@pytest.mark.slow
def test_workers_compute_with_one_thread_and_leave_the_environment_as_it_was():
    before = dict(os.environ)
    with Workers(2) as workers:
        assert set(workers.map(threads_of, CASES, title="test")) == {("1", "1", "1")}
    assert dict(os.environ) == before


@pytest.mark.slow
def test_killed_worker_is_a_user_error():
    with Workers(2) as workers, pytest.raises(UserError, match="fewer --n_jobs"):
        workers.map(die, CASES, title="test")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks processes up in /proc")
@pytest.mark.parametrize("num_cases", [1, 2], ids=["one busy, one idle", "both busy"])
def test_workers_end_when_their_parent_is_killed(tmp_path, num_cases):
    code = (
        "import sys; from pathlib import Path\n"
        "from utils.workers import Workers\n"
        "from tests.utils.test_workers import pid, stay\n"
        "folder = Path(sys.argv[1])\n"
        "with Workers(2) as workers:\n"
        # Both have started before the long work begins.
        "    workers.map(pid, range(2), title='start')\n"
        "    Path(folder / 'children').write_text(' '.join(map(str, workers._pool._processes)))\n"
        "    workers.map(stay, [folder] * int(sys.argv[2]), title='stay')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(num_cases)]
    parent = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    children: list[int] = []
    try:
        assert wait_until(lambda: sum(path.name.isdecimal() for path in tmp_path.iterdir()) == num_cases)
        children = [int(name) for name in (tmp_path / "children").read_text().split()]
        assert len(children) == 2 and all(map(is_running, children))
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not any(map(is_running, children)), timeout_s=20)
    finally:
        parent.kill()
        parent.wait()
        for child in filter(is_running, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_no_cases_give_no_results():
    with Workers(1) as workers:
        assert workers.map(name_of, (), title="test") == []


def test_progress_prints_a_line_for_each_tenth(capsys):
    with progress("inspect", 200) as advance:
        for _ in range(200):
            advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"inspect: {n} of 200" for n in range(20, 201, 20)]


SIZES = {case: 10**9 * (1 + number % 3) for number, case in enumerate(CASES)}


def size_of(case: str) -> int:
    return SIZES[case]


def mark(case: str, folder: Path) -> list[str]:
    """Names of the cases that are worked on at this time; all processes write theirs into one folder."""
    mine = folder / case
    mine.touch()
    time.sleep(0.02)
    together = sorted(path.name for path in folder.iterdir())
    mine.unlink()
    return together


@pytest.mark.slow
@pytest.mark.parametrize("free_gb", [1, 4, 7])
def test_cases_that_are_worked_on_together_fit_into_the_free_memory(tmp_path, monkeypatch, capsys, free_gb):
    monkeypatch.setattr(memory_limits, "free_memory_bytes", lambda: free_gb * 10**9)
    monkeypatch.setattr(memory_limits, "PROCESS_BYTES", 0)
    with Workers(3) as workers:
        found = workers.map(functools.partial(mark, folder=tmp_path), CASES, title="test", size=size_of)
    assert len(found) == len(CASES)
    for together in found:
        assert len(together) == 1 or sum(SIZES[case] for case in together) <= free_gb * 10**9
    said = capsys.readouterr()
    assert f"test: {max(free_gb // 3, 1)} of 3 processes" in said.out
    assert ("may not fit into memory" in said.err) == (free_gb == 1)


def test_nothing_is_said_where_all_processes_fit(monkeypatch, capsys):
    monkeypatch.setattr(memory_limits, "free_memory_bytes", lambda: 9 * 10**9)
    monkeypatch.setattr(memory_limits, "PROCESS_BYTES", 0)
    with Workers(1) as workers:
        assert workers.map(name_of, CASES, title="test", size=size_of) == [f"name of {case}" for case in CASES]
    assert limit_memory(CASES, size_of, 3, "test").all_fit
    said = capsys.readouterr()
    assert "processes" not in said.out and not said.err


def test_a_single_process_warns_of_a_case_that_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(memory_limits, "free_memory_bytes", lambda: 10**9)
    with Workers(1) as workers:
        workers.map(name_of, CASES[:3], title="test", size=size_of)
    said = capsys.readouterr()
    assert "case2 needs up to 3.1 GB, 1.0 GB are free" in said.err and "processes" not in said.out


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_worker_that_is_told_to_end_leaves_no_half_written_file(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"), Workers(2) as workers:
        workers.map(end_at_a_file, [tmp_path / f"{name}.nii" for name in "abc"], title="test")
    assert os.listdir(tmp_path) == []


def run_script(content: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program that signals its own process group, in a group of its own."""
    script = folder / "script.py"
    script.write_text(content)
    return subprocess.run(
        [sys.executable, str(script), *words], env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True,
        text=True, timeout=120, start_new_session=True,
    )  # fmt: skip


CTRL_C = """
import multiprocessing, os, signal, sys, threading, time
from utils.errors import run_cli
from utils.workers import Workers

def strike():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(0, signal.SIGINT)

def rest(seconds):
    time.sleep(seconds)

def main():
    threading.Thread(target=strike).start()
    with Workers(2) as workers:
        workers.map(rest, [0.01] * 4, title="sleep")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_cli(main))
else:
    time.sleep(3)  # a process of the pool, at its imports
"""


@pytest.mark.slow
def test_ctrl_c_while_processes_start_is_one_line(tmp_path):
    done = run_script(CTRL_C, tmp_path)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr


END_BETWEEN = """
import multiprocessing, os, signal, sys, threading, time
from utils.errors import run_cli
from utils.workers import Workers

class SlowToImport:
    def __reduce__(self):
        return time.sleep, (3,)

def strike():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    time.sleep(1.5)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)

def main():
    threading.Thread(target=strike).start()
    with Workers(2) as workers:
        workers.map(print, [SlowToImport()] * 4, title="sleep")

if __name__ == "__main__":
    sys.exit(run_cli(main))
"""


@pytest.mark.slow
def test_a_worker_that_ends_between_two_items_says_nothing(tmp_path):
    done = run_script(END_BETWEEN, tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "a worker process was killed" in done.stderr


IMPORTED = """
import os, sys
from pathlib import Path
from utils.workers import Workers

class Own:
    pass

def kind(item):
    return type(item).__name__

def imported():
    return sorted({path.name for path in Path(sys.argv[1]).iterdir()})

if __name__ == "__main__":
    with Workers(2) as workers:
        lengths = workers.map(len, ["a", "bc", ""], title="another module's work")
        before = imported()
        print(lengths, before, workers.map(kind, [1, 2.0], title="own work"), bool(imported()))
        print(workers.map(str.upper, ["a"], title="another module's again"))
    with Workers(2) as workers:
        print(len(workers.map(id, [1, Own()], title="own item")))
else:
    (Path(sys.argv[1]) / str(os.getpid())).touch()
"""


@pytest.mark.slow
def test_processes_import_the_main_module_only_for_what_is_defined_in_it(tmp_path):
    noted = tmp_path / "noted"
    noted.mkdir()
    done = run_script(IMPORTED, tmp_path, str(noted))
    assert done.stderr == ""
    words = [line for line in done.stdout.splitlines() if ": " not in line]
    assert words == ["[1, 2, 0] [] ['int', 'float'] True", "['A']", "2"]
