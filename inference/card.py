"""What a model is, in words and numbers: its card, which an exported zip carries and `nnunet info` shows."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

from inference.model import Model
from utils.archives import read_member
from utils.errors import UserError
from utils.files import from_dict
from utils.json_text import parse_json
from utils.schema import FORMAT_VERSION, check_version

CARD, NOTE = "card.json", "LICENSE_NOTE.txt"
LICENSE_NOTE = (
    "The program that reads this file is under the Apache License 2.0. The weights were learned from a data set whose\n"
    "licence may restrict what they may be used for: ask whoever gave you this file. Not a medical device; not for\n"
    "diagnosis or treatment.\n"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What whoever gets a model wants to know before using it.

    Attributes:
        dataset: on which it was trained.
        configurations: name and folds of each.
        channels: what it sees, in order.
        structures: what it draws: name -> value in the mask.
        spacing_mm: voxel size at which each configuration works.
        patch: window of each configuration, in voxels.
        dice: mean Dice on cases that the network had not seen, by what was scored; empty where nothing says.
        note: of whoever exported it.
    """

    version: int
    dataset: str
    configurations: tuple[str, ...]
    channels: tuple[str, ...]
    structures: dict[str, int]
    spacing_mm: tuple[tuple[float, ...], ...]
    patch: tuple[tuple[int, ...], ...]
    post_processing: str
    dice: dict[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        check_version(self.version, "card")


def make_card(model: Model, dice: Mapping[str, float] | None = None, note: str = "") -> Card:
    """The card of a model; `dice` are scores of its cross-validation where its decision says none."""
    scores = {} if model.decision is None else model.decision.scores
    plan, stages = model.plan, [each.plan.stage for each in model.configurations]
    labels = dict(zip(plan.labels.names[1:], plan.labels.values[1:]))
    return Card(
        version=FORMAT_VERSION, dataset=plan.dataset, configurations=tuple(model.describe().split(" + ")),
        channels=tuple(channel.name for channel in plan.channels),
        structures=labels if model.merge is None else dict(model.merge.labels),
        spacing_mm=tuple(stage.spacing_mm for stage in stages), patch=tuple(stage.patch_size for stage in stages),
        post_processing=model.post_processing.describe(), dice=dict(scores or dice or {}), note=note,
    )  # fmt: skip


def read_card(path: Path) -> Card | None:
    """The card in an exported zip; None where there is none.

    Raises:
        UserError: it is malformed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = parse_json(read_member(archive, CARD))
    except (OSError, zipfile.BadZipFile, KeyError):
        return None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{CARD} in {path} cannot be read: {error}; export the model again") from None
    return from_dict(Card, content, source=f"{CARD} in {path}")


def license_note(path: Path) -> str:
    """What the weights of a model may be used for, as its zip says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return read_member(archive, NOTE).decode("utf-8", "replace")
    except (OSError, zipfile.BadZipFile, KeyError, RuntimeError):
        return LICENSE_NOTE


def card_lines(card: Card, license_note: str) -> list[str]:
    """The card for people."""
    grids = [
        f"{'x'.join(map(str, patch))} voxels of {' x '.join(f'{size:g}' for size in spacing)} mm"
        for patch, spacing in zip(card.patch, card.spacing_mm)
    ]
    dice = [f"{name} {value:.4f}" for name, value in card.dice.items()]
    facts = {
        "data set": card.dataset, "model": " + ".join(card.configurations), "channels": ", ".join(card.channels),
        "structures": ", ".join(f"{name} = {value}" for name, value in card.structures.items()),
        "window": "; ".join(grids), "post-processing": card.post_processing,
        "Dice": ", ".join(dice) or "not known: its cross-validation was not at hand when it was exported",
        "note": card.note, "licence": " ".join(license_note.split()),
    }  # fmt: skip
    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items() if value]
