"""One pool of processes for everything that is done to many cases, scans or files, each on its own."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from types import FrameType, ModuleType
from typing import TypeVar

from utils.errors import Interrupted, UserError, interrupt_run
from utils.memory_limits import limit_memory
from utils.output import steady_output

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 4
"""Largest number of items that a process is handed at once; a small scan takes a few milliseconds."""
_at_work: list[bool] = []
"""Of a process of the pool: whether it is at a chunk, and not at what it imports for it."""
_starting = threading.Lock()
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Applies a function to many items, in `n_jobs` processes or, with one job, in this one. Use as a context manager.

    Processes are spawned and not forked: the caller may have threads (DALI, torch), and a fork would copy their locks.
    They compute with one thread each, ignore Ctrl-C (the parent lets them finish the files they are at), and end
    when the parent is killed; SIGTERM ends them without half-written files. The program's main module, whose imports
    take longer than a small scan, is imported in them only where the work is defined in it.
    """

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs
        self._pool: ProcessPoolExecutor | None = None
        self._knows_main = False
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> Workers:
        if self.n_jobs > 1:
            # Read by the numeric libraries when a worker imports them, so they are set until the pool is gone.
            self._environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
            self._pool = self._make_pool()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for name, value in self._environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    def map(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        title: str,
        size: Callable[[T], int] | None = None,
    ) -> list[R]:
        """`function` of every item, in the order of the items.

        Args:
            function: what is done to an item, in another process.
            items: all of them, such as cases; messages call them what `str` does.
            title: how the progress and messages call the work.
            size: forecast of an item's memory in bytes; fewer processes work at a time where all would not fit.

        Raises:
            UserError: a worker process was killed, as happens when memory runs out.
        """
        if not items:
            return []
        limits = limit_memory(items, size or (lambda _: 0), self.n_jobs, title)
        with progress(title, len(items)) as advance:
            if self._pool is None:
                return [_advanced(function(item), advance) for item in items]
            chunks = limits.cut(items, max(1, min(CHUNK, len(items) // (8 * self.n_jobs))))
            submit = self._submit_to(self._pool, function, items)
            try:
                return limits.submit(submit, chunks, advance)
            except BrokenProcessPool:
                raise UserError(
                    f"a worker process was killed during '{title}', most likely because memory ran out. "
                    f"Use fewer --n_jobs (now {self.n_jobs}); finished cases are kept."
                ) from None

    def _make_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.n_jobs, get_context("spawn"), initializer=_prepare_worker)

    def _submit_to(
        self, pool: ProcessPoolExecutor, function: Callable[[T], R], items: Sequence[T]
    ) -> Callable[[Sequence[T]], Future[list[R]]]:
        """What hands chunks to the pool, or to a new one if its processes lack the main module that is needed now."""
        # __main__, or __mp_main__ in a process that was itself started so.
        if not self._knows_main and b"_main__" in bytes(ForkingPickler.dumps((function, items))):
            pool.shutdown()
            self._pool, self._knows_main = self._make_pool(), True
            pool = self._pool
        start = functools.partial(_main_module, known=self._knows_main)
        return functools.partial(_submit, pool, start, functools.partial(_apply, function))


@contextmanager
def _main_module(*, known: bool) -> Iterator[None]:
    """Processes that start in here import the main module, or do not."""
    # One thread at a time, or a second one would find the first one's empty module, and put it back at last.
    with _starting:
        main = sys.modules["__main__"]
        try:
            if not known:
                sys.modules["__main__"] = ModuleType("__main__")
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line for each tenth elsewhere; yields the function that counts finished items."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        tenth_before, done = 10 * done // total, done + count
        if 10 * done // total > tenth_before:
            print(f"{title}: {done} of {total}", flush=True)

    yield advance


def _advanced(result: R, advance: Callable[[int], None]) -> R:
    advance(1)
    return result


def _submit(
    pool: ProcessPoolExecutor,
    start: Callable[[], AbstractContextManager[None]],
    function: Callable[[Sequence[T]], list[R]],
    chunk: Sequence[T],
) -> Future[list[R]]:
    """Hand over a chunk, which may start a process: Ctrl-C waits meanwhile, and in that process until it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        with start():
            return pool.submit(function, chunk)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with start():
            return pool.submit(function, chunk)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _apply(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    _at_work.append(True)
    try:
        return [function(item) for item in items]
    except Interrupted as error:
        # The pool would hand the interrupt to the parent as a result, and go on with this process.
        os._exit(128 + error.signum)
    finally:
        _at_work.clear()


def _end_worker(signum: int, frame: FrameType | None) -> None:
    """Signal handler of a process of the pool: what it is at cleans up; between two chunks there is nothing to."""
    if not _at_work:
        os._exit(128 + signum)
    interrupt_run(signum, frame)


def _prepare_worker() -> None:
    steady_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Not the default: a killed process leaves the file that it is at.
    signal.signal(signal.SIGTERM, _end_worker)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
