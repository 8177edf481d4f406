"""What a user reads where a run does not fit into memory: one message instead of where torch was just then."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from utils.errors import UserError

_SAID_BY = (
    "can't allocate memory", "out of memory", "std::bad_alloc", "Cannot allocate memory", "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED", "Resource temporarily unavailable",
)  # fmt: skip
"""torch on a CPU, CUDA (torch and DALI), C++ libraries, the operating system, libraries of a GPU, and threads
that cannot be started."""
_LEARNING = (
    "Use a smaller --batch_size or --val_batch_size, --amp or smaller --filters, or plan for less: preprocess.py "
    "--gpu_memory_gb"
)
_LOOKING = "Use --val_batch_size 1 or --amp"


@contextlib.contextmanager
def explained_memory(*, trains: bool) -> Iterator[None]:
    """Say in one message that memory ran out, and which options take less of it.

    Args:
        trains: whether the block trains, or only predicts.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = next((line for line in lines if _is_said(line)), lines[0])
        raise UserError(
            f"out of memory: {said.strip()}\n{_LEARNING if trains else _LOOKING}; other programs on "
            "this machine take memory, too"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a kind of its own on a GPU only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _is_said(str(error))


def _is_said(text: str) -> bool:
    return any(words in text for words in _SAID_BY)
