"""Which series of a study is which channel of a model: by what the scanner calls them, or by a table."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import re
from collections import defaultdict
from collections.abc import Container, Sequence
from pathlib import Path

from data_preprocessing.dataset.pairing import plain_name
from inference.dicom.series import Series, common_name
from utils.errors import UserError, list_problems
from utils.nifti import allowed_mm, grid_difference_mm

KEYS = ("description", "modality", "number")
"""What a pattern may be of, such as `modality:PT`; a plain one is of the description."""
TABLE = ".csv"
UID = re.compile(r"\d+(\.\d+)+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """What the series of a channel is like: `key` is one of `KEYS`, `text` has `*` and `?` for anything."""

    key: str
    text: str

    @classmethod
    def parse(cls, word: str) -> Pattern:
        """Of a word of the command line."""
        key, separator, text = word.partition(":")
        is_keyed = bool(separator) and key.lower() in KEYS
        return cls(key=key.lower(), text=text) if is_keyed else cls(key="description", text=word)

    def fits(self, series: Series) -> bool:
        """Whether a series is like it, in upper or lower case."""
        value = "" if getattr(series, self.key) is None else str(getattr(series, self.key))
        # Scanners write brackets, which mean themselves.
        return fnmatch.fnmatchcase(value.lower(), self.text.lower().replace("[", "[[]"))

    def __str__(self) -> str:
        return f"{self.key} {self.text!r}"


def as_channels(found: Sequence[Series], words: Sequence[str], num_channels: int, root: Path, name: str) -> Channels:
    """The series of each study put together.

    Args:
        found: all series of the input.
        words: a pattern for each channel, or a table (.csv): a line for each case, its name and the UID, or the name
            that this program gives it, of the series of each channel; titles may come first, none of which is called
            as a series is.
        num_channels: what the model takes.
        root: folder of the input.
        name: of a study whose series lie directly in it.

    Raises:
        UserError: there are not as many patterns as channels, or the table cannot be used.
    """
    if len(words) == 1 and words[0].lower().endswith(TABLE):
        return _by_table(found, Path(words[0]), num_channels)
    if len(words) != num_channels:
        raise UserError(
            f"--dicom_channels has {len(words)} patterns, and the model {num_channels} channels; give one for each, in "
            "the order of the model's channels, or a table (.csv)"
        )
    patterns = [Pattern.parse(word) for word in words]
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        studies[series.study].append(series)
    cases, left_out = [], []
    for members in studies.values():
        fitting = [[series for series in members if pattern.fits(series)] for pattern in patterns]
        used = {series.name for each in fitting for series in each}
        left_out += [_unused(series) for series in members if series.name not in used]
        if used:
            case = common_name([file for each in fitting for series in each for file in series.files], root) or name
            cases.append(_case(case, fitting, [str(pattern) for pattern in patterns]))
    return Channels(cases=tuple(_told_apart(cases)), left_out=tuple(left_out))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channels:
    """Cases of several series, and the series that belong to none: one line for each."""

    cases: tuple[Series, ...]
    left_out: tuple[str, ...]


def _unused(series: Series) -> str:
    number = "" if series.number is None else f" {series.number}"
    return (
        f"series{number} {series.description!r} ({series.modality}, {len(series.files)} files): --dicom_channels fits "
        "it to no channel"
    )


def _case(name: str, fitting: Sequence[Sequence[Series]], wanted: Sequence[str]) -> Series:
    """The series of each channel as one; with a problem where they are none or several."""
    problems, nameless = [], []
    for number, (series, want) in enumerate(zip(fitting, wanted)):
        if len(series) != 1:
            names = ", ".join(each.name for each in series[:5])
            there = f"{len(series)} series ({names})" if series else "no series"
            problems.append(f"{there} of {want} for channel {number} of the model")
            nameless.append(f"{len(series) or 'no'} series for channel {number} of the model")
    if problems:
        files = tuple(file for each in fitting for series in each for file in series.files)
        return Series(name=name, files=files, stack=None, problem="; ".join(problems), nameless="; ".join(nameless))
    return _together(name, [series[0] for series in fitting])


def _together(name: str, series: Sequence[Series]) -> Series:
    """Series of one grid as the channels of one scan."""
    files = tuple(file for each in series for file in each.files)
    first, *others = series
    problem = _fault(series, [each.name for each in series])
    nameless = _fault(series, [f"channel {number}" for number in range(len(series))])
    return dataclasses.replace(
        first, name=name, files=files, others=tuple(others), problem=problem, nameless=nameless or "",
        stack=None if problem else first.stack,
    )  # fmt: skip


def _fault(series: Sequence[Series], titles: Sequence[str]) -> str | None:
    """Why these series, called by their titles, make no scan together."""
    for each, title in zip(series, titles):
        if each.problem:
            return f"{title}: {each.problem}"
    geometry = series[0].require_stack().geometry
    for each, title in zip(series[1:], titles[1:]):
        own = each.require_stack().geometry
        far_mm = grid_difference_mm(own.affine, geometry.affine, geometry.shape_xyz)
        if own.shape_xyz != geometry.shape_xyz or far_mm > allowed_mm(geometry.affine):
            return (
                f"{title} ({own.shape_xyz} voxels) lies on another grid than {titles[0]} ({geometry.shape_xyz}); "
                "register and resample the channels to one grid, as NIfTI files <case>_0000.nii.gz, "
                "<case>_0001.nii.gz, ..."
            )
    return None


def _told_apart(cases: Sequence[Series]) -> list[Series]:
    """Studies that lie in one folder get numbers."""
    names = [case.name for case in cases]
    seen: dict[str, int] = defaultdict(int)
    result = []
    for case in cases:
        seen[case.name] += 1
        own = case.name if names.count(case.name) == 1 else f"{case.name}_{seen[case.name]}"
        result.append(dataclasses.replace(case, name=own))
    return sorted(result, key=lambda case: case.name)


def _by_table(found: Sequence[Series], table: Path, num_channels: int) -> Channels:
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--dicom_channels {table} cannot be read: {error}") from None
    if not rows or any(len(row) != num_channels + 1 for row in rows):
        raise UserError(
            f"--dicom_channels {table}: each line has a case and its {num_channels} series, in the order of the "
            "model's channels; the first line may hold titles"
        )
    by_uid: dict[str, list[Series]] = defaultdict(list)
    for series in found:
        by_uid[series.uid].append(series)
        by_uid[series.name].append(series)
    cases, problems = [], []
    for case, *wanted in rows[1:] if _has_titles(rows, by_uid) else rows:
        fitting = [by_uid.get(want, []) for want in wanted]
        problems += [f"{case}: {want} is no series of the input" for want, one in zip(wanted, fitting) if not one]
        cases.append(_case(plain_name(case), fitting, [f"UID or name {want}" for want in wanted]))
    if problems:
        raise list_problems(f"--dicom_channels {table}:", problems, advice="A series is named by its UID.")
    used = {file for case in cases for file in case.files}
    left_out = [_unused(series) for series in found if not used.issuperset(series.files)]
    return Channels(cases=tuple(sorted(cases, key=lambda case: case.name)), left_out=tuple(left_out))


def _has_titles(rows: Sequence[Sequence[str]], known: Container[str]) -> bool:
    """Whether no cell of the first line is a series: with one that is, a mistyped cell beside it is said, not lost."""
    return not any(cell in known or UID.fullmatch(cell) for cell in rows[0][1:])
