"""What lies in a folder, and whether two states of it are the same but for what differs from run to run anyway.

What may differ is found out and not listed: two uninterrupted runs of the same command are compared first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

Leaves = dict[str, str]

OF_THE_RUN = (
    "/outcome/cases/", "/outcome/written", "/outcome/kept", "/environment/", "/options/run/resume_training",
    "/options/given", "/command", "/working_folder", "/time",
)  # fmt: skip
"""In run.json: what the run that ended did itself, as continuing what another had begun, where, and when."""


OF_CLOCKS = re.compile(r".*/(elapsed|train|epoch|used)_s$|.*/seconds$")
"""Wall times, which two runs have in common now and then, as they are rounded."""


OF_DATES = re.compile(r"/source_stamp|/masks/[^/]+/scan$")
"""What follows the dates of files that others have written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """Files of a folder: path -> what they hold, as (name of a value -> its digest)."""

    files: Mapping[str, Leaves]
    folders: frozenset[str]


def read_tree(folder: Path) -> Tree:
    """Read all files below a folder; TensorBoard's are left out, as each run adds one with the time in its name."""
    files, folders = {}, set()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and not path.is_symlink():
            folders.add(name)
        elif not path.name.startswith("events.out.tfevents"):
            files[name] = _leaves(path)
    return Tree(files=files, folders=frozenset(folders))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _leaves(path: Path) -> Leaves:
    content = path.read_bytes()
    kind = path.name.rpartition(".")[2]
    try:
        if kind == "json":
            return dict(_walk(json.loads(content)))
        if kind == "ckpt":
            return dict(_walk(torch.load(io.BytesIO(content), weights_only=True)))
        if kind == "zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = {info.filename: archive.read(info) for info in archive.infolist()}
            return {
                f"{name}:{key}": value for name, member in members.items()
                for key, value in (_walk(json.loads(member)) if name.endswith(".json") else [("", _digest(member))])
            }  # fmt: skip
    except Exception as error:
        return {"": f"{_digest(content)} damaged: {type(error).__name__}"}
    if kind == "log":
        # What happened, interruptions among it; that it is there is compared.
        return {}
    if kind in ("csv", "txt"):
        return {str(number): line for number, line in enumerate(content.decode(errors="replace").splitlines())}
    return {"": _digest(content)}


def _walk(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Tensor):
        yield name, _digest(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _walk(each, f"{name}/{key}")
        yield f"{name}/", "mapping"
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _walk(each, f"{name}/{number}")
        yield f"{name}/#", str(len(value))
    else:
        yield name, repr(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What a finished command leaves: the tree of one run, and what another run (unless `once`) did otherwise."""

    tree: Tree
    varying: frozenset[tuple[str, str]]
    varying_files: frozenset[str]
    once: bool = False

    def to_json(self) -> dict[str, Any]:
        """What `expected_from` reads."""
        return {
            "files": dict(self.tree.files), "folders": sorted(self.tree.folders), "varying": sorted(self.varying),
            "varying_files": sorted(self.varying_files), "once": self.once,
        }  # fmt: skip

    def faults(self, found: Tree, *, but: re.Pattern[str] | None = None) -> list[str]:
        """In what a state differs that should not; values whose names begin as `but` says may."""
        return [
            *(f"{name} is missing" for name in sorted(self.tree.files.keys() - found.files.keys())),
            *(f"{name} is left over" for name in sorted(found.files.keys() - self.tree.files.keys())),
            *(f"{name}/ is missing" for name in sorted(self.tree.folders - found.folders)),
            *(f"{name}/ is left over" for name in sorted(found.folders - self.tree.folders)),
            *self._changed(found, but),
        ]

    def _changed(self, found: Tree, but: re.Pattern[str] | None) -> Iterator[str]:
        for name in sorted(self.tree.files.keys() & found.files.keys()):
            if name in self.varying_files:
                continue
            ours, theirs = self.tree.files[name], found.files[name]
            for key in sorted(ours.keys() | theirs.keys()):
                if name.endswith("run.json") and key.startswith(OF_THE_RUN):
                    continue
                if OF_CLOCKS.match(key):
                    continue
                if but is not None and but.match(key):
                    continue
                if (name, key) not in self.varying and ours.get(key) != theirs.get(key):
                    yield f"{name} differs in {key or 'its bytes'}: {ours.get(key)} -> {theirs.get(key)}"[:300]
                    break


def expected_of(first: Tree, second: Tree) -> Expected:
    """What two uninterrupted runs have in common.

    Raises:
        ValueError: they do not even leave the same files.
    """
    if first.files.keys() != second.files.keys() or first.folders != second.folders:
        raise ValueError(f"two runs left different files: {sorted(first.files.keys() ^ second.files.keys())}")
    varying, whole = set(), set()
    for name, ours in first.files.items():
        theirs = second.files[name]
        if ours.keys() != theirs.keys() or (ours != theirs and set(ours) == {""}):
            whole.add(name)
        varying |= {(name, key) for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}
    return Expected(tree=first, varying=frozenset(varying), varying_files=frozenset(whole))


def expected_from(content: Mapping[str, Any]) -> Expected:
    """Read what `Expected.to_json` gave."""
    return Expected(
        tree=Tree(files=content["files"], folders=frozenset(content["folders"])), once=content["once"],
        varying=frozenset((name, key) for name, key in content["varying"]),
        varying_files=frozenset(content["varying_files"]),
    )  # fmt: skip


def put_back(state: Path, folder: Path) -> None:
    """Make a folder what it was, times of files included."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder, symlinks=True)
