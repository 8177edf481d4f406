"""The folder of masks of prepared cases: what makes them is written down, and masks of something else move aside."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference.configuration import FoldWeights, add_weights
from inference.mask_stamps import MadeBy
from inference.model import configuration_name
from models.checkpoint import CheckpointContents
from utils.config import InferenceConfig, ModelConfig
from utils.errors import UserError
from utils.files import read_json, to_dict, write_json
from utils.locks import LOCK, folder_lock
from utils.runs import prepare_predictions
from utils.schema import FORMAT_VERSION, Plan, check_version

MADE_BY = "made_by.json"
_MASKS = ("*.nii.gz", "*.npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeMasks:
    """What predicts all masks of a folder. Written to `made_by.json`, before the first of them.

    Attributes:
        made_by: the network and its settings.
        cases: `training` or `test` -> case -> digest of what its shard was made from.
    """

    version: int = FORMAT_VERSION
    made_by: MadeBy
    cases: dict[str, dict[str, str]]

    def __post_init__(self) -> None:
        check_version(self.version, MADE_BY)

    def differences(self, now: MadeMasks) -> list[str]:
        """Why masks that are there do not go with those that are predicted now; those of test scans go with others."""
        found = self.made_by.differences(now.made_by)
        for kind, cases in now.cases.items():
            before = self.cases.get(kind, {})
            gone = sorted(before.keys() - cases.keys())
            other = sorted(case for case, stamp in before.items() if cases.get(case, stamp) != stamp)
            found += [f"of other cases, such as {gone[0]}"] if gone else []
            found += [f"of other scans or shards, such as those of {other[0]}"] if other else []
        return found


def made_by_checkpoint(
    stored: CheckpointContents, plan: Plan, model: ModelConfig, options: InferenceConfig, precision: str
) -> MadeBy:
    """What predicts prepared cases: one checkpoint, and how its network is applied."""
    # Heads that only training uses are no part of what predicts.
    network = dataclasses.replace(model, deep_supervision=False, deep_supr_num=0)
    digest = hashlib.sha256(json.dumps([to_dict(plan), to_dict(network)]).encode())
    add_weights(digest, FoldWeights(name=stored.path.name, fold=None, state_dict=stored.state_dict))
    settings = {
        "--tta": "on" if options.tta else "off",
        "--overlap": f"{options.overlap:g}",
        "--blend": options.blend,
        "the precision": precision,
    }
    return MadeBy(model=digest.hexdigest()[:16], name=configuration_name(plan), settings=settings)


@contextlib.contextmanager
def masks_folder(folder: Path, made: MadeMasks, *, is_first_process: bool) -> Iterator[Path]:
    """A folder to write the masks of a run into; until the block ends no other prediction writes there.

    A run that was interrupted leaves masks behind. Those of another network, of other settings or shards, and
    whatever nobody says the origin of, are moved into a folder beside it, so that no score is of both. Masks of test
    scans and of other cases by the same network may lie beside each other.

    Args:
        folder: is made where there is none.
        made: what predicts now.
        is_first_process: whether this process of the run is the one that clears and holds the folder.

    Raises:
        UserError: another prediction writes there, or nothing can be written.
    """
    prepare_predictions(folder)
    if not is_first_process:
        yield folder
        return
    with folder_lock(folder, wait=False):
        before, reasons = _before(folder, made)
        if reasons:
            kept = _move_aside(folder)
            print(f"the masks of an earlier run ({'; '.join(reasons)}) were moved to {kept}", flush=True)
        write_json(dataclasses.replace(made, cases={**before, **made.cases}), folder / MADE_BY)
        yield folder


def _before(folder: Path, now: MadeMasks) -> tuple[dict[str, dict[str, str]], Sequence[str]]:
    """The cases of which masks may stay in a folder, and why none can; no reason where there are none."""
    if not any(path for pattern in _MASKS for path in folder.glob(pattern)):
        return {}, ()
    try:
        made = read_json(MadeMasks, folder / MADE_BY)
    except UserError:
        return {}, ("nothing says what made them",)
    reasons = made.differences(now)
    return ({}, reasons) if reasons else (made.cases, ())


def _move_aside(folder: Path) -> Path:
    """Move all that a folder holds into a new one beside it; what says where it is from goes last.

    The new name is none that a page takes for masks of the training.
    """
    folder = folder.resolve()
    names = (folder.with_name(f"earlier_{folder.name}_{number}") for number in range(1, 10_000))
    kept = next(path for path in names if not path.exists())
    kept.mkdir()
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MADE_BY):
        if path.name != LOCK:
            # The other processes of the run try whether they can write there.
            with contextlib.suppress(FileNotFoundError):
                path.rename(kept / path.name)
    return kept
