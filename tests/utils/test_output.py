from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from utils.errors import UserError, continues_with, run_cli
from utils.files import write_atomically
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="file descriptors as POSIX has them")


def run_program(body: str, tmp_path: Path, *, flags=(), close=(), environment=None, **options):
    """Run `main()` of a small program through run_cli in `tmp_path`."""
    text = f"{PROGRAM}\n{body}\nsys.exit(run_cli(main))"
    return subprocess.run(
        [sys.executable, *flags, "-c", text], cwd=tmp_path, env=os.environ | (environment or {}),
        preexec_fn=(lambda: [os.close(descriptor) for descriptor in close]) if close else None,
        **{"stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def deaf_reader() -> int:
    """The writing end of a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


TALKS = """
def main():
    for number in range(5):
        print(number, flush=True)
    os.write(1, b"from C code")
    Path("done").touch()
    print("the end")
    return 3
"""


@POSIX
@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_reader_that_goes_away_ends_nothing(tmp_path, flags):
    writing = deaf_reader()
    done = run_program(TALKS, tmp_path, flags=flags, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, b"")
    assert (tmp_path / "done").exists()


@POSIX
@pytest.mark.parametrize("close", [(1,), (1, 2), (0, 1, 2)])
def test_closed_streams_end_nothing_and_no_file_takes_their_place(tmp_path, close):
    body = TALKS.replace("    Path", "    file = open('file', 'wb')\n    os.write(1, b'lost')\n    Path")
    done = run_program(body, tmp_path, close=close, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")
    assert (tmp_path / "done").exists() and (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_ends_nothing(tmp_path):
    with open("/dev/full", "wb") as full:
        assert run_program(TALKS.replace('os.write(1, b"from C code")', ""), tmp_path, stdout=full).returncode == 3


@POSIX
def test_what_is_printed_arrives_in_order_where_somebody_reads(tmp_path):
    done = run_program(TALKS, tmp_path, stdout=subprocess.PIPE)
    assert done.stdout == b"0\n1\n2\n3\n4\nfrom C codethe end\n"


def test_names_that_the_terminal_cannot_print_are_written_as_codes(tmp_path):
    body = "def main():\n    print('sch\\xe4del \\udcff')\n    raise UserError('\\udcfe is not a folder')"
    done = run_program(body, tmp_path, environment={"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE)
    assert done.stdout == rb"sch\xe4del \udcff" + os.linesep.encode()
    assert done.returncode == 2 and done.stderr.startswith(rb"error: \udcfe is not a folder")


WRITES = """
def main():
    def write(file):
        file.write(b"half")
        print("writing", flush=True)
        import time
        time.sleep(60)
    with continues_with("the same command continues"):
        write_atomically(Path("result.bin"), write)
"""


@POSIX
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_ends_a_run_without_half_written_files(tmp_path, number, status, message):
    text = f"{PROGRAM}\nimport signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{WRITES}"
    with subprocess.Popen(
        [sys.executable, "-c", f"{text}\nsys.exit(run_cli(main))"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (status, f"{message}\nthe same command continues\n")
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource
import numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

def main():
    write_atomically(Path("array.npy"), lambda file: np.save(file, np.zeros(4_000_000, np.uint8)))
"""
CHECKPOINT = LIMITED.replace("import numpy as np", "import torch").replace(
    "np.save(file, np.zeros(4_000_000, np.uint8))", "torch.save({'weights': torch.zeros(1_000_000)}, file)"
)


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("body", [LIMITED, CHECKPOINT], ids=["numpy", "torch"])
def test_a_file_that_cannot_grow_is_one_message_with_its_path(tmp_path, body):
    done = run_program(body, tmp_path, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: File too large: ") and "(more than 1.00 MB needed, " in done.stderr
    assert os.listdir(tmp_path) == []
