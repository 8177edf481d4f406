"""What each mask of a folder was made from: `masks.json`, so that no mask of another model or scan is taken for one.

Cases -> the scan, the model, the settings, and how the files looked when they were written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from inference.configuration import ConfigurationModel, add_weights
from inference.model import configuration_name
from inference.predictor import Predictor
from inference.scans import Scan
from utils.files import file_digest, to_dict
from utils.runs import STAMPS
from utils.schema import FORMAT_VERSION, check_version

ENGINE = "the engine"
UNSAID = {ENGINE: "torch"}
"""What is meant where a stamp does not name a setting, as those of earlier versions do not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What predicts.

    Attributes:
        model: digest of weights, plans and network options.
        name: configurations and folds, for people.
        settings: what else changes a mask, by the names that people know.
    """

    model: str
    name: str
    settings: dict[str, str]

    def differences(self, now: MadeBy) -> list[str]:
        """In what it differs from what predicts now."""
        found = []
        if self.name != now.name:
            found.append(f"made by {self.name}, now it is {now.name}")
        elif self.model != now.model:
            found.append(f"made by other weights of {self.name}")
        names = dict.fromkeys([*self.settings, *now.settings])
        each = ((name, _said(self.settings, name), _said(now.settings, name)) for name in names)
        return found + [f"{name} was {old}, now it is {new}" for name, old, new in each if old != new]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileStamp:
    """How a file looked when it was written; `digest` of the content is there for masks, which are small."""

    size: int
    mtime_ns: int
    digest: str | None = None

    @classmethod
    def of(cls, path: Path, *, content: bool) -> FileStamp:
        """Of a file that is there."""
        found = path.stat()
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, digest=file_digest(path) if content else None)

    def holds(self, path: Path) -> bool:
        """Whether the file is still that one; a copy of a mask with another time is."""
        try:
            found = path.lstat()
            if found.st_size != self.size:
                return False
            return found.st_mtime_ns == self.mtime_ns or (self.digest is not None and file_digest(path) == self.digest)
        except OSError:
            return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskStamp:
    """What a mask, and perhaps its probabilities, were made from. `scan` is a digest; see `scan_stamp`."""

    scan: str
    made_by: MadeBy
    mask: FileStamp
    probabilities: FileStamp | None = None
    ending: str = ".nii.gz"
    """Of the mask's file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StampFile:
    """All masks of a folder. Written to `masks.json` (see `inference.stamp_files`)."""

    version: int = FORMAT_VERSION
    masks: dict[str, MaskStamp] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_version(self.version, STAMPS)


def scan_stamp(scan: Scan) -> str:
    """Digest of names, sizes and times of a scan's files, wherever they lie; a missing file is reported in its turn."""
    facts = []
    for image in scan.images:
        try:
            found = image.stat()
        except OSError:
            facts.append((image.name, 0, 0))
        else:
            facts.append((image.name, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def made_by(predictor: Predictor) -> MadeBy:
    """What predicts: the configurations, and what is done to their mask."""
    digest = hashlib.sha256()
    for each in predictor.configurations:
        _add_weights(digest, each.configuration)
    first = predictor.configurations[0]
    settings = {
        "--tta": "on" if first.settings.tta else "off",
        "--overlap": f"{first.settings.overlap:g}",
        "--blend": first.settings.blend,
        "the precision": str(first.ensemble.amp or torch.float32).removeprefix("torch."),
        "the post-processing": predictor.post_processing.describe(),
    }
    if first.engine is not None:
        settings[ENGINE] = first.engine.name
    if predictor.merge is not None:
        settings["the set of models"] = predictor.merge.describe()
    names = (f"{configuration_name(p.plan)} ({', '.join(p.ensemble.names)})" for p in predictor.configurations)
    return MadeBy(model=digest.hexdigest()[:16], name=" + ".join(names), settings=settings)


def _said(settings: dict[str, str], name: str) -> str:
    return settings.get(name, UNSAID.get(name, "unknown"))


def _add_weights(digest: hashlib._Hash, configuration: ConfigurationModel) -> None:
    """Add what a configuration and its first stage compute with: one that was trained again is another one."""
    # Heads that only training uses are no part of what predicts.
    network = dataclasses.replace(configuration.model, deep_supervision=False, deep_supr_num=0)
    digest.update(json.dumps([to_dict(configuration.plan), to_dict(network)]).encode())
    for fold in configuration.folds:
        add_weights(digest, fold)
    if configuration.previous is not None:
        digest.update(b"previous")
        _add_weights(digest, configuration.previous)
