"""A child process that ends with the one that started it, and whose standard input is a pipe from there."""

from __future__ import annotations

import os
import threading


def end_with_parent() -> None:
    """From now on end this process, with status 1, as soon as standard input is closed; a thread watches it."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Not sys.stdin: its lock would be held when Python ends.
    while os.read(0, 1):
        pass
    os._exit(1)
