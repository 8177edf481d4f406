"""Where the files of requests lie until they are answered: a private folder that killed services are cleaned out of,
and room on its disk that is asked for before it is written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from serving.refusals import no_room
from utils.disk import free_bytes
from utils.temporary import private_folder, private_root, sweep

NAME = "nnunet-serve"
SPARE_BYTES = 1 << 26
"""What is left free for all others."""


class Scratch:
    """The folders of requests, in a folder of this user in the system's place for temporary files (`TMPDIR`).

    What a killed service left there is removed when the next one begins.

    Raises:
        UserError: there is such a folder of somebody else.
    """

    def __init__(self) -> None:
        self._folders, self._lock = set[Folder](), threading.Lock()
        sweep(private_root(NAME))

    @contextlib.contextmanager
    def folder(self) -> Iterator[Folder]:
        """A new folder, removed at the end with all that is in it."""
        with private_folder(NAME) as path:
            made = Folder(path, self)
            self._folders.add(made)
            try:
                yield made
            finally:
                self._folders.discard(made)

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[Folder]:
        """A new folder for an event loop, which goes on while it is removed."""
        stack = contextlib.ExitStack()
        made = stack.enter_context(self.folder())
        try:
            yield made
        finally:
            # A call that waits for a thread would be cancelled together with this one.
            await asyncio.shield(asyncio.create_task(asyncio.to_thread(stack.close)))

    def promise(self, folder: Folder, num_bytes: int) -> None:
        """Promise room to a folder.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            free = free_bytes(Path(tempfile.gettempdir()))
            # What has been written of promised room is no longer free.
            waiting = sum(max(0, each.promised_bytes - each.written_bytes()) for each in tuple(self._folders))
            if free is not None and waiting + num_bytes + SPARE_BYTES > free:
                raise no_room()
            folder.promised_bytes += num_bytes


class Folder:
    """A folder of a request, `path`, with the room that was promised to it.

    `spooled_bytes` are those that were written for it elsewhere on the same disk.
    """

    def __init__(self, path: Path, scratch: Scratch) -> None:
        self.path, self.promised_bytes, self.spooled_bytes, self._scratch = path, 0, 0, scratch

    def written_bytes(self) -> int:
        """How much of its room is taken on the disk."""
        found = self.spooled_bytes
        # Files come and go meanwhile, and so does the folder of a request that was answered.
        with contextlib.suppress(FileNotFoundError):
            for path in self.path.rglob("*"):
                with contextlib.suppress(OSError):
                    entry = path.lstat()
                    found += getattr(entry, "st_blocks", -(-entry.st_size // 512)) * 512
        return found

    def need(self, num_bytes: int) -> None:
        """Ask for more room before writing so much.

        Raises:
            Refused: there is none.
        """
        self._scratch.promise(self, num_bytes)

    async def ask(self, num_bytes: int) -> None:
        """`need` for an event loop, which goes on meanwhile: to look at a disk takes time.

        Where it is cancelled the room may be promised all the same, until the folder is removed.

        Raises:
            Refused: there is none.
        """
        await asyncio.to_thread(self.need, num_bytes)
