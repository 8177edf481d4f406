"""Many cases through three steps that overlap: read the next, compute this one, write the last.

A failing case is reported and the others go on. What is in flight is bounded twice: by number (two cases are read
ahead, two slabs wait for the writer) and by memory.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Case = TypeVar("Case")
Input = TypeVar("Input")
Slab = TypeVar("Slab")
Result = TypeVar("Result")

AHEAD = 2
"""Cases that are read ahead, and slabs that wait for the writer."""
_POLL_S = 0.05


class StoppedCaseError(RuntimeError):
    """A case that is not finished because the run is interrupted; nothing is wrong with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Case, Result]):
    """What became of a case: its result, or the error that ended it."""

    case: Case
    seconds: float
    """From the first computation to the last byte written; reading ahead is not in it."""
    result: Result | None = None
    error: Exception | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages(Generic[Case, Input, Slab, Result]):
    """The three steps. `compute` yields slabs in order, which `write` consumes while later ones are computed."""

    read: Callable[[Case], Input]
    compute: Callable[[Input], Iterator[Slab]]
    write: Callable[[Case, Input, Iterator[Slab]], Result]


class MemoryGate:
    """Lets cases in while their forecasts together stay within a budget; a case larger than that goes alone."""

    def __init__(self, budget_bytes: float) -> None:
        self.budget_bytes = budget_bytes
        self._in_use, self._cases, self._changed = 0, 0, threading.Condition()
        self._open = True

    def enter(self, num_bytes: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._open or not self._cases or self._in_use + num_bytes <= self.budget_bytes
            )
            self._in_use, self._cases = self._in_use + num_bytes, self._cases + 1

    def leave(self, num_bytes: int) -> None:
        """Make room."""
        with self._changed:
            self._in_use, self._cases = self._in_use - num_bytes, self._cases - 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let everybody in: the run is over, and nobody may be left waiting."""
        with self._changed:
            self._open = False
            self._changed.notify_all()


def run_pipeline(
    cases: Sequence[Case],
    lanes: Sequence[Stages],
    *,
    size: Callable[[Case], int],
    gate: MemoryGate,
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Put every case through the three steps.

    Args:
        cases: in the order in which they are begun.
        lanes: the steps, once per device; each lane takes the next case that nobody has taken. A single lane computes
            in the calling thread.
        size: forecast of a case's memory in bytes.
        gate: bounds the memory of what is in flight.
        report: called with each outcome as it comes, never twice at a time.

    Returns:
        One outcome per case, in the order of the cases.
    """
    pending = deque(enumerate(cases))
    outcomes: dict[int, Outcome] = {}
    lock = threading.Lock()

    def finish(index: int, outcome: Outcome) -> None:
        gate.leave(size(outcome.case))
        with lock:
            outcomes[index] = outcome
            report(outcome)

    def admit(case: Case, read: Callable[[Case], Input]) -> Input:
        gate.enter(size(case))
        return read(case)

    try:
        if len(lanes) == 1:
            _run_lane(pending, lanes[0], admit, finish)
        else:
            pool = ThreadPoolExecutor(len(lanes))
            for future in [pool.submit(_run_lane, pending, lane, admit, finish) for lane in lanes]:
                future.result()
    finally:
        # After an interruption no lane takes another case, and none is left waiting.
        pending.clear()
        gate.give_up()
    return [outcomes[index] for index in range(len(cases))]


def _run_lane(pending: deque, stages: Stages, admit: Callable, finish: Callable[[int, Outcome], None]) -> None:
    ahead: deque[tuple[int, Any, Future]] = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            while True:
                while len(ahead) < AHEAD and (taken := _take(pending)) is not None:
                    index, case = taken
                    ahead.append((index, case, reader.submit(admit, case, stages.read)))
                if not ahead:
                    return
                index, case, reading = ahead.popleft()
                try:
                    item = reading.result()
                except Exception as error:  # One broken case must not stop the others.
                    finish(index, Outcome(case=case, seconds=0.0, error=error))
                    continue
                _compute(stages, writer, item, index, case, finish)
                del item, reading
        except BaseException:
            reader.shutdown(wait=False, cancel_futures=True)
            raise


def _take(pending: deque) -> tuple | None:
    try:
        return pending.popleft()
    except IndexError:
        return None


def _compute(stages: Stages, writer: ThreadPoolExecutor, item, index: int, case, finish: Callable) -> None:
    """Compute one case here, while the writer consumes its slabs; the writer reports the outcome."""
    slabs: SlabQueue = SlabQueue()
    start_s = time.perf_counter()

    def consume() -> None:
        try:
            outcome = {"result": stages.write(case, item, iter(slabs))}
        except Exception as error:  # As above; also what went wrong while the slabs were computed.
            outcome = {"error": error}
        slabs.abandon()
        finish(index, Outcome(case=case, seconds=time.perf_counter() - start_s, **outcome))

    writer.submit(consume)
    slabs.fill(lambda: stages.compute(item))


class SlabQueue(Generic[Slab]):
    """Hands slabs from one thread to another, a few at a time; neither side can be left waiting for the other."""

    def __init__(self) -> None:
        self._queue: queue.Queue = queue.Queue(AHEAD)
        self._abandoned = threading.Event()

    def fill(self, compute: Callable[[], Iterator[Slab]]) -> None:
        """Add the slabs of `compute()` as there is room for them, until nobody will take them any more.

        An error of theirs goes to the reader; an interruption ends both sides.
        """
        error: Exception | None = StoppedCaseError("interrupted")
        try:
            for slab in compute():
                if not self.put(slab):
                    break
                # The queue's alone from here on, while the next one is computed.
                del slab
            error = None
        except Exception as caught:
            error = caught
        finally:
            self.close(error)

    def put(self, slab: Slab) -> bool:
        """Wait for room and add a slab; False when nobody will take it any more."""
        return self._put((slab, None))

    def close(self, error: Exception | None) -> None:
        """No slab follows; with an error, the reader gets it."""
        self._put((None, error or StopIteration()))

    def abandon(self) -> None:
        """The reader takes no more."""
        self._abandoned.set()

    def __iter__(self) -> Iterator[Slab]:
        while True:
            slab, end = self._queue.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield slab
            del slab

    def _put(self, entry: tuple) -> bool:
        while not self._abandoned.is_set():
            try:
                self._queue.put(entry, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
