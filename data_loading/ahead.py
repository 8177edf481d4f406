"""Batches that a thread makes ready while the one before is worked on, and memory that a GPU copies from by itself.

A batch is a mapping of tensors, and of whatever else belongs to them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Mapping)


def one_ahead(batches: Generator[Batch, None, None], device_id: int | None = None) -> Iterator[Batch]:
    """The same batches in the same order; each is taken from `batches` by a thread, one before it is asked for.

    Args:
        batches: closed at the end, also where that comes early.
        device_id: GPU on which the batches are made, on a stream of its own, so that it is not what comes between that
            is waited for; None: they are made on the CPU.
    """
    stream = None if device_id is None else torch.cuda.Stream(device_id)
    with ThreadPoolExecutor(1, thread_name_prefix="next_batch") as pool:
        take = functools.partial(pool.submit, _next, batches, stream)
        waiting = take()
        try:
            while (batch := waiting.result()) is not None:
                waiting = take()
                if stream is not None:
                    _hand_over(batch, device_id)
                yield batch
        finally:
            wait([waiting])
            batches.close()


def pinned(item: dict[str, Tensor | str]) -> dict[str, Tensor | str]:
    """The same in memory that a GPU copies from while the program goes on."""
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in item.items()}


def _next(batches: Iterator[Batch], stream: torch.cuda.Stream | None) -> Batch | None:
    with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
        batch = next(batches, None)
        if stream is not None:
            # Whole before anybody else sees it; only this thread waits.
            stream.synchronize()
    return batch


def _hand_over(batch: Mapping, device_id: int | None) -> None:
    """Keep memory from being given away by the stream that made it while another one works with it."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(torch.cuda.current_stream(device_id))
