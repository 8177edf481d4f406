"""How the other processes of a run learn what its first one has decided, before they can talk through Lightning."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from models.trainer import cluster_environment
from utils.errors import SaidElsewhere, UserError
from utils.launch import find_launch
from utils.runtime import Runtime

VARIABLE = "NNUNET_BUDGET_DECISION"
"""Of the environment, which processes that Lightning starts inherit."""
PATIENCE = datetime.timedelta(hours=1)
"""For what is measured, which may be the larger part of a long budget."""
CONNECTING = datetime.timedelta(minutes=5)
"""Until the first process is there to be asked: what torch itself waits for one."""
FAREWELL_S = 10.0
"""So long the first process stays, when it refuses, until all others have heard of it."""
HEARD_S = 2.0
"""So long others stay after that: torchrun ends the first process as soon as another one ends, be it before it could
say why."""
INTERRUPTED = "--budget: the first process of this run, which decides, was interrupted"
"""What the others say where Ctrl-C or a signal ended the first one."""
_POLL_S = 0.05
_served: list[dist.TCPStore] = []
"""Stores that other processes may still ask."""


def shared(runtime: Runtime, decide: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the first process decides, in all processes; only the first one calls `decide`.

    Raises:
        UserError: the first process refuses, or is gone.
    """
    if runtime.world_size == 1:
        return decide()
    environment = cluster_environment()
    outside = environment.creates_processes_externally
    if not runtime.is_first_process and outside and VARIABLE in os.environ:
        return json.loads(os.environ[VARIABLE])
    store = None
    if runtime.num_nodes > 1 or outside:
        try:
            store = _store(environment.main_address, environment.main_port, first=runtime.is_first_process)
        except dist.DistError as error:
            raise _gone(error) from None
    # Processes that Lightning starts on another machine hear it from the one there.
    others = runtime.world_size - 1 if outside else runtime.num_nodes - 1
    found = decided_in(store, decide if runtime.is_first_process else None, others=others)
    # For those that this process is going to start.
    os.environ[VARIABLE] = json.dumps(found)
    return found


def decided_in(
    store: dist.Store | None, decide: Callable[[], Mapping[str, Any]] | None, *, others: int = 0
) -> Mapping[str, Any]:
    """Decide, and let others know by a store; or (`decide` is None) wait for what another process decides.

    Args:
        store: that all ask; None: nobody asks.
        decide: of the first process.
        others: how many ask.

    Raises:
        UserError: it cannot be decided, or who should is gone. The others end shortly after the first one, and where
            they write to the same screen they say nothing.
    """
    if decide is None:
        assert store is not None, "somebody else decides"
        return _heard(store)
    try:
        found = decide()
    except BaseException as error:
        if store is not None:
            _refuse(store, error, others)
        raise
    if store is not None:
        store.set("decision", json.dumps(found))
    return found


def _heard(store: dist.Store) -> Mapping[str, Any]:
    try:
        found = json.loads(store.get("decision"))
        if "refused" not in found:
            return found
        store.add("heard", 1)
    except dist.DistError as error:
        raise _gone(error) from None
    time.sleep(HEARD_S)
    launch = find_launch(os.environ)
    # Who was started by hand on another machine has a screen of its own.
    is_beside = launch is not None and (launch.by_srun or launch.local_rank > 0)
    raise (SaidElsewhere if is_beside else UserError)(found["refused"])


def _refuse(store: dist.Store, error: BaseException, others: int) -> None:
    """Let the others know why; where none can be told, the error is still what this process says."""
    interrupted = not isinstance(error, Exception)
    # Its text, such as the name of a signal, says nothing on the screen of another machine.
    why = INTERRUPTED if interrupted else str(error) or type(error).__name__
    with contextlib.suppress(dist.DistError):
        store.set("decision", json.dumps({"refused": why}))
        if not interrupted:
            _wait_for(store, others)


def _wait_for(store: dist.Store, others: int) -> None:
    """Let the others hear that this process refuses, before its store goes with it."""
    end_s = time.monotonic() + FAREWELL_S
    while store.add("heard", 0) < others and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _gone(error: Exception) -> UserError:
    return UserError(
        "--budget: the first process of this run, which decides, has ended or cannot be reached; what it printed says "
        f"why ({str(error).splitlines()[0]})"
    )


def _store(address: str, port: int, *, first: bool) -> dist.Store:
    """A place that all processes reach: torchrun's own one, or one of the first process beside Lightning's port."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        agent = dist.TCPStore(address, port, is_master=False, timeout=CONNECTING)
        agent.set_timeout(PATIENCE)
        return dist.PrefixStore(f"budget{attempt}", agent)
    store = dist.TCPStore(address, port + 1, is_master=first, wait_for_workers=False, timeout=CONNECTING)
    store.set_timeout(PATIENCE)
    _served.append(store)
    return store
