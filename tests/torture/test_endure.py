"""How a long training is watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.torture import bookkeeping
from tests.torture.bookkeeping import keep_books


@pytest.mark.slow
def test_ten_thousand_epochs_are_written_down_as_the_first_ones_are(tmp_path, monkeypatch):
    found, grew = keep_books(tmp_path)
    assert not grew and found["epochs"] == 10_000, found
    monkeypatch.setattr(bookkeeping, "MOST_BYTES", 10)
    assert "the history" in keep_books(tmp_path, 1000)[1][0]


@pytest.mark.slow
def test_a_long_training_is_looked_at_itself_and_ended(tmp_path):
    """Not a process that it started; a stand-in for main.py, which ends only as it is told."""
    (tmp_path / "trains.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "def main(words):\n"
        "    results = pathlib.Path(words[words.index('--results') + 1])\n"
        "    results.mkdir(parents=True)\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'])\n"
        "    held = b'1' * (200 << 20)\n"
        "    for epoch in range(1, 500):\n"
        "        with open(results / 'logs.json', 'a') as log:\n"
        "            log.write('\"epoch_s\":')\n"
        "        time.sleep(0.02)\n"
    )
    code = (
        "import json; from pathlib import Path; from tests.torture import commands, endure; "
        "endure._LOOK_S = 0.1; endure.what_grew = lambda looks: []; endure.prepare = lambda *_, **__: ([], []); "
        "endure.keep_books = lambda _: ({}, []); "
        "endure.run = lambda _, words, **given: commands.run('trains', words, **given); "
        f"print(json.dumps(endure.run_endure(Path('{tmp_path}'), seed=1, seconds=4.0)))"
    )
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    trained = [look for look in result["looks"] if look[1] > 0]
    assert result["faults"] == [] and len(trained) >= 2, result
    assert trained[0][1] < trained[-1][1] <= result["epochs"] < 499, "it was not ended"
    assert all(look[2] > 200 for look in trained), f"another process was looked at: {trained}"
