"""How much of a long piece of work is done at a time, so that what is under way fits into the memory that is free."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from typing import Generic, TypeVar

from utils.limits import free_memory_bytes

T = TypeVar("T")
R = TypeVar("R")

PROCESS_BYTES = 150_000_000
"""Python and the libraries of preprocessing, in each process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk(Generic[T]):
    """Items that one process works on one after the other, and what the largest of them takes in bytes."""

    items: Sequence[T]
    needed_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """Forecast of each item in their order, and what those that are worked on together may take, all in bytes."""

    sizes: tuple[int, ...]
    budget_bytes: int
    all_fit: bool
    """Whether as many as there are processes fit at any time."""

    def cut(self, items: Sequence[T], most: int) -> list[Chunk[T]]:
        """Chunks of `most` items, the last perhaps shorter."""
        starts = range(0, len(items), most)
        # A process is at one item of its chunk at a time.
        return [Chunk(items=items[i : i + most], needed_bytes=max(self.sizes[i : i + most])) for i in starts]

    def submit(
        self,
        submit: Callable[[Sequence[T]], Future[list[R]]],
        chunks: Sequence[Chunk[T]],
        advance: Callable[[int], None],
    ) -> list[R]:
        """The results of all chunks in their order; what is submitted at a time fits, or is a single chunk.

        Args:
            submit: gives a chunk's items to a pool of processes; the future has a result for each.
            chunks: all of them.
            advance: called with the number of results as they come.
        """
        futures: list[Future[list[R]]] = []
        running: dict[Future[list[R]], int] = {}
        for chunk in chunks:
            while not self.all_fit and running and sum(running.values()) + chunk.needed_bytes > self.budget_bytes:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    advance(len(future.result()))
                    del running[future]
            futures.append(submit(chunk.items))
            running[futures[-1]] = chunk.needed_bytes
        for future in as_completed(running):
            advance(len(future.result()))
        return [result for future in futures for result in future.result()]


def limit_memory(items: Sequence[T], size: Callable[[T], int], num_processes: int, title: str) -> MemoryLimits:
    """How many items may be worked on at a time; says so where that is fewer than there are processes.

    Args:
        items: those to come; messages call them what `str` does.
        size: forecast of an item in bytes, without the process's own memory.
        num_processes: how many there are.
        title: what is done, for messages.
    """
    sizes = tuple(size(item) + PROCESS_BYTES for item in items)
    budget = free_memory_bytes()
    largest = sorted(sizes, reverse=True)[:num_processes]
    if sum(largest) <= budget:
        return MemoryLimits(sizes=sizes, budget_bytes=budget, all_fit=True)
    alone = [str(item) for item, needed in zip(items, sizes) if needed > budget]
    free = f"{budget / 1e9:.1f} GB are free"
    if alone:
        worst = max(range(len(items)), key=sizes.__getitem__)
        print(
            f"warning: {title}: {_names(alone)} may not fit into memory ({items[worst]} needs up to "
            f"{sizes[worst] / 1e9:.1f} GB, {free}); each is worked on alone. Close other programs",
            file=sys.stderr,
        )
    if num_processes > 1:
        together, total = 0, 0
        while together < len(largest) and total + largest[together] <= budget:
            total, together = total + largest[together], together + 1
        print(
            f"{title}: {max(together, 1)} of {num_processes} processes at a time for the largest cases (up to "
            f"{largest[0] / 1e9:.1f} GB each, {free})",
            flush=True,
        )
    return MemoryLimits(sizes=sizes, budget_bytes=budget, all_fit=False)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} others"
