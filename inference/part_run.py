"""The end of a part: its record, what came of all parts where it is the last one, and processes that end together."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

from inference.doubt_files import summary_line
from inference.part_table import part_states, together
from inference.parts import PartRecord, write_record
from inference.scan_run import ScanRun
from utils.errors import EXIT_OK, EXIT_PARTIAL
from utils.launch import find_launch

_POLL_S = 0.2
_SHOWN = 10


def finish_part(
    run: ScanRun, begun: PartRecord, outcome: dict[str, Any], cases: Sequence[str]
) -> dict[str, Any] | None:
    """Record a part that is over, and give the outcome of all of them where all are; its place is held exclusively.

    Args:
        run: of the part.
        begun: its record so far.
        outcome: of the part.
        cases: all scans, those of other parts too.

    Returns:
        The outcome as of a single run over all scans, with the table of doubt written; None while parts are missing,
        which is said.
    """
    counts = {name: outcome[name] for name in ("written", "kept", "failed")}
    write_record(
        run.job.output, dataclasses.replace(begun, state="finished", seconds=time.time() - begun.begun_s, **counts)
    )
    states = part_states(run.job.output, begun.count, sorted(cases), begun.made_by)
    missing = [state for state in states if state.why]
    done = f"part {begun.part}/{begun.count} is done"
    if missing:
        print(f"{done}; {len(missing)} of {begun.count} are not, and the last one writes run.json and the page:")
        for state in missing[:_SHOWN]:
            print(f"  - part {state.part}: {state.why}")
        print(f"  - ... and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "", end="", flush=True)
        return None
    found = together([state.record for state in states if state.record is not None], cases)
    print(f"{done}, and so are all: {len(cases)} scans, {len(found['failed'])} failed", flush=True)
    run.masks.gather()
    there = [case for case in cases if case not in found["failed"]]
    records = run.doubts.finish(there, edited=run.masks.edited(there))
    if records:
        print(summary_line(records))
    doubtful = [record.case for record in records if record.doubtful]
    return found | ({"doubtful": doubtful} if doubtful else {})


def end_together(status: int) -> int:
    """The worst status of all processes that torchrun started, once they are all done; else the same.

    As soon as one of them ends with an error, torchrun ends the others, and a scan that failed must not do that.
    """
    launch = find_launch(os.environ)
    if launch is None or launch.by_srun or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return status
    import torch.distributed

    store, _, _ = next(torch.distributed.rendezvous("env://"))
    if status != EXIT_OK:
        store.add("parts_with_failures", 1)
    store.add("parts_done", 1)
    while store.add("parts_done", 0) < launch.size:
        time.sleep(_POLL_S)
    return EXIT_PARTIAL if store.add("parts_with_failures", 0) else EXIT_OK
