"""One run's DLLogger lines: `DLLL {json}`, a record per line, as dllogger's JSON backend writes them."""

from __future__ import annotations

import inspect
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.files import json_ready

Step = int | tuple[int, ...] | Literal["PARAMETER"]


class JsonLines:
    """Stand-in for `dllogger.JSONStreamBackend`, which is on no package index: same methods, same lines."""

    def __init__(self, path: Path, append: bool) -> None:
        self.file = open(path, "a" if append else "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def metadata(self, timestamp: datetime, elapsedtime: float, metric: str, metadata: dict) -> None:
        """Write what a metric's numbers mean."""
        self._write(timestamp, elapsedtime, {"type": "METADATA", "metric": metric, "metadata": metadata})

    def log(self, timestamp: datetime, elapsedtime: float, step: Step, data: dict) -> None:
        """Write the numbers of one step."""
        self._write(timestamp, elapsedtime, {"type": "LOG", "step": step, "data": data})

    def _write(self, timestamp: datetime, elapsedtime: float, record: dict) -> None:
        when = {"timestamp": timestamp.timestamp(), "datetime": timestamp, "elapsedtime": elapsedtime}
        line = {name: str(value) for name, value in when.items()} | record
        self.file.write(f"DLLL {json.dumps(line)}\n")

    def flush(self) -> None:
        """Hand what is written to the operating system."""
        self.file.flush()


class RunLogger:
    """Writes a run's records, each handed over when the call returns, so that a killed run keeps its lines.

    The lines are valid JSON: NaN and infinity, which JSON cannot express, are written as null.

    Args:
        path: file of the lines; its folder is made.
        append: continue an existing file (a resumed run) instead of replacing it.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, *, append: bool = True) -> None:
        self._start = datetime.now()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if append:
                _end_last_line(path)
            self._backend = _open_backend(path, append)
        except OSError as error:
            advice = "choose another --results or --logname"
            raise UserError(f"the log {path} cannot be written: {error.strerror}; {advice}") from None

    def metadata(
        self,
        name: str,
        *,
        unit: str | None,
        goal: Literal["MINIMIZE", "MAXIMIZE"] | None = None,
        format: str | None = None,
    ) -> None:
        """Declare a metric: its unit, whether less or more is better, and a format such as `:.4f`."""
        described = {"unit": unit, "GOAL": goal, "format": format}
        kept = {key: value for key, value in described.items() if key == "unit" or value is not None}
        self._backend.metadata(*self._clock(), name, kept)
        self._backend.flush()

    def log(self, step: Step, data: dict[str, Any]) -> None:
        """Record numbers of a step (epoch, or (epoch, batch)), of the whole run (`()`), or its options."""
        self._backend.log(*self._clock(), step, json_ready(data))
        self._backend.flush()

    def flush(self) -> None:
        """Every record is flushed when it is written; this is for symmetry with `NullLogger` and dllogger."""
        self._backend.flush()

    def close(self) -> None:
        """Close the file; further records are a mistake."""
        self._backend.file.close()

    def _clock(self) -> tuple[datetime, float]:
        now = datetime.now()
        return now, (now - self._start).total_seconds()


class NullLogger:
    """Takes the same calls as `RunLogger` and does nothing: for every process but the first."""

    def metadata(self, name: str, **described: str | None) -> None:
        """Nothing."""

    def log(self, step: Step, data: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_logger(path: Path, *, enabled: bool, append: bool = True) -> RunLogger | NullLogger:
    """The log of a run for its first process (`enabled`), a silent one for the others."""
    return RunLogger(path, append=append) if enabled else NullLogger()


def _open_backend(path: Path, append: bool) -> Any:
    try:
        from dllogger import JSONStreamBackend, Verbosity
    except ImportError:
        return JsonLines(path, append)
    # Old versions always start the file anew.
    if "append" not in inspect.signature(JSONStreamBackend).parameters:
        return JsonLines(path, append)
    return JSONStreamBackend(Verbosity.VERBOSE, str(path), append=append)


def _end_last_line(path: Path) -> None:
    """A killed run may leave half a line; the next record must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
