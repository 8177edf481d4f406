"""Parts of a large prediction: processes on any machines that fill one folder of masks at the same time.

`<output>/parts/3_of_8/` belongs to part 3 of 8: its lock, its temporary files, and `part.json`, the record of what it
does or has done. What lies in the folder of masks itself is changed for moments only, while its lock is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from inference.mask_stamps import MadeBy
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.locks import folder_lock, is_locked
from utils.schema import FORMAT_VERSION, check_version
from utils.temporary import sweep

T = TypeVar("T")

PARTS, RECORD = "parts", "part.json"
_POLL_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of `3/8`.

        Raises:
            UserError: it is no such text.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--part takes I/N with I from 1 to N, such as 3/8, got {text!r}")
        return cls(index=int(found[1]), count=int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def split(self, number: int, count: int) -> Part:
        """Piece `number` (counted from 0) of `count` of this part."""
        return Part(index=(self.index - 1) * count + number + 1, count=self.count * count)

    def own(self, items: Sequence[T]) -> list[T]:
        """Those of the items, which are sorted by name, that are this part's; each item is in one part."""
        return list(items[self.index - 1 :: self.count])


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works in a folder of masks: it has the folder for itself, or does a part beside others."""

    output: Path
    part: Part | None = None

    @property
    def scratch(self) -> Path:
        """Folder for temporary files, which nobody else sweeps."""
        return self.output if self.part is None else part_folder(self.output, self.part)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others out while the block goes on: everybody, or who does the same part and who does everything."""
        if self.part is None:
            with _alone_in(self.output):
                yield
            return
        self.scratch.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.scratch):
            # Whoever does everything has the folder from its begin to its end.
            with self.exclusive():
                sweep(self.scratch, alone=True)
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other parts from changing what lies in the folder of masks; for moments."""
        if self.part is None:
            yield
            return
        with folder_lock(self.output, brief=True):
            yield

    def write(self, record: PartRecord) -> None:
        """Write the record of this part."""
        write_json(record, self.scratch / RECORD)


@contextlib.contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    told = False
    while True:
        with folder_lock(output):
            busy = [f"{part}" for part in parts_of(output) if is_locked(part_folder(output, part))]
            if not busy:
                for part in parts_of(output):
                    sweep(part_folder(output, part), alone=True)
                yield
                return
        if not told:
            print(f"{output}: waiting for parts {', '.join(busy)}, which write there", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_S)


def part_folder(output: Path, part: Part) -> Path:
    """The folder that belongs to a part."""
    return output / PARTS / f"{part.index}_of_{part.count}"


def parts_of(output: Path) -> list[Part]:
    """Parts that have begun at any time, in any division, in their order."""
    found = (re.fullmatch(r"(\d+)_of_(\d+)", path.name) for path in (output / PARTS).glob("*_of_*"))
    pairs = sorted((int(each[2]), int(each[1])) for each in found if each is not None)
    return [Part(index=index, count=count) for count, index in pairs]


def read_record(output: Path, part: Part) -> PartRecord | None:
    """The record of a part; None where it never began, or was killed while it did."""
    path = part_folder(output, part) / RECORD
    try:
        return read_json(PartRecord, path) if path.is_file() else None
    except UserError:
        return None
