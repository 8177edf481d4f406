"""A folder of masks: which of them still hold, which are predicted again and why, and how new ones take their places.

A kill at any moment leaves no mask whose stamp says more than is true, nor beside a mask what was said of another one:
files are written under temporary names, the old ones go, the new stamp is written, and only then the new ones get their
names.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from inference.mask_formats import mask_files
from inference.mask_stamps import FileStamp, MadeBy, MaskStamp, scan_stamp
from inference.new_files import NewFiles
from inference.scans import Scan
from inference.stamp_files import (
    RECORDS,
    read_record,
    read_sound_stamps,
    read_stamps,
    record_path,
    stage_record,
    table_state,
    write_table,
)
from utils.errors import UserError, list_problems
from utils.parts import Place
from utils.reserved import create_array
from utils.scan_names import is_picture

MASK, PROBABILITIES = "mask", ".npy"
_SHOWN = 10


class MaskFolder:
    """The masks of one folder, for one model and its settings. One run at a time works in it (`utils.locks`), or parts
    of one (`parts.py`): then what others have written meanwhile is looked at before anything is changed.

    Args:
        folder: where masks lie.
        made_by: what predicts now.
        overwrite: whether masks are replaced, whoever made them.
        place: for a part of the scans.

    Raises:
        UserError: the stamps are damaged, and `overwrite` is not given.
    """

    def __init__(self, folder: Path, made_by: MadeBy, *, overwrite: bool = False, place: Place | None = None) -> None:
        self.folder, self.made_by, self._overwrite = folder, made_by, overwrite
        self._place_of = place or Place(output=folder)
        self._lock, self._sources, self._endings = threading.Lock(), dict[str, str](), dict[str, str]()
        self._stamps: dict[str, MaskStamp] = {}
        self._refresh()

    def begin(self) -> None:
        """Mark the folder as one of masks, before anything else is written into it."""
        with self._lock, self._place_of.exclusive():
            self._refresh()
            if self._is_damaged or self._table is None:
                write_table(self.folder, self._stamps)

    def gather(self) -> None:
        """Put the stamps of all masks into one file, at the end; nobody else may write masks meanwhile."""
        self._refresh()
        if self._is_damaged or (self.folder / RECORDS).exists():
            write_table(self.folder, self._stamps)

    def _refresh(self) -> None:
        """Read what the folder says; with `overwrite` files that are damaged say nothing, and all others count."""
        self._table = table_state(self.folder)
        if self._overwrite:
            self._stamps, self._is_damaged = read_sound_stamps(self.folder)
        else:
            self._stamps, self._is_damaged = read_stamps(self.folder), False

    def _look_again(self, case: str) -> None:
        """Know what another part has written of a case; for all cases it would be too much after each of thousands."""
        if self._place_of.part is None:
            return
        if table_state(self.folder) != self._table:
            self._refresh()
            return
        try:
            found = read_record(self.folder, case)
        except UserError:
            if not self._overwrite:
                raise
        else:
            self._stamps |= {} if found is None else {case: found}

    def unfinished(self, scans: Sequence[Scan], *, save_probabilities: bool) -> list[Scan]:
        """Those to predict; why masks that are there do not count is printed.

        Raises:
            UserError: files of other origin, or edited ones, would be lost; all are named.
        """
        waiting: list[Scan] = []
        reasons: dict[str, list[str]] = {}
        edited: list[str] = []
        foreign: list[str] = []
        for scan in scans:
            # Taken before the scan is read: one that is replaced meanwhile is another one.
            self._sources[scan.case], self._endings[scan.case] = scan_stamp(scan), scan.mask_ending
            why = self._reasons(scan, save_probabilities)
            changed = self._is_edited(scan.case)
            if not why and not self._overwrite:
                edited += [scan.case] if changed else []
                continue
            waiting.append(scan)
            foreign += [str(path) for path in self._foreign(scan.case, save_probabilities)]
            if scan.case in self._stamps and self._stamped(scan.case).is_file():
                for reason in why:
                    reasons.setdefault(reason, []).append(scan.case)
        if foreign and not self._overwrite:
            raise list_problems(
                f"{self.folder} holds files that this program did not write, or that were changed since:", foreign,
                advice="Choose another --output, move them away, or give --overwrite to replace them.",
            )  # fmt: skip
        if foreign:
            print(f"{self.folder}: files of other origin or edited ones are replaced: {listed(foreign)}", flush=True)
        for reason, cases in reasons.items():
            print(f"{self.folder}: {len(cases)} predicted again ({reason}): {listed(cases)}", flush=True)
        if edited:
            print(f"{self.folder}: kept as they were edited after prediction: {listed(edited)}", flush=True)
        return waiting

    def holds(self, scan: Scan) -> bool:
        """Whether a scan's mask that is there was made of it by what predicts now, and what lies beside it, too."""
        return not self._reasons(scan, save_probabilities=False)

    def edited(self, cases: Sequence[str]) -> list[str]:
        """Those of which the mask is another one than was predicted."""
        return [case for case in cases if self._is_edited(case)]

    def others(self) -> dict[str, str]:
        """Masks of the folder that what predicts now has not made -> what has."""
        if self._place_of.part is not None:
            self._refresh()
        found = {}
        for case, ending in mask_files(self.folder):
            stamp = self._stamps.get(case)
            if (stamp is None or ending != stamp.ending) and is_picture(f"{case}{ending}"):
                # A picture that nobody predicted is one of something else, such as an overlay.
                continue
            if stamp is None or ending != stamp.ending:
                found[case] = "unknown"
            elif why := stamp.made_by.differences(self.made_by):
                found[case] = "; ".join(why)
            elif self._is_edited(case):
                found[case] = "edited since"
        return found

    @contextlib.contextmanager
    def writing(
        self, scan: Scan, shape: Sequence[int] | None = None, *, keep: bool = True, old: Sequence[Path] = ()
    ) -> Iterator[NewFiles]:
        """Files to fill, which take the places of a scan's old ones at the end; after an error nothing has changed.

        Args:
            scan: of which mask and probabilities are.
            shape: (K, z, y, x) of the probabilities; None for the mask alone.
            keep: whether probabilities stay; else their file is only a place to work in.
            old: what lies beside the mask that was there, and goes with it.

        Raises:
            UserError: there is no room for the probabilities.
        """
        target = self._path(scan.case, PROBABILITIES)
        names = {MASK: scan.mask_ending, PROBABILITIES: PROBABILITIES}
        scratch = self._place_of.scratch
        temporary = {key: scratch / f".tmp-{secrets.token_hex(8)}{end}" for key, end in names.items()}
        beside: dict[Path, Path] = {}
        try:
            stored = None if shape is None else create_array(temporary[PROBABILITIES], shape, target=target)
            target = self._path(scan.case, scan.mask_ending)
            new = NewFiles(path=temporary[MASK], target=target, probabilities=stored, beside=beside)
            yield new
            if stored is not None and keep:
                stored.flush()
            elif stored is not None:
                temporary[PROBABILITIES].unlink()
            self._place(scan, temporary, old, beside)
        finally:
            for path in (*temporary.values(), *beside.values()):
                path.unlink(missing_ok=True)

    def _place(
        self, scan: Scan, temporary: Mapping[str, Path], others: Sequence[Path], beside: Mapping[Path, Path]
    ) -> None:
        """Let new files take the places of the old ones, with their stamp; `beside`: target -> temporary name."""
        case, ending, array = scan.case, scan.mask_ending, temporary[PROBABILITIES]
        stamp = MaskStamp(
            scan=self._sources[case], made_by=self.made_by, mask=FileStamp.of(temporary[MASK], content=True),
            probabilities=FileStamp.of(array, content=False) if array.is_file() else None, ending=ending,
        )  # fmt: skip
        with self._lock, self._place_of.exclusive():
            self._look_again(case)
            before = self._stamps.get(case)
            staged = self._place_of.scratch / f".tmp-{secrets.token_hex(8)}.json"
            try:
                stage_record(case, stamp, self.folder, staged)
                # Of old probabilities only those that would lie beside a mask they do not belong to.
                old = self._path(case, PROBABILITIES)
                ours = before is not None and before.probabilities is not None and before.probabilities.holds(old)
                if stamp.probabilities is not None or ours:
                    old.unlink(missing_ok=True)
                for path in {self._path(case, ending), *([] if before is None else [self._path(case, before.ending)])}:
                    path.unlink(missing_ok=True)
                # After the mask: where it is, all that is said of it is there.
                for path in others:
                    path.unlink(missing_ok=True)
                os.replace(staged, record_path(self.folder, case))
            finally:
                staged.unlink(missing_ok=True)
            self._stamps[case] = stamp
            if stamp.probabilities is not None:
                os.replace(array, self._path(case, PROBABILITIES))
            for target, path in beside.items():
                os.replace(path, target)
            # The mask comes last: where it is, the case is done.
            os.replace(temporary[MASK], self._path(case, ending))

    def _path(self, case: str, suffix: str) -> Path:
        return self.folder / f"{case}{suffix}"

    def _stamped(self, case: str) -> Path:
        """The mask that the stamp of a case is of."""
        return self._path(case, self._stamps[case].ending)

    def _reasons(self, scan: Scan, save_probabilities: bool) -> list[str]:
        """Why a scan is predicted; none if its files hold."""
        stamp = self._stamps.get(scan.case)
        if stamp is None or not self._stamped(scan.case).is_file():
            return ["not predicted yet"]
        found = stamp.made_by.differences(self.made_by)
        if stamp.ending != scan.mask_ending:
            found.append(f"its format was {stamp.ending}, now it is {scan.mask_ending}")
        if stamp.scan != self._sources[scan.case]:
            found.append("the scan of that name is another one now")
        if not save_probabilities:
            return found
        if stamp.probabilities is None:
            found.append("its probabilities were not saved")
        elif not stamp.probabilities.holds(self._path(scan.case, PROBABILITIES)):
            found.append("its probabilities are missing or were changed since")
        return found

    def _is_edited(self, case: str) -> bool:
        if case not in self._stamps:
            return False
        mask = self._stamped(case)
        return os.path.lexists(mask) and not self._stamps[case].mask.holds(mask)

    def _foreign(self, case: str, save_probabilities: bool) -> list[Path]:
        """Files in the places of a scan's own that would be lost, and that nobody can make again."""
        stamp = self._stamps.get(case)
        mask, array = self._path(case, self._endings[case]), self._path(case, PROBABILITIES)
        found = [mask] if os.path.lexists(mask) and (stamp is None or stamp.ending != self._endings[case]) else []
        found += [self._stamped(case)] if self._is_edited(case) else []
        if save_probabilities and os.path.lexists(array) and (stamp is None or stamp.probabilities is None):
            found.append(array)
        return found


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f", ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
