"""Files of many gzip streams: read whole, and in a time that grows with their size alone."""

from __future__ import annotations

import gzip
import time
import tracemalloc

import numpy as np
import pytest

from utils import nifti_streams
from utils.errors import UserError
from utils.nifti_streams import read_start, read_whole


@pytest.mark.slow
def test_many_empty_streams_take_no_time_that_grows_with_their_square(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"ab") + gzip.compress(b"") * 100_000 + gzip.compress(b"cd"))
    start_s = time.thread_time()
    assert read_whole(path, 4) == (b"abcd", 4)
    # Copying the rest of the file for each stream takes 4 s.
    assert time.thread_time() - start_s < 2


def read_all(path):
    return read_whole(path, 100_000)[0]


@pytest.mark.parametrize("read", [read_all, lambda path: read_start(path, 10**9)])
def test_streams_larger_than_a_part_are_joined_and_zeros_between_them_passed_over(tmp_path, read):
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    path = tmp_path / "scan.nii.gz"
    packed = gzip.compress(content[:60_000]) + bytes(40_000) + gzip.compress(content[60_000:]) + bytes(20_001)
    path.write_bytes(packed)
    assert read(path) == content
    path.write_bytes(packed[:-25_000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read(path)


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["packed", "plain"])
def test_what_lies_behind_the_voxels_is_counted(tmp_path, pack):
    path = tmp_path / "scan.nii"
    path.write_bytes(pack(b"voxels and more"))
    content, total = read_whole(path, 6)
    assert content.startswith(b"voxels") and total == 15


def test_a_small_file_that_unpacks_without_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_streams, "_SURPLUS_BYTES", 1 << 16)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="far more than the 1000 bytes that its header states"):
            read_whole(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_a_small_file_can_never_hold_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"voxels"))
    with pytest.raises(UserError, match=r"is truncated: 26 packed bytes never hold 1099511627776"):
        read_whole(path, 1 << 40)
