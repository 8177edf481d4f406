"""Where the files of requests lie until they are answered: a private folder that killed services are cleaned out of,
and room on its disk that is asked for before it is written to.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
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
        self._promised, self._lock = 0, threading.Lock()
        sweep(private_root(NAME))

    @contextlib.contextmanager
    def folder(self) -> Iterator[Folder]:
        """A new folder, removed at the end with all that is in it."""
        with private_folder(NAME) as path:
            made = Folder(path, self)
            try:
                yield made
            finally:
                self.promise(-made.promised_bytes)

    def promise(self, num_bytes: int) -> None:
        """Promise room, or give it back (negative).

        Raises:
            Refused: there is none.
        """
        with self._lock:
            free = free_bytes(Path(tempfile.gettempdir()))
            if num_bytes > 0 and free is not None and self._promised + num_bytes + SPARE_BYTES > free:
                raise no_room()
            self._promised += num_bytes


class Folder:
    """A folder of a request, `path`, with the room that was promised to it."""

    def __init__(self, path: Path, scratch: Scratch) -> None:
        self.path, self.promised_bytes, self._scratch = path, 0, scratch

    def need(self, num_bytes: int) -> None:
        """Ask for more room before writing so much.

        Raises:
            Refused: there is none.
        """
        self._scratch.promise(num_bytes)
        self.promised_bytes += num_bytes
