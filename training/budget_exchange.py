"""How the other processes of a run learn what its first one has decided, before they can talk through Lightning."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from models.trainer import cluster_environment
from utils.errors import UserError
from utils.runtime import Runtime

VARIABLE = "NNUNET_BUDGET_DECISION"
"""Of the environment, which processes that Lightning starts inherit."""
PATIENCE = datetime.timedelta(hours=1)
_served: list[dist.TCPStore] = []
"""Stores that other processes may still ask."""


def shared(runtime: Runtime, decide: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the first process decides, in all processes; only the first one calls `decide`.

    Raises:
        UserError: the first process refuses.
    """
    if runtime.world_size == 1:
        return decide()
    environment = cluster_environment()
    outside = environment.creates_processes_externally
    if not runtime.is_first_process and outside and VARIABLE in os.environ:
        return json.loads(os.environ[VARIABLE])
    store = None
    if runtime.num_nodes > 1 or outside:
        store = _store(environment.main_address, environment.main_port, first=runtime.is_first_process)
    found = decided_in(store, decide if runtime.is_first_process else None)
    # For those that this process is going to start.
    os.environ[VARIABLE] = json.dumps(found)
    return found


def decided_in(store: dist.Store | None, decide: Callable[[], Mapping[str, Any]] | None) -> Mapping[str, Any]:
    """Decide, and let others know by a store; or (`decide` is None) wait for what another process decides.

    Raises:
        UserError: it cannot be decided.
    """
    if decide is None:
        assert store is not None, "somebody else decides"
        found = json.loads(store.get("decision"))
        if "refused" in found:
            raise UserError(found["refused"])
        return found
    try:
        found = decide()
    except Exception as error:
        if store is not None:
            store.set("decision", json.dumps({"refused": str(error)}))
        raise
    if store is not None:
        store.set("decision", json.dumps(found))
    return found


def _store(address: str, port: int, *, first: bool) -> dist.Store:
    """A place that all processes reach: torchrun's own one, or one of the first process beside Lightning's port."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"budget{attempt}", dist.TCPStore(address, port, is_master=False, timeout=PATIENCE))
    store = dist.TCPStore(address, port + 1, is_master=first, wait_for_workers=False, timeout=PATIENCE)
    _served.append(store)
    return store
