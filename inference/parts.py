"""What each part of a prediction does or has done: `<output>/parts/3_of_8/part.json`."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from inference.mask_stamps import MadeBy
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.parts import Part, part_folder
from utils.schema import FORMAT_VERSION, check_version

RECORD = "part.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What a part does or has done. `begun_s` is in seconds since 1970."""

    version: int = FORMAT_VERSION
    part: int
    count: int
    state: Literal["running", "finished"]
    made_by: MadeBy
    cases: tuple[str, ...]
    host: str
    job: str
    begun_s: float
    seconds: float = 0.0
    written: int = 0
    kept: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_version(self.version, RECORD)

    @classmethod
    def begun(cls, part: Part, made_by: MadeBy, cases: Sequence[str]) -> PartRecord:
        """Of a part that begins now, in this process."""
        variables = os.environ
        job = variables.get("SLURM_ARRAY_JOB_ID") or variables.get("SLURM_JOB_ID") or ""
        task = variables.get("SLURM_ARRAY_TASK_ID")
        return cls(
            part=part.index, count=part.count, state="running", made_by=made_by, cases=tuple(cases),
            host=socket.gethostname(), job=f"{job}_{task}" if task else job, begun_s=time.time(),
        )  # fmt: skip


def write_record(output: Path, record: PartRecord) -> None:
    """Write the record of a part that has begun."""
    write_json(record, part_folder(output, Part(index=record.part, count=record.count)) / RECORD)


def read_record(output: Path, part: Part) -> PartRecord | None:
    """The record of a part; None where it never began, or was killed while it did."""
    path = part_folder(output, part) / RECORD
    try:
        return read_json(PartRecord, path) if path.is_file() else None
    except UserError:
        return None
