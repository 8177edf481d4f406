"""A set of models that predict parts of one mask: a small JSON file says which, and what their classes are in the mask.

docs/how-to/nnunet-v2.md has an example.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.archive import load_model
from inference.decided import is_set_file
from inference.merging import Merge, Order, Orientation
from inference.model import Model
from utils.errors import UserError
from utils.files import from_dict
from utils.json_text import parse_json
from utils.schema import FORMAT_VERSION, LabelScheme, check_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetPart:
    """One model of a set.

    Attributes:
        model: where it lies, relative to the file; all that `--model` takes but a set or an ensemble.
        classes: name in the model -> name in the set; None takes all of them under their own names.
    """

    model: str
    classes: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and not self.classes:
            raise ValueError(f"{self.model}: classes is empty; name some, or leave it out to take all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSet:
    """The content of the file. Where models disagree, the last of `parts` that says more than background counts.

    Attributes:
        labels: name -> value (1 to 255) of each class in the merged mask.
        orientation: `ras`: scans are turned to RAS+ for the models; `stored`: left as they lie in their files.
        spacing_mm: voxel size along S, A, R to which scans are resampled for all models; None: their own.
        order: of the splines by which that is done: 1, linear (as TotalSegmentator 2.18), or 3, cubic (as before).
    """

    version: int
    orientation: Orientation
    labels: dict[str, int]
    parts: tuple[SetPart, ...]
    spacing_mm: tuple[float, float, float] | None = None
    order: Order = 1

    def __post_init__(self) -> None:
        check_version(self.version, "set of models")
        if not self.parts or not self.labels:
            raise ValueError("a set of models needs parts and labels")
        wrong = [f"{name} = {value}" for name, value in self.labels.items() if not 1 <= value <= 255]
        if wrong:
            raise ValueError(f"values of labels lie in 1..255 (0 is the background), got {', '.join(wrong)}")
        twice = [value for value, count in Counter(self.labels.values()).items() if count > 1]
        if twice:
            names = [name for name, value in self.labels.items() if value == twice[0]]
            raise ValueError(f"{', '.join(names)} have the same value {twice[0]}")
        if self.spacing_mm is not None and not all(size > 0 for size in self.spacing_mm):
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")


def load_model_or_set(path: Path, folds: Sequence[int] | None = None, *, allow_unfinished: bool = False) -> Model:
    """What `load_model` loads, or the models of a set, whose masks are merged.

    Args:
        path: the model, or the JSON file of a set.
        folds: those of every model; None takes all.
        allow_unfinished: see `load_model`.

    Raises:
        UserError: as `load_model`; the file of a set is wrong, or its models do not fit it.
    """
    if not is_set_file(path):
        return load_model(path, folds, allow_unfinished=allow_unfinished)
    chosen = read_model_set(path)
    models = [_part(path, part, folds, allow_unfinished) for part in chosen.parts]
    _require_same_channels(path, chosen, models)
    merge = Merge(
        labels=chosen.labels, values=_values(path, chosen, [model.plan.labels for model in models]),
        orientation=chosen.orientation, spacing_mm=chosen.spacing_mm, order=chosen.order,
    )  # fmt: skip
    return Model(
        source=path, names=tuple(part.model for part in chosen.parts),
        configurations=tuple(model.configurations[0] for model in models), merge=merge,
    )  # fmt: skip


def read_model_set(path: Path) -> ModelSet:
    """Read the file of a set.

    Raises:
        UserError: it cannot be read, or says what is impossible.
    """
    try:
        data = parse_json(path.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as the JSON of a set of models: {error}") from None
    if isinstance(data, dict) and "version" not in data:
        raise UserError(f'{path} is no set of models: it lacks "version": {FORMAT_VERSION}')
    return from_dict(ModelSet, data, source=str(path))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} stands twice in one mapping")
    return dict(pairs)


def _part(path: Path, part: SetPart, folds: Sequence[int] | None, allow_unfinished: bool) -> Model:
    place = path.parent / part.model
    if not place.exists():
        raise UserError(f"{path}: there is no {place}; models are looked for from the folder of that file")
    model = load_model(place, folds, allow_unfinished=allow_unfinished)
    if len(model.configurations) > 1 or not model.post_processing.does_nothing:
        raise UserError(
            f"{path}: {part.model} is {model.describe()}; a set takes no ensembles and no post-processing: give the "
            "folder or zip of one configuration"
        )
    return model


def _require_same_channels(path: Path, chosen: ModelSet, models: Sequence[Model]) -> None:
    first, *others = ([channel.name for channel in model.plan.channels] for model in models)
    for part, names in zip(chosen.parts[1:], others):
        if names != first:
            raise UserError(
                f"{path}: {chosen.parts[0].model} and {part.model} see different channels of a scan: "
                f"{', '.join(first)}; {', '.join(names)}"
            )


def _values(path: Path, chosen: ModelSet, schemes: Sequence[LabelScheme]) -> tuple[dict[int, int], ...]:
    """Of each model: value in its mask -> value in the merged mask."""
    found, owners = [], dict[str, str]()
    for part, scheme in zip(chosen.parts, schemes):
        own = _written(scheme)
        classes = {name: name for name in own} if part.classes is None else part.classes
        unknown = [name for name in classes if name not in own]
        if unknown:
            raise UserError(f"{path}: {part.model} has no class {', '.join(unknown)}; it has {', '.join(own)}")
        nameless = [name for name in classes.values() if name not in chosen.labels]
        if nameless:
            raise UserError(f"{path}: labels has no value for {', '.join(nameless)}, classes of {part.model}")
        for name in dict.fromkeys(classes.values()):
            if name in owners:
                raise UserError(f"{path}: {name} comes from both {owners[name]} and {part.model}; leave it out of one")
            owners[name] = part.model
        found.append({own[name]: chosen.labels[target] for name, target in classes.items()})
    return tuple(found)


def _written(scheme: LabelScheme) -> dict[str, int]:
    """Name -> value in the model's masks: classes, or regions by what is written for them."""
    if scheme.regions:
        return {region.name: scheme.values[region.write_class] for region in scheme.regions}
    return dict(zip(scheme.names[1:], scheme.values[1:]))
