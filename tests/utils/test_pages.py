"""Pages of a file's array can be given back and are read again."""

from __future__ import annotations

import numpy as np

from utils.pages import give_back_pages


def test_what_was_written_is_still_there(tmp_path):
    stored = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(4, 50, 60))
    view = stored.transpose(0, 2, 1)[:, ::-1]
    view[1] = 7
    give_back_pages(view)
    view[2] += 1
    give_back_pages(stored)
    stored.flush()
    assert [plane.mean() for plane in np.load(tmp_path / "a.npy")] == [0, 7, 1, 0]


def test_arrays_in_memory_and_nothing_are_left_alone():
    give_back_pages(None)
    array = np.ones((3, 4))
    give_back_pages(array[1:])
    assert array.all()
