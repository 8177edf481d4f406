"""Parts of a large piece of work: processes on any machines that fill one folder at the same time.

`<folder>/parts/3_of_8/` belongs to part 3 of 8: its lock, and its temporary files where others must not sweep them.
What all share is changed for moments only, while the folder's own lock is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError
from utils.locks import folder_lock, is_locked
from utils.slurm_resources import SlurmJobOptions, SlurmOptions
from utils.temporary import sweep

T = TypeVar("T")

PARTS = "parts"
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
class PartOptions(SlurmOptions):
    """One of several parts that are done side by side, or all of them as jobs for Slurm."""

    part: str | None = None
    """I/N: do part I of N only, beside others that do the rest into the same folder, on any machines. Whichever ends
    last finishes the folder."""
    parts: int | None = None
    """With --slurm: number of parts, each a job of one array."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None:
            Part.parse(self.part)
        if self.parts is not None and self.parts < 1:
            raise UserError(f"--parts must be at least 1, got {self.parts}")
        if self.part is not None and self.parts is not None:
            raise UserError("--part I/N is one part, and --parts N all of them as Slurm jobs; give one of the two")
        if (self.slurm is None) != (self.parts is None):
            raise UserError("--slurm FOLDER and --parts N belong together: N parts as the jobs of an array")

    @property
    def own_part(self) -> Part | None:
        """The part that is asked for."""
        return None if self.part is None else Part.parse(self.part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartJobOptions(PartOptions, SlurmJobOptions):
    """One of several parts that are done side by side, or all of them as jobs for Slurm."""

    inspect: bool = False
    """Only inspect the training cases, which is done once for all parts (a job of --slurm)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inspect and (self.part is not None or self.slurm is not None):
            raise UserError("--inspect is done once for all parts; leave out --part and --slurm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works in a folder: it has the folder for itself, or does a part beside others."""

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
        with contextlib.ExitStack() as stack:
            locked = False
            while not locked:
                # Whoever did the same part before may take its folder away, as soon as it is let go.
                with contextlib.suppress(FileNotFoundError):
                    self.scratch.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(folder_lock(self.scratch))
                    locked = True
            # Whoever does everything has the folder from its begin to its end.
            with self.exclusive():
                sweep(self.scratch, alone=True)
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other parts from changing what they all share; for moments."""
        if self.part is None:
            yield
            return
        with folder_lock(self.output, brief=True):
            yield

    def discard(self) -> None:
        """Remove the folder of this part, if nothing is left in it."""
        with contextlib.suppress(OSError):
            if self.part is not None:
                self.scratch.rmdir()
                self.scratch.parent.rmdir()


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
