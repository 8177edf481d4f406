"""A model is what one predicts with: one or several configurations, first stages of cascades, post-processing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference.configuration import ConfigurationModel, read_configuration
from inference.decision import DECISION_FILE, Decision, DecisionMember, PostProcessing
from inference.merging import Merge
from utils.configurations import CASCADE, FIRST_STAGE
from utils.errors import UserError
from utils.files import read_json
from utils.schema import Plan


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """The configurations whose probabilities are averaged, and the post-processing of the mask.

    All have one label scheme and see the same image channels; `names` are those of the configurations. With `merge`
    they are a set: label schemes differ, and masks are merged in place of the mean of probabilities.
    """

    source: Path
    names: tuple[str, ...]
    configurations: tuple[ConfigurationModel, ...]
    post_processing: PostProcessing = dataclasses.field(default_factory=PostProcessing)
    decision: Decision | None = None
    merge: Merge | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a single configuration without a first stage and without post-processing."""
        [first, *others] = self.configurations
        return not others and first.previous is None and self.post_processing.does_nothing

    @property
    def plan(self) -> Plan:
        """The first configuration's plan: channels and labels are those of all."""
        return self.configurations[0].plan

    def describe(self) -> str:
        """Configurations, folds and post-processing in a line."""
        parts = []
        for name, configuration in zip(self.names, self.configurations):
            previous = configuration.previous
            after = "" if previous is None else f" after {configuration_name(previous.plan)}"
            parts.append(f"{name}{after} ({', '.join(fold.name for fold in configuration.folds)})")
        post = "" if self.post_processing.does_nothing else f"; {self.post_processing.describe()}"
        return " + ".join(parts) + post

    def select(self, folds: Sequence[int] | None) -> Model:
        """The same with some folds of each configuration; first stages keep all theirs.

        Raises:
            UserError: a configuration has no such folds.
        """
        return dataclasses.replace(self, configurations=tuple(each.select(folds) for each in self.configurations))


def single_model(configuration: ConfigurationModel) -> Model:
    """A model of one configuration."""
    name = configuration_name(configuration.plan)
    return Model(source=configuration.source, names=(name,), configurations=(configuration,))


def configuration_name(plan: Plan) -> str:
    """What nnU-Net calls the configuration of a plan."""
    if plan.previous_stage is not None:
        return CASCADE
    if plan.stage.name == FIRST_STAGE:
        return plan.stage.name
    return "2d" if plan.stage.dim == 2 else "3d_fullres"


def folder_model(path: Path, folds: Sequence[int] | None = None, *, allow_unfinished: bool = False) -> Model:
    """The model of a decision.json (or its folder), or of one checkpoint or folder of checkpoints or folds.

    The first stage of a cascade that no decision names is looked for beside it, in `<task>_3d_lowres`.

    Raises:
        UserError: nothing there, configurations that do not belong together, or (see `read_configuration`) unfinished
            ones.
    """
    file = path / DECISION_FILE if path.is_dir() else path
    if file.name == DECISION_FILE and file.is_file():
        model = _decided(path, file, folds, allow_unfinished)
    else:
        configuration = read_configuration(path, folds, allow_unfinished=allow_unfinished)
        if configuration.plan.previous_stage is not None:
            beside = _first_stage_beside(path, configuration.plan)
            first = read_configuration(beside, allow_unfinished=allow_unfinished)
            configuration = dataclasses.replace(configuration, previous=first)
        model = single_model(configuration)
    check_fit(model)
    return model


def _decided(path: Path, file: Path, folds: Sequence[int] | None, allow_unfinished: bool) -> Model:
    decision = read_json(Decision, file)
    return Model(
        source=path,
        names=tuple(each.configuration for each in decision.members),
        configurations=tuple(
            _decided_configuration(file.parent, each, folds, allow_unfinished) for each in decision.members
        ),
        post_processing=decision.post_processing,
        decision=decision,
    )


def _decided_configuration(
    root: Path, choice: DecisionMember, folds: Sequence[int] | None, allow_unfinished: bool
) -> ConfigurationModel:
    configuration = read_configuration(
        root / choice.folder, folds, checkpoint=choice.checkpoint, allow_unfinished=allow_unfinished
    )
    if choice.previous is None:
        return configuration
    first = read_configuration(root / choice.previous, allow_unfinished=allow_unfinished)
    return dataclasses.replace(configuration, previous=first)


def _first_stage_beside(path: Path, plan: Plan) -> Path:
    name = f"{plan.task}_{plan.previous_stage}"
    # A checkpoint lies four folders below the one that holds both stages.
    parents = Path(os.path.abspath(path)).parents[:4]
    found = next((parent / name for parent in parents if (parent / name).is_dir()), None)
    if found is None:
        raise UserError(
            f"{path} is the second stage of a cascade: the folder of its first stage, {name}, is in no folder above "
            "it; put it beside, or give the folder that find_best_configuration.py made or the zip of export_model.py"
        )
    return found


def check_fit(model: Model) -> None:
    """Refuse configurations that do not belong together.

    Raises:
        UserError: label schemes or image channels differ, or a cascade lacks its first stage; both names are given.
    """
    first = model.configurations[0]
    for name, each in _stages(model):
        pair = f"{model.names[0]} ({first.source}) and {name} ({each.source})"
        if each.plan.labels != first.plan.labels:
            raise UserError(f"{pair} have different label schemes and cannot predict together")
        own, others = ([channel.name for channel in plan.channels] for plan in (first.plan, each.plan))
        if own != others:
            raise UserError(f"{pair} see different channels of a scan: {', '.join(own)}; {', '.join(others)}")
    for name, each in zip(model.names, model.configurations):
        _check_cascade(name, each)
    unknown = [name for name in model.post_processing.classes if name not in first.plan.labels.names[1:]]
    if unknown:
        raise UserError(
            f"the post-processing of {model.source} names {', '.join(unknown)}; the classes of {first.source} are "
            f"{', '.join(first.plan.labels.names[1:])}"
        )


def _stages(model: Model) -> Iterator[tuple[str, ConfigurationModel]]:
    """All configurations, then the first stages of cascades, each with what messages call it."""
    yield from zip(model.names, model.configurations)
    for name, each in zip(model.names, model.configurations):
        if each.previous is not None:
            yield f"the first stage of {name}", each.previous


def _check_cascade(name: str, configuration: ConfigurationModel) -> None:
    wanted, previous = configuration.plan.previous_stage, configuration.previous
    advice = "find_best_configuration.py writes a decision that fits"
    if (wanted is None) != (previous is None):
        needs = "lacks its first stage" if previous is None else "is no second stage of a cascade"
        raise UserError(f"{name} ({configuration.source}) {needs}; {advice}")
    if previous is not None and (found := configuration_name(previous.plan)) != wanted:
        raise UserError(
            f"{name} ({configuration.source}) comes after {wanted}, but {previous.source} is {found}; {advice}"
        )
