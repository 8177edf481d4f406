"""Room on the disk is promised once: what has been written of it is not asked for again."""

from __future__ import annotations

import tempfile

import pytest

from serving import scratch
from serving.refusals import Refused

MOST_BYTES = 1 << 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A disk of a megabyte, of which files of requests take their part."""

    def free(path) -> int:
        return MOST_BYTES - sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "free_bytes", free)
    monkeypatch.setattr(scratch, "SPARE_BYTES", 0)
    return scratch.Scratch()


def test_what_is_written_is_not_counted_twice(place):
    with place.folder() as one:
        one.need(600_000)
        with place.folder() as two, pytest.raises(Refused):
            two.need(500_000)
        (one.path / "scan").write_bytes(bytes(600_000))
        with place.folder() as two:
            two.need(400_000)
            with pytest.raises(Refused):
                one.need(100_000)
        one.need(400_000)
    with place.folder() as three:
        three.need(MOST_BYTES)


def test_what_is_written_elsewhere_for_a_request_counts_as_well(place, tmp_path):
    with place.folder() as one, place.folder() as two:
        one.need(800_000)
        (tmp_path / "spool").write_bytes(bytes(400_000))
        with pytest.raises(Refused):
            two.need(200_000)
        one.spooled_bytes = 400_000
        two.need(200_000)


def test_a_folder_that_goes_while_it_is_counted_takes_no_room(place, monkeypatch):
    def gone(self, pattern):
        raise FileNotFoundError(self)

    with place.folder() as one, monkeypatch.context() as patch:
        patch.setattr(scratch.Path, "rglob", gone)
        assert one.written_bytes() == 0
