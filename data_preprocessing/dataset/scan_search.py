"""Scans in folders, or that match patterns, with their channels put together.

A scan's key is its path below the folder where the search began, without ending; `{case}` in a pattern names it
outright.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils import scan_names
from utils.scan_names import VOLUME_FORMATS, scan_ending, scan_tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A file, and the channel that it holds where its name says so."""

    key: str
    path: Path
    channel: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelFile:
    """A file of one channel, and the scan's key, which all its channels share."""

    key: str
    path: Path
    channel: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """A file or, with one file for each channel, several."""

    key: str
    paths: tuple[Path, ...]


def find_files(places: Sequence[str], problems: list[str], *, flag: str) -> list[File]:
    """The scans in folders, of files, or that match patterns with * and {case}; hidden ones are none.

    Several patterns with {case} are one for each channel. What finds nothing, and files of one key, are appended to
    `problems`.
    """
    found: list[File] = []
    by_channel = len(places) > 1 and all("{case}" in place and "{channel}" not in place for place in places)
    listed = [os.path.dirname(os.path.abspath(place)) for place in places if Path(place).is_file()]
    for number, place in enumerate(places):
        if Path(place).is_dir():
            here = _in_folder(Path(place))
        elif Path(place).is_file():
            key = _key(os.path.relpath(place, os.path.commonpath(listed)))
            here = [File(key=key, path=Path(place))] if scan_ending(place) else []
        else:
            here = _matches(place)
        if not here:
            problems.append(f"{flag} {place}: no scan there ({VOLUME_FORMATS}, or .png, .tif)")
        found += [dataclasses.replace(file, channel=f"{number:04d}") for file in here] if by_channel else here
    problems += [f"{flag}: {file.path} is a link that leads nowhere" for file in found if not file.path.exists()]
    together: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for file in found:
        together[file.key, file.channel].append(str(file.path))
    problems += [f"{flag}: {' and '.join(paths)} are both called {key}"
                 for (key, _), paths in together.items() if len(paths) > 1]  # fmt: skip
    return found


def group_channels(
    files: Sequence[File], names: Sequence[str], num_cases: int | None = None
) -> tuple[list[Scan], list[str]]:
    """Scans in the order of their keys, and the names of the channels if their file names tell.

    One file for each channel is recognised by {channel}, by numbers as nnU-Net has them (`_0000`), or by last words
    that are the same for every case (`_t1`, `_flair`) where that makes as many cases as there are labels, or where the
    words are the channels' `names`.
    """
    wanted = [name.lower() for name in names]
    split = [ChannelFile(key=f.key, path=f.path, channel=f.channel) for f in files if f.channel is not None]
    if len(split) < len(files):
        split = _split_numbers(files) or _split_words(files, wanted, num_cases)
    if not split:
        return [Scan(key=file.key, paths=(file.path,)) for file in sorted(files, key=lambda file: file.key)], []
    channels = sorted({file.channel for file in split})
    if set(wanted) == {channel.lower() for channel in channels}:
        channels.sort(key=lambda channel: wanted.index(channel.lower()))
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in split:
        groups[file.key][file.channel] = file.path
    # A missing channel leaves a shorter scan, which is found when the channels are counted.
    scans = [Scan(key=key, paths=tuple(g[c] for c in channels if c in g)) for key, g in sorted(groups.items())]
    return scans, [] if all(channel.isdecimal() for channel in channels) else channels


def _in_folder(folder: Path) -> list[File]:
    return [File(key=_key(path.relative_to(folder).as_posix()), path=path) for path in scan_tree(folder)]


def _matches(pattern: str) -> list[File]:
    wild = re.sub(r"\{(case|channel)\}", "*", pattern)
    # A link that leads nowhere is found too, and refused when it is read.
    there = [path for path in sorted(glob.glob(wild, recursive=True)) if scan_ending(path)]
    paths = [path for path in there if os.path.isfile(path) or not os.path.exists(path)]
    if "{case}" not in pattern:
        root = os.path.dirname(re.split(r"[*?\[]", wild)[0]) or "."
        return [File(key=_key(os.path.relpath(path, root)), path=Path(path)) for path in paths]
    found = [(path, match) for path in paths if (match := _expression(pattern).fullmatch(path))]
    return [File(key=match["case"], path=Path(path), channel=match.groupdict().get("channel")) for path, match in found]


def _key(place: str) -> str:
    return place.removesuffix(scan_ending(place))


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern with {case}, {channel}, * and ? as a regular expression; a name that comes twice must be the same."""
    parts, seen = [], set()
    for part in re.split(r"(\{case\}|\{channel\}|\*\*/|\*|\?)", pattern):
        if part in ("{case}", "{channel}"):
            name = part[1:-1]
            # Of `a_b_t1`, {case}_{channel} means a_b and t1: the channel is the shorter.
            several = "[^/]+" if name == "case" else "[^/]+?"
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{several})")
            seen.add(name)
        else:
            parts.append({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part)))
    return re.compile("".join(parts))


def _split_numbers(files: Iterable[File]) -> list[ChannelFile]:
    """Files `<case>_0000`, `<case>_0001`, ...; none unless every file and every case fits."""
    groups = scan_names.group_channels(files, lambda file: file.key)
    if groups.others or any(0 not in channels for channels in groups.cases.values()):
        return []
    return [
        ChannelFile(key=key, path=file.path, channel=f"{number:04d}")
        for key, channels in groups.cases.items() for number, same in channels.items() for file in same
    ]  # fmt: skip


def _split_words(files: Iterable[File], wanted: Sequence[str], num_cases: int | None) -> list[ChannelFile]:
    """Files whose last words are the `wanted` ones, or the same two or more for every case; none unless all fit."""
    split = []
    for file in files:
        match = re.fullmatch(r"(.*?)[_./-]?([^\W\d_][^\W_]*)", file.key, re.DOTALL)
        if match is None:
            return []
        split.append(ChannelFile(key=match[1], path=file.path, channel=match[2]))
    words, cases = Counter(file.channel for file in split), Counter(file.key for file in split)
    if set(wanted) == {word.lower() for word in words}:
        return split
    complete = len(words) > 1 and set(words.values()) == {len(cases)} and set(cases.values()) == {len(words)}
    # `left` and `right` may be two scans as well as two channels of one: the number of labels decides.
    return split if complete and len(cases) == num_cases else []
