"""scripts/serve.py: what it needs, what it refuses, and how it ends."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.predictor import Predictor
from scripts import serve
from tests.conftest import PROJECT
from tests.serving.service import Client, save_model, save_scan
from utils.errors import run_cli
from utils.nifti import read_label


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


@contextlib.contextmanager
def served(folder, *words):
    """A service as users start it, and where it listens."""
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(package, reason="the extra serve is not installed")
    command = [sys.executable, PROJECT / "scripts/serve.py", save_model(folder), "--port", "0", "--gpus", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            assert process.stdout.readline().startswith("model: Task04_Test")
            yield process, process.stdout.readline().split()[2]
        finally:
            process.kill()


@pytest.mark.slow
def test_it_says_where_it_listens_and_sigterm_ends_it(tmp_path):
    with served(tmp_path) as (process, url):
        with urllib.request.urlopen(f"{url}ready", timeout=60) as answer:
            assert answer.read() == b'{"status":"ready"}'
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and error.strip() == "interrupted by SIGTERM"


@pytest.mark.slow
def test_a_hundred_requests_of_eight_clients_get_their_own_masks_and_leave_no_memory_behind(tmp_path):
    scans = [save_scan(tmp_path / f"{seed}.nii.gz", seed=seed) for seed in range(4)]
    model = Predictor.load(save_model(tmp_path / "same"), device="cpu")
    expected = [model.predict_file(path).mask for path in scans]
    assert len({mask.tobytes() for mask in expected}) == 4

    def ask(number: int) -> bool:
        status, body, _ = client.predict(scans[number % 4].read_bytes(), answer="both")
        assert status == 200, body
        target = tmp_path / f"got_{number}.nii.gz"
        target.write_bytes(base64.b64decode(json.loads(body)["mask"]))
        return np.array_equal(read_label(target).array, expected[number % 4])

    def resident() -> int:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])

    with served(tmp_path / "model") as (process, url), ThreadPoolExecutor(8) as pool:
        client = Client(url)
        # Each thread of the service has worked once before its memory is looked at.
        assert all(pool.map(ask, range(16)))
        before = resident()
        assert sum(pool.map(ask, range(100))) == 100
        assert resident() < 1.05 * before
        assert b'nnunet_requests_total{status="200"} 116' in client.ask("metrics")[1]
