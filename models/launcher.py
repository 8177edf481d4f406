"""Several processes of one run on this machine: how they are watched, and how they end together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from utils.errors import EXIT_USAGE, UserError

POLL_S = 1.0
GRACE_S = 15.0
"""How long a process whose neighbour has ended may take to end by itself; in a collective it may wait for ever."""
LAST_WORDS_S = 5.0
"""How long a process that broke off may take to be gone; its neighbours notice its closed connection before that."""


class OwnDDP(DDPStrategy):
    """Data-parallel processes that end as a single one does."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        environment = self.cluster_environment
        # srun and torchrun watch over their processes themselves.
        if environment is not None and not environment.creates_processes_externally:
            self._launcher = WatchingLauncher(environment, self.num_processes, self.num_nodes)


class WatchingLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of a run, and lets the first one end with its own words and exit status.

    Lightning's watcher kills the first process with SIGKILL as soon as another one ends with an error, also where both
    have just been asked to end.
    """

    def launch(self, function: Callable, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, and call the function in this one too.

        Raises:
            UserError: another process ended before its time, and the function failed of that.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        # Before the others start, so that they have the same number.
        share_threads(self.num_processes)
        self._call_children_scripts()
        ending = threading.Event()
        threading.Thread(target=watch, args=(self.procs, ending), daemon=True, name="watch-processes").start()
        try:
            return function(*args, **kwargs)
        except UserError:
            # It says why the others ended with it.
            raise
        except Exception as error:
            if gone := first_gone(self.procs, LAST_WORDS_S):
                raise UserError(gone) from error
            raise
        finally:
            ending.set()


def share_threads(processes: int) -> None:
    """Give this process its share of the machine's cores; without effect where OMP_NUM_THREADS says how many."""
    _set_num_threads_if_needed(num_processes=processes)


def watch(processes: Sequence[subprocess.Popen], ending: threading.Event) -> None:
    """End this process where another one has failed and this one does not notice; returns once `ending` is set."""
    while not ending.wait(POLL_S):
        gone = first_gone(processes, 0)
        if gone is None:
            continue
        if ending.wait(GRACE_S):
            return
        print(f"error: {gone}", file=sys.stderr, flush=True)
        for process in processes:
            process.kill()
        # The main thread waits in a collective of which nothing can call it back.
        os._exit(EXIT_USAGE)


def first_gone(processes: Sequence[subprocess.Popen], patience_s: float) -> str | None:
    """A sentence on the first process that ended with an error, as soon as there is one; None if all are well."""
    end_s = time.monotonic() + patience_s
    while True:
        for rank, process in enumerate(processes, start=1):
            if process.poll():
                return (
                    f"process {rank} of {len(processes) + 1} ended with status {process.returncode} before the run was "
                    "finished (what it said stands above; a negative number is the signal that ended it); "
                    "with --resume_training, training goes on from the last checkpoint"
                )
        if time.monotonic() >= end_s:
            return None
        time.sleep(0.1)
