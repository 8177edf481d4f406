"""What is known of how sure networks were of a scan, and how far they agreed, without any label: numbers by target.

T scored targets (regions, or the foreground classes), in the order of the label scheme.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from utils.stage_plan import UNSAID

Value = float | None
CERTAINTY_ENDING = ".certainty.json"
"""Of a case that a cross-validation predicted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certainty:
    """Of one scan and one configuration; every tuple has T entries.

    The first three are of each member by itself, and then the mean over the members, so that a scan that one member
    predicted and a scan that five predicted can be compared: no member had seen either. An entry is None where nothing
    says: no member found the target, or there is one member only.

    Attributes:
        members: networks.
        voxels: of the target, on the preprocessed grid.
        confidence: mean probability of the target within its mask, 0..1.
        overlap: Dice of the mask with the probabilities that it was made from, 0..1: low where a target is faint, or
            where much of what might be target was left out.
        agreement: mean Dice of the masks of any two members, 0..1.
        flips: whether `agreement` is that of one network's flips with what it says of the scan as it is.
        names: of the networks; empty where nothing says.
        each: of each of several networks `confidence`, `overlap`, `settled` and `size` by these names, T entries each.
        settled: voxels of the mask, as a share of them and of those that are neither in nor out
            (`models.certainty.UNSETTLED`), 0..1: low where the rim is wide for the size of the target. Empty in files
            of an earlier version, and then missing from `each`.
    """

    members: int
    voxels: tuple[float, ...]
    confidence: tuple[Value, ...]
    overlap: tuple[Value, ...]
    agreement: tuple[Value, ...]
    flips: bool = False
    names: tuple[str, ...] = dataclasses.field(default=(), metadata=UNSAID)
    each: tuple[dict[str, tuple[Value, ...]], ...] = dataclasses.field(default=(), metadata=UNSAID)
    settled: tuple[Value, ...] = dataclasses.field(default=(), metadata=UNSAID)

    @property
    def size(self) -> tuple[Value, ...]:
        """Of each target, as `size_of` says."""
        return size_of(self.voxels)


def size_of(voxels: Sequence[float]) -> tuple[Value, ...]:
    """The logarithm of numbers of voxels: low for a target of which something may be missing, and where each voxel of
    the rim counts much. None where there is no voxel."""
    return tuple(math.log(max(number, 1.0)) if number else None for number in voxels)


DOUBT_ENDING, DOUBT_TABLE = ".doubt.json", "doubt.csv"
"""Of a scan's file beside its mask, and the table of all scans of a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoubtRecord:
    """What is said of a predicted scan. Written to `<case>.doubt.json`.

    Attributes:
        score: 0 is the median of the cross-validation, 1 is where its worst decile begins, and each thing of the scan
            that training never saw adds to it; without a cross-validation from 0 (all sure, all agree) to 1.
        calibrated: which of the two.
        doubtful: from 1 on; None without a cross-validation.
        words: what the score means.
        remarks: what of the scan training never saw, a sentence each.
        targets: T names.
        certainties: configuration -> what its members say.
        between: of several configurations that were averaged, T entries: mean Dice of the masks of any two; empty
            where there is one, and in files of an earlier version.
    """

    version: int
    case: str
    score: float
    calibrated: bool
    doubtful: bool | None
    words: str
    remarks: tuple[str, ...]
    targets: tuple[str, ...]
    certainties: dict[str, Certainty]
    between: tuple[Value, ...] = dataclasses.field(default=(), metadata=UNSAID)

    def __post_init__(self) -> None:
        if not self.certainties:
            raise ValueError("a record of doubt needs what at least one configuration says")

    @property
    def rank(self) -> tuple[float, int, str]:
        """To sort by, the most doubtful first; of equal doubt those with something that training never saw."""
        return -self.score, -len(self.remarks), self.case
