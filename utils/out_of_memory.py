"""What a user reads where a run does not fit into memory: one message instead of where torch was just then."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence

from utils.errors import UserError

_SAID_BY = (
    "can't allocate memory", "out of memory", "std::bad_alloc", "Cannot allocate memory", "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""torch on a CPU, CUDA (torch and DALI), C++ libraries, the operating system, and libraries of a GPU."""
_NO_THREAD = ("Resource temporarily unavailable", "can't start new thread")
"""What they say of the memory of a thread, or of a limit on their number."""
_LEARNING = (
    "Use a smaller --batch_size or --val_batch_size, --amp or smaller --filters, or plan for less: preprocess.py "
    "--gpu_memory_gb"
)
_LOOKING = "Use --val_batch_size 1 or --amp"
_STARTING = "Use --num_workers 1, or raise the limit on memory or processes (ulimit, --pids-limit of docker)"


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
        if is_out_of_memory(error):
            what, advice = "out of memory", _LEARNING if trains else _LOOKING
        elif isinstance(error, RuntimeError) and _is_said(str(error), _NO_THREAD):
            what, advice = "no thread can be started", _STARTING
        else:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = next((line for line in lines if _is_said(line, (*_SAID_BY, *_NO_THREAD))), lines[0])
        raise UserError(f"{what}: {said.strip()}\n{advice}; other programs on this machine take some, too") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a kind of its own on a GPU only."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _is_said(str(error), _SAID_BY)


def _is_said(text: str, by: Sequence[str]) -> bool:
    return any(words in text for words in by)
