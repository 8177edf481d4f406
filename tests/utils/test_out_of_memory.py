"""Memory and threads that run out, in whatever words a library says it."""

from __future__ import annotations

import errno

import pytest

from utils.errors import UserError
from utils.out_of_memory import explained_memory


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "out of memory: MemoryError\nUse a smaller --batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: .*Cannot allocate memory"),
        (RuntimeError("CUDA out of memory. Tried 2 GB"), "out of memory: CUDA out of memory"),
        (RuntimeError("Critical error in pipeline:\nstd::bad_alloc"), "out of memory: std::bad_alloc"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory: cuDNN error"),
        (RuntimeError("can't start new thread"), "no thread can be started: .*\nUse --num_workers 1"),
        (RuntimeError("in pipeline:\nResource temporarily unavailable"), "no thread can be started: Resource"),
    ],
    ids=str,
)
def test_it_is_one_message_with_advice(error, says):
    with pytest.raises(UserError, match=says), explained_memory(trains=True):
        raise error


def test_what_only_predicts_has_other_advice():
    with pytest.raises(UserError, match="--val_batch_size 1"), explained_memory(trains=False):
        raise MemoryError


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.ENOSPC, "full"), ValueError("out of memory")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as found, explained_memory(trains=True):
        raise error
    assert found.value is error
