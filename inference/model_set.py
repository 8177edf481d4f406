"""Models that predict together: the folds of one configuration or of several, cascades, and what is done afterwards."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from inference.decision import DECISION_FILE, Decision, DecisionMember, PostProcessing
from inference.model import ModelBundle, checkpoint_bundle
from utils.configurations import CASCADE, FIRST_STAGE
from utils.errors import UserError
from utils.files import read_json
from utils.schema import Plan


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelSet:
    """The models whose probabilities are averaged, and the post-processing of the mask.

    All have one label scheme and see the same image channels; `names` are those of their configurations.
    """

    source: Path
    names: tuple[str, ...]
    members: tuple[ModelBundle, ...]
    post_processing: PostProcessing = dataclasses.field(default_factory=PostProcessing)
    decision: Decision | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a single model without a first stage and without post-processing."""
        return len(self.members) == 1 and self.members[0].previous is None and self.post_processing.does_nothing

    @property
    def plan(self) -> Plan:
        """The first model's plan: channels and labels are those of all."""
        return self.members[0].plan

    def describe(self) -> str:
        """Configurations, folds and post-processing in a line."""
        parts = []
        for name, member in zip(self.names, self.members):
            after = "" if member.previous is None else f" after {configuration_name(member.previous.plan)}"
            parts.append(f"{name}{after} ({', '.join(fold.name for fold in member.folds)})")
        post = "" if self.post_processing.does_nothing else "; largest component of " + ", ".join(
            [*(["all foreground"] if self.post_processing.foreground else []), *self.post_processing.classes]
        )  # fmt: skip
        return " + ".join(parts) + post

    def select(self, folds: Sequence[int] | None) -> ModelSet:
        """The same with some folds of each model; first stages keep all theirs.

        Raises:
            UserError: a model has no such folds.
        """
        return dataclasses.replace(self, members=tuple(member.select(folds) for member in self.members))


def single_model(bundle: ModelBundle) -> ModelSet:
    """A set of one model."""
    return ModelSet(source=bundle.source, names=(configuration_name(bundle.plan),), members=(bundle,))


def configuration_name(plan: Plan) -> str:
    """What nnU-Net calls the configuration of a plan."""
    if plan.previous_stage is not None:
        return CASCADE
    if plan.stage.name == FIRST_STAGE:
        return plan.stage.name
    return "2d" if plan.stage.dim == 2 else "3d_fullres"


def folder_model_set(path: Path, folds: Sequence[int] | None = None, *, allow_unfinished: bool = False) -> ModelSet:
    """The models of a decision.json (or its folder), or of one checkpoint or folder of checkpoints or folds.

    The first stage of a cascade that no decision names is looked for beside it, in `<task>_3d_lowres`.

    Raises:
        UserError: nothing there, models that do not belong together, or (see `checkpoint_bundle`) unfinished ones.
    """
    file = path / DECISION_FILE if path.is_dir() else path
    if file.name == DECISION_FILE and file.is_file():
        models = _decided(path, file, folds, allow_unfinished)
    else:
        bundle = checkpoint_bundle(path, folds, allow_unfinished=allow_unfinished)
        if bundle.plan.previous_stage is not None:
            first = checkpoint_bundle(_first_stage_beside(path, bundle.plan), allow_unfinished=allow_unfinished)
            bundle = dataclasses.replace(bundle, previous=first)
        models = single_model(bundle)
    check_fit(models)
    return models


def _decided(path: Path, file: Path, folds: Sequence[int] | None, allow_unfinished: bool) -> ModelSet:
    decision = read_json(Decision, file)
    return ModelSet(
        source=path,
        names=tuple(member.configuration for member in decision.members),
        members=tuple(_member(file.parent, member, folds, allow_unfinished) for member in decision.members),
        post_processing=decision.post_processing,
        decision=decision,
    )


def _member(root: Path, member: DecisionMember, folds: Sequence[int] | None, allow_unfinished: bool) -> ModelBundle:
    allowed = {"allow_unfinished": allow_unfinished}
    bundle = checkpoint_bundle(root / member.folder, folds, checkpoint=member.checkpoint, **allowed)
    if member.previous is None:
        return bundle
    return dataclasses.replace(bundle, previous=checkpoint_bundle(root / member.previous, **allowed))


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


def check_fit(models: ModelSet) -> None:
    """Refuse models that do not belong together.

    Raises:
        UserError: label schemes or image channels differ, or a cascade lacks its first stage; both names are given.
    """
    first = models.members[0]
    stages = [(name, bundle) for name, bundle in zip(models.names, models.members)]
    stages += [
        (f"the first stage of {name}", bundle.previous) for name, bundle in stages if bundle.previous is not None
    ]
    for name, bundle in stages:
        pair = f"{models.names[0]} ({first.source}) and {name} ({bundle.source})"
        if bundle.plan.labels != first.plan.labels:
            raise UserError(f"{pair} have different label schemes and cannot predict together")
        own, others = ([channel.name for channel in plan.channels] for plan in (first.plan, bundle.plan))
        if own != others:
            raise UserError(f"{pair} see different channels of a scan: {', '.join(own)}; {', '.join(others)}")
    for name, bundle in zip(models.names, models.members):
        _check_cascade(name, bundle)
    unknown = [name for name in models.post_processing.classes if name not in first.plan.labels.names[1:]]
    if unknown:
        raise UserError(
            f"the post-processing of {models.source} names {', '.join(unknown)}; the classes of {first.source} are "
            f"{', '.join(first.plan.labels.names[1:])}"
        )


def _check_cascade(name: str, bundle: ModelBundle) -> None:
    wanted, previous = bundle.plan.previous_stage, bundle.previous
    advice = "find_best_configuration.py writes a decision that fits"
    if (wanted is None) != (previous is None):
        needs = "lacks its first stage" if previous is None else "is no second stage of a cascade"
        raise UserError(f"{name} ({bundle.source}) {needs}; {advice}")
    if previous is not None and (found := configuration_name(previous.plan)) != wanted:
        raise UserError(f"{name} ({bundle.source}) comes after {wanted}, but {previous.source} is {found}; {advice}")
