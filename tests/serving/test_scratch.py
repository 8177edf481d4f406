"""Room on the disk is promised once: what has been written of it is not asked for again."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

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


@pytest.fixture
def looking(place, monkeypatch):
    """Looking at the disk takes until this is set, or for good without a thread; only one may look at a time."""
    free, slow, alone = scratch.free_bytes, threading.Event(), threading.Lock()

    def wait(path) -> int:
        assert alone.acquire(blocking=False), "two look at once"
        assert slow.wait(2), "the event loop waits"
        alone.release()
        return free(path)

    monkeypatch.setattr(scratch, "free_bytes", wait)
    return slow


def test_an_event_loop_goes_on_while_room_is_looked_for_and_promises_it_once(place, looking):
    async def both() -> list:
        async with place.lent() as one, place.lent() as two:
            asked = [asyncio.create_task(each.ask(600_000)) for each in (one, two)]
            done, _ = await asyncio.wait(asked, timeout=0.02)
            assert not done
            looking.set()
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(both())
    assert {type(each) for each in found} == {type(None), Refused}
    with place.folder() as other:
        other.need(MOST_BYTES)


def test_a_request_that_is_cancelled_gives_its_room_and_its_files_back(place, looking, tmp_path):
    async def request(there: asyncio.Event) -> None:
        async with place.lent() as folder:
            (folder.path / "scan").write_bytes(b"x")
            there.set()
            await folder.ask(MOST_BYTES)

    async def cancelled() -> None:
        there = asyncio.Event()
        task = asyncio.create_task(request(there))
        await there.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        looking.set()

    asyncio.run(cancelled())
    assert not list(tmp_path.rglob("scan"))
    with place.folder() as other:
        other.need(MOST_BYTES)


def test_a_thread_removes_a_folder_also_where_none_is_free_and_its_request_is_cancelled_twice(place, monkeypatch):
    removed, removing = [], shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **more: removed.append(threading.current_thread()) or removing(path, **more)
    )

    async def request(there: asyncio.Event) -> None:
        async with place.lent() as folder:
            (folder.path / "scan").write_bytes(b"x")
            there.set()
            await asyncio.sleep(10)

    async def cancelled() -> None:
        busy, there, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = asyncio.create_task(asyncio.to_thread(busy.wait, 2))
        task = asyncio.create_task(request(there))
        await there.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        busy.set()
        await blocked
        await asyncio.to_thread(lambda: None)

    asyncio.run(cancelled())
    assert len(removed) == 1 and threading.main_thread() not in removed
