from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest

from utils.errors import UserError
from utils.logger import NullLogger, RunLogger, open_logger


def read(path):
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line.removeprefix("DLLL "), parse_constant=refuse) for line in lines]


def test_a_record_is_one_line_with_time_step_and_data(tmp_path):
    logger = RunLogger(tmp_path / "logs" / "log.json")
    logger.log(3, {"dice": 0.5})
    (record,) = read(tmp_path / "logs" / "log.json")
    assert (record["type"], record["step"], record["data"]) == ("LOG", 3, {"dice": 0.5})
    assert float(record["timestamp"]) > 1.6e9 and float(record["elapsedtime"]) >= 0 and "-" in record["datetime"]
    logger.close()


@pytest.mark.parametrize(("step", "written"), [("PARAMETER", "PARAMETER"), ((), []), ((2, 7), [2, 7]), (0, 0)])
def test_steps_are_epochs_batches_options_or_the_whole_run(tmp_path, step, written):
    logger = RunLogger(tmp_path / "log.json")
    logger.log(step, {"a": 1})
    logger.close()
    assert read(tmp_path / "log.json")[0]["step"] == written


def test_metadata_declares_the_unit(tmp_path):
    logger = RunLogger(tmp_path / "log.json")
    logger.metadata("dice", unit=None, goal="MAXIMIZE", format=":.4f")
    logger.metadata("epoch_s", unit="s")
    logger.close()
    first, second = read(tmp_path / "log.json")
    assert (first["type"], first["metric"]) == ("METADATA", "dice")
    assert first["metadata"] == {"unit": None, "GOAL": "MAXIMIZE", "format": ":.4f"}
    assert second["metadata"] == {"unit": "s"}


def test_what_json_cannot_express_is_null(tmp_path):
    logger = RunLogger(tmp_path / "log.json")
    logger.log(0, {"a": math.nan, "b": np.float32(0.25), "c": (1, math.inf), "d": {"path": tmp_path}})
    logger.close()
    assert read(tmp_path / "log.json")[0]["data"] == {
        "a": None,
        "b": 0.25,
        "c": [1, None],
        "d": {"path": str(tmp_path)},
    }


def test_a_record_is_on_disk_before_the_run_ends(tmp_path):
    logger = RunLogger(tmp_path / "log.json")
    logger.log(0, {"a": 1})
    assert len(read(tmp_path / "log.json")) == 1
    logger.close()


@pytest.mark.parametrize(("append", "steps"), [(True, [0, 1]), (False, [1])])
def test_a_resumed_run_continues_its_log(tmp_path, append, steps):
    for step in (0, 1):
        logger = RunLogger(tmp_path / "log.json", append=append)
        logger.log(step, {})
        logger.close()
    assert [record["step"] for record in read(tmp_path / "log.json")] == steps


def test_half_a_line_of_a_killed_run_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('DLLL {"timesta')
    logger = RunLogger(path)
    logger.log(0, {"a": 1})
    logger.close()
    half, whole = path.read_text().splitlines()
    assert half == 'DLLL {"timesta' and json.loads(whole.removeprefix("DLLL "))["data"] == {"a": 1}


def test_a_log_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunLogger(tmp_path / "file" / "log.json")
    with pytest.raises(UserError, match="cannot be written"):
        RunLogger(tmp_path)


def test_only_the_first_process_writes(tmp_path):
    logger = open_logger(tmp_path / "log.json", enabled=False)
    logger.metadata("dice", unit=None, goal="MAXIMIZE")
    logger.log(0, {"a": 1})
    logger.flush()
    logger.close()
    assert isinstance(logger, NullLogger) and not (tmp_path / "log.json").exists()
    first = open_logger(tmp_path / "log.json", enabled=True)
    first.close()
    assert isinstance(first, RunLogger)


def test_the_dllogger_package_is_used_where_it_is_installed(tmp_path, monkeypatch):
    calls = []

    class Backend:
        def __init__(self, verbosity, filename, append):
            calls.append((verbosity, filename, append))

        def log(self, timestamp, elapsedtime, step, data):
            calls.append((step, data))

        def metadata(self, timestamp, elapsedtime, metric, metadata):
            calls.append((metric, metadata))

        def flush(self):
            calls.append("flush")

    verbosity = types.SimpleNamespace(VERBOSE=1)
    package = types.SimpleNamespace(JSONStreamBackend=Backend, Verbosity=verbosity)
    monkeypatch.setitem(sys.modules, "dllogger", package)
    logger = RunLogger(tmp_path / "log.json")
    logger.metadata("loss", unit="nat")
    logger.log(1, {"loss": math.nan})
    assert calls == [
        (1, str(tmp_path / "log.json"), True),
        ("loss", {"unit": "nat"}),
        "flush",
        (1, {"loss": None}),
        "flush",
    ]
