"""scripts/serve.py: what it needs, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request

import pytest

from scripts import serve
from tests.conftest import PROJECT
from tests.serving.service import save_model
from utils.errors import run_cli


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run_cli(lambda: serve.main([str(tmp_path / "model.zip")])) == 2
    message = capsys.readouterr().err
    assert "fastapi" in message and "pip install -e '.[serve]'" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [("--queue -1", "--queue"), ("--upload_mb 0", "--upload_mb"), ("--seconds nan", "--seconds"),
     ("--port 70000", "--port"), ("--overlap 1", "--overlap")],
)  # fmt: skip
def test_limits_out_of_range_are_refused(words, message, capsys):
    assert run_cli(lambda: serve.main(["model.zip", *words.split()])) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_it_says_where_it_listens_and_sigterm_ends_it(tmp_path):
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(package, reason="the extra serve is not installed")
    words = [sys.executable, PROJECT / "scripts/serve.py", save_model(tmp_path), "--port", "0", "--gpus", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            said = [process.stdout.readline() for _ in range(2)]
            assert said[0].startswith("model: Task04_Test")
            url = said[1].split()[2]
            with urllib.request.urlopen(f"{url}ready", timeout=60) as answer:
                assert answer.read() == b'{"status":"ready"}'
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143 and error.strip() == "interrupted by SIGTERM"
