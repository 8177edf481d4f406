"""Files of many gzip streams: read whole, and in a time that grows with their size alone."""

from __future__ import annotations

import gzip
import time

import numpy as np
import pytest

from utils.errors import UserError
from utils.nifti_header import read_content


@pytest.mark.slow
def test_many_empty_streams_take_no_time_that_grows_with_their_square(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"ab") + gzip.compress(b"") * 100_000 + gzip.compress(b"cd"))
    start_s = time.process_time()
    assert read_content(path) == b"abcd"
    # Copying the rest of the file for each stream takes 4 s.
    assert time.process_time() - start_s < 2


@pytest.mark.parametrize("limit", [-1, 10**9])
def test_streams_larger_than_a_part_are_joined_and_zeros_between_them_passed_over(tmp_path, limit):
    content = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    path = tmp_path / "scan.nii.gz"
    packed = gzip.compress(content[:60_000]) + bytes(40_000) + gzip.compress(content[60_000:]) + bytes(20_001)
    path.write_bytes(packed)
    assert read_content(path, limit) == content
    path.write_bytes(packed[:-25_000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_content(path, limit)
