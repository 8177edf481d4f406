"""Converted networks are kept: an entry for each network and each version of what converts, in the user's cache.

An entry is a folder that appears whole: `network.onnx`, and `made.json` with the digest of the file, which is compared
on each use. Beside them lies which runtimes have shown that they compute with it what torch computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from inference.configuration import ConfigurationModel, FoldWeights, add_weights, build_networks
from inference.engines.agreement import Agreement
from inference.engines.conversion import OPSET, write_onnx
from utils.cache import cache_folder, drop_oldest
from utils.errors import UserError, describe_fault
from utils.files import new_folder, read_json, to_dict, write_json

FORM = 1
"""Grows when this program converts otherwise."""
NETWORK, MADE = "network.onnx", "made.json"
MOST_BYTES = 10 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What lies in an entry."""

    digest: str
    made_from: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """A converted network: its ONNX file, and notes on the runtimes that were checked with it."""

    path: Path

    def is_checked(self, runtime: str) -> bool:
        """Whether this version of a runtime was found to agree with torch on this kind of CPU."""
        try:
            return read_json(Agreement, self._note(runtime)).holds
        except UserError:
            return False

    def note(self, runtime: str, agreement: Agreement) -> None:
        """Remember what a check found; where nothing can be written the next run checks again."""
        with contextlib.suppress(OSError):
            write_json(agreement, self._note(runtime))

    def _note(self, runtime: str) -> Path:
        place = f"{runtime}-{_version(runtime)}-{torch.backends.cpu.get_cpu_capability()}"
        return self.path.with_name(f"checked-{re.sub(r'[^A-Za-z0-9.]+', '-', place)}.json")


def network_key(configuration: ConfigurationModel, fold: FoldWeights) -> tuple[str, dict[str, str]]:
    """Digest of everything that the converted network depends on, and the versions among it."""
    made_from = {"form": str(FORM), "opset": str(OPSET), **{name: _version(name) for name in ("torch", "onnxscript")}}
    plan = configuration.plan
    network = dataclasses.replace(configuration.model, deep_supervision=False, deep_supr_num=0)
    facts = [made_from, to_dict(plan.stage), plan.in_channels, plan.labels.num_outputs, to_dict(network)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    add_weights(digest, fold)
    return digest.hexdigest(), made_from


@contextlib.contextmanager
def converted_network(configuration: ConfigurationModel, fold: FoldWeights) -> Iterator[Converted]:
    """The network of a fold, from the cache or made now; its file is there while the block runs.

    Where there is no cache folder that is this user's alone and can be written, the file is made for this run, with a
    warning.
    """
    key, made_from = network_key(configuration, fold)
    entry = _kept(key, configuration, fold, made_from)
    if entry is not None:
        yield Converted(path=entry / NETWORK)
        return
    with tempfile.TemporaryDirectory(prefix="nnunet-network-") as folder:
        _make(Path(folder), configuration, fold, made_from)
        yield Converted(path=Path(folder) / NETWORK)


def _kept(key: str, configuration: ConfigurationModel, fold: FoldWeights, made_from: dict[str, str]) -> Path | None:
    """The entry of a network in the cache; None, with a warning, where there is no place for it.

    Raises:
        UserError: the network cannot be converted.
    """
    reason, folder = "", None
    try:
        folder = cache_folder("networks")
    except UserError as error:
        reason = str(error)
    if folder is not None:
        try:
            _keep(folder / key, configuration, fold, made_from)
            return folder / key
        except OSError as error:
            reason = describe_fault(error)
    print(f"warning: {reason}; {fold.name} is converted for this run only", file=sys.stderr)
    return None


def _keep(entry: Path, configuration: ConfigurationModel, fold: FoldWeights, made_from: dict[str, str]) -> None:
    """Make an entry where it is missing or damaged, and note that it is used.

    Raises:
        OSError: nothing can be written there.
    """
    if not _is_whole(entry):
        shutil.rmtree(entry, ignore_errors=True)
        try:
            with new_folder(entry) as folder:
                _make(folder, configuration, fold, made_from)
        except OSError:
            # Of two processes that convert the same network one is first; the other takes what is there.
            if not _is_whole(entry):
                raise
        # This one is good, whatever becomes of others.
        with contextlib.suppress(OSError):
            drop_oldest(entry.parent, most_bytes=MOST_BYTES, keep=entry)
    with contextlib.suppress(OSError):
        os.utime(entry)


def plain_network(configuration: ConfigurationModel, fold: FoldWeights) -> nn.Module:
    """The network of a fold with torch's own operators, on the CPU.

    Raises:
        UserError: the weights do not fit the plan.
    """
    [network] = build_networks(dataclasses.replace(configuration, folds=(fold,)), torch.device("cpu"))
    return network


def _make(folder: Path, configuration: ConfigurationModel, fold: FoldWeights, made_from: dict[str, str]) -> None:
    print(f"converting {fold.name} to ONNX, once for this network", flush=True)
    path = folder / NETWORK
    write_onnx(path, plain_network(configuration, fold), configuration.plan)
    write_json(Made(digest=_digest(path), made_from=made_from), folder / MADE)


def _is_whole(entry: Path) -> bool:
    try:
        return read_json(Made, entry / MADE).digest == _digest(entry / NETWORK)
    except (OSError, UserError):
        return False


def _digest(path: Path) -> str:
    """Of an ONNX file, and of the weights beside it where they are large."""
    digest = hashlib.sha256()
    for file in sorted(path.parent.glob(f"{path.name}*")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return torch.__version__ if package == "torch" else version(package)
    except PackageNotFoundError:
        return "none"
