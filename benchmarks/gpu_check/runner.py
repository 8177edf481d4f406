"""Items in processes of their own: a case that crashes, hangs or spoils the device is lost alone.

A worker says what it begins and what it found out. Where it ends in the middle of a case, or a case has no end, that
case has failed, and a new worker takes the cases that are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.findings import Finding, Numbers, Verdict
from benchmarks.gpu_check.items import Item

WORKER = Path(__file__).resolve().parent / "worker.py"
START_S = 120.0
"""Most seconds until a worker names its cases or begins the next one: it imports torch and asks for the device."""
LAST_LINES = 12

Message = dict[str, Any]


class Worker:
    """A process that works through the cases of an item, and its messages."""

    def __init__(self, job: Message) -> None:
        # close() closes it.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None where the worker has ended.

        Raises:
            queue.Empty: it says nothing for so long.
        """
        return self._messages.get(timeout=max(timeout_s, 0.001))

    def end(self) -> int:
        """End it, and all that it started; returns its exit status (the negative number of a signal)."""
        # It may be gone between two of its lines, and its children not.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        return status

    def last_words(self) -> list[str]:
        """The end of what it and its libraries printed."""
        with contextlib.suppress(ValueError, OSError):
            self._log.seek(max(self._log.seek(0, os.SEEK_END) - 20_000, 0))
            lines = self._log.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.strip()][-LAST_LINES:]
        return []

    def close(self) -> None:
        """Forget what it printed."""
        self._log.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._messages.put(json.loads(line))
        self._messages.put(None)


class ItemRun:
    """The cases of one item, over as many workers as it takes.

    Args:
        item: what to run.
        job: `device` and `tiny`, for every worker.
        limit_s: most seconds of the whole item.
    """

    def __init__(self, item: Item, job: Message, *, limit_s: float) -> None:
        self.item, self.limit_s = item, limit_s
        self._job = {"checks": item.checks, **job}
        self._cases: list[str] | None = None
        self._done: list[str] = []
        self._numbers: dict[str, Numbers] = {}

    def findings(self) -> Iterator[Finding]:
        """What each case found out, as it comes; at the end, the cases for which there was no time."""
        end_s = time.monotonic() + self.limit_s
        while self._left() != [] and time.monotonic() < end_s:
            known = len(self._done)
            worker = Worker(self._job | {"done": self._done, "earlier": self._numbers})
            try:
                yield from self._listen(worker, end_s)
            finally:
                worker.end()
                worker.close()
            if len(self._done) == known or "start" in self._done:
                break
        in_time = time.monotonic() < end_s
        why = "the process of its item does not start again" if in_time else f"its {self.limit_s:.0f} s were over"
        for case in ["all"] if self._cases is None and not self._done else self._left() or []:
            yield self._find(case, "not run", why)

    def _left(self) -> list[str] | None:
        """Cases that have no verdict yet; None while nobody knows the cases."""
        return None if self._cases is None else [case for case in self._cases if case not in self._done]

    def _listen(self, worker: Worker, end_s: float) -> Iterator[Finding]:
        current, begun_s = "", time.monotonic()
        while True:
            case_end_s = begun_s + (self.item.case_s if current else START_S)
            try:
                message = worker.receive(min(end_s, case_end_s) - time.monotonic())
            except queue.Empty:
                if time.monotonic() < end_s:
                    words = {"last_words": worker.last_words()}
                    taken = f"no end within {case_end_s - begun_s:.0f} s"
                    yield self._find(current or "start", "failed", taken, words, begun_s)
                return
            if message is None:
                if current or not self._done_all():
                    yield from self._explain_end(worker, current, begun_s)
                return
            if "cases" in message:
                self._cases = message["cases"]
            elif "begin" in message:
                current, begun_s = message["begin"], time.monotonic()
            else:
                current, begun_s = "", time.monotonic()
                self._numbers[message["case"]] = message["numbers"]
                yield self._find(message["case"], message["verdict"], message["text"], message["numbers"],
                                 seconds=message["seconds"])  # fmt: skip

    def _done_all(self) -> bool:
        return self._left() == []

    def _explain_end(self, worker: Worker, current: str, begun_s: float) -> Iterator[Finding]:
        """The worker is gone: in the middle of a case, before the first one, or because the device answers no more."""
        status, words = worker.end(), worker.last_words()
        if current or not self._done:
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            text = f"the process ended with {how}{f': {words[-1]}' if words else ''}"
            yield self._find(current or "start", "failed", text, {"last_words": words}, begun_s)

    def _find(
        self, case: str, verdict: Verdict, text: str, numbers: Numbers | None = None, begun_s: float | None = None,
        seconds: float = 0.0,
    ) -> Finding:  # fmt: skip
        self._done.append(case)
        if begun_s is not None:
            seconds = round(time.monotonic() - begun_s, 2)
        return Finding(
            item=self.item.name, case=case, verdict=verdict, text=text, numbers=numbers or {}, seconds=seconds
        )


def run_items(items: Sequence[Item], job: Message, *, time_s: float) -> Iterator[Finding]:
    """All items in turn; each has its share of the time that the ones before it have left."""
    end_s = time.monotonic() + time_s
    for number, item in enumerate(items):
        shares = sum(each.share for each in items[number:])
        left_s = max(end_s - time.monotonic(), 0.0)
        yield from ItemRun(item, job, limit_s=left_s * item.share / shares).findings()
