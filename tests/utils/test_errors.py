from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from utils.errors import UserError, describe_error, describe_fault, list_problems, raise_lost_interrupt, run_cli
from utils.files import write_atomically


def fail(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_commands_own_status_is_kept(returned, status):
    assert run_cli(lambda: returned) == status


def test_a_user_error_is_a_message_and_status_2(capsys):
    assert run_cli(fail(UserError("no such folder: x"))) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: no such folder: x\n")


def test_an_interrupt_is_status_130(capsys):
    assert run_cli(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_a_message_and_status_2(capsys):
    assert run_cli(fail(OSError(28, "No space left on device", "/results/last.ckpt"))) == 2
    assert capsys.readouterr().err == "error: No space left on device: /results/last.ckpt\n"


def test_other_faults_that_name_no_file_stay_tracebacks():
    with pytest.raises(FileNotFoundError):
        run_cli(fail(FileNotFoundError(2, "No such file or directory")))


def test_our_own_mistakes_stay_tracebacks():
    with pytest.raises(AssertionError):
        run_cli(fail(AssertionError()))


def test_all_problems_are_listed_up_to_a_limit():
    short = list_problems("2 bad cases:", ["a", "b"], advice="Correct them.")
    assert str(short) == "2 bad cases:\n  - a\n  - b\nCorrect them."
    long = list_problems("bad:", [str(i) for i in range(25)], advice="Correct.", shown=3)
    assert str(long).splitlines()[1:] == ["  - 0", "  - 1", "  - 2", "  ... and 22 more", "Correct."]


def test_a_copy_that_does_not_fit_names_the_copy():
    error = OSError(errno.ENOSPC, "No space left on device", "scans/a.nii.gz", None, "copy/a.nii.gz")
    assert describe_fault(error) == "No space left on device: copy/a.nii.gz"


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EBUSY])
def test_a_fault_that_names_a_file_is_one_message(number, capsys):
    def command():
        raise OSError(number, os.strerror(number), "some/file")

    assert run_cli(command) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(number)}: some/file\n"


def test_a_path_without_a_name_is_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli(lambda: write_atomically(Path("."), lambda file: None)) == 2
    assert capsys.readouterr().err == f"error: {os.strerror(errno.EISDIR)}: .\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("scan.nii is empty"), "scan.nii is empty"),
        (MemoryError("2.1 GiB"), "not enough memory (2.1 GiB)"),
        (ValueError("shapes differ"), "ValueError: shapes differ"),
    ],
)
def test_a_failed_case_says_why(error, text):
    assert describe_error(error) == text


@pytest.mark.parametrize(
    ("number", "usual", "status"),
    [(signal.SIGINT, signal.default_int_handler, 130), (signal.SIGTERM, signal.SIG_DFL, 143)],
)
def test_an_interrupt_that_python_dropped_ends_the_run_at_the_next_look(number, usual, status):
    looked = []

    def command() -> None:
        # As where an object is freed at that moment.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        looked.append(True)
        raise_lost_interrupt()
        looked.append(False)

    before = signal.signal(number, usual)
    try:
        assert run_cli(command) == status and looked == [True]
        assert run_cli(raise_lost_interrupt) == 0
    finally:
        signal.signal(number, before)


def test_an_interrupt_while_an_object_is_freed_is_no_traceback(capfd):
    """Python writes one of whatever is raised there, and goes on; other faults it still tells."""

    class Freed:
        def __init__(self, error: Exception | None = None) -> None:
            self.error = error

        def __del__(self) -> None:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGTERM)

    def command() -> None:
        del_me = Freed(ValueError("told"))
        del del_me
        del_me = Freed()
        del del_me
        raise_lost_interrupt()

    told = []
    before, hook = signal.signal(signal.SIGTERM, signal.SIG_DFL), sys.unraisablehook
    sys.unraisablehook = lambda each: told.append(str(each.exc_value))
    try:
        assert run_cli(command) == 143
        assert told == ["told"] and capfd.readouterr().err == "interrupted by SIGTERM\n"
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
