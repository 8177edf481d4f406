"""plan.json in a folder of shards: written last, kept where a person edited it, never beside another plan's shards.

`plan.auto.json` is the plan as it was made; a plan.json that differs from it was edited. `plan.edited.json` is an
edited plan while the shards that it asks for are being written.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_preprocessing.readiness import plan_stamps, preprocess_command
from data_preprocessing.shards import list_cases, stamp_plan
from utils.errors import UserError, list_problems
from utils.files import read_json, write_json
from utils.json_text import parse_json
from utils.outdated import forget_outdated
from utils.schema import Plan

PLAN, AUTOMATIC, PENDING, OLD = "plan.json", "plan.auto.json", "plan.edited.json", "plan.old.json"
EDITED = "edited by hand"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """The plan to work by."""

    plan: Plan
    automatic: Plan
    """What the planner made; for an edited plan, what it made before the edits."""
    edits: tuple[str, ...]
    """What a person changed; empty where the plan is the automatic one."""


def choose_plan(folder: Path, automatic: Plan, *, overwrite: bool) -> ChosenPlan:
    """The stored plan where it was edited by hand, else the automatic one.

    With `overwrite` it is always the automatic one; an edited plan is then renamed to plan.old.json.

    Raises:
        UserError: the stored plan is malformed, or edited into something that does not fit the data set or the flags.
    """
    unedited = ChosenPlan(plan=automatic, automatic=automatic, edits=())
    path = next((folder / name for name in (PLAN, PENDING) if (folder / name).is_file()), None)
    if path is None:
        return unedited
    stored: Plan | None = None
    try:
        stored = read_json(Plan, path)
    except UserError as error:
        if not overwrite:
            raise UserError(f"{error}. Correct it, or plan anew with --overwrite.") from None
    previous = _previous(folder) or automatic
    # Where the file does not say when intensities are normalised nobody chose the old order: the new one is taken.
    aged = stored is not None and not _names_order(path)
    if stored is not None and aged:
        stored, previous = (
            dataclasses.replace(plan, normalize_first=automatic.normalize_first) for plan in (stored, previous)
        )
    edits = () if stored is None else _differences(stored, previous)
    if overwrite and (edits or stored is None):
        path.replace(folder / OLD)
        print(f"{path} was {EDITED}; it is now {OLD}")
    if overwrite or not edits or stored is None:
        return unedited
    _check_edited(stored, automatic, path)
    print(f"{path} was {EDITED} ({', '.join(edits)}) and is kept; --overwrite plans anew")
    if aged and automatic.normalize_first:
        print(f"{path} is of an earlier version: from now on scans are normalised before they are resampled")
    reasons = previous.reasons | dict.fromkeys(edits, EDITED)
    return ChosenPlan(plan=dataclasses.replace(stored, reasons=reasons), automatic=previous, edits=edits)


def withdraw_plan(folder: Path, chosen: ChosenPlan) -> None:
    """Take plan.json away before any shard is replaced or removed: a killed run must not leave a mixture."""
    path = folder / PLAN
    if not chosen.edits:
        path.unlink(missing_ok=True)
    elif path.is_file():
        path.replace(folder / PENDING)


def set_plan_aside(folder: Path) -> None:
    """Take plan.json away before it is known which plan comes next; one that was edited is kept for the next run."""
    path = folder / PLAN
    try:
        stored, previous = read_json(Plan, path), _previous(folder)
        edited = previous is None or bool(_differences(stored, previous))
    except UserError:
        edited = True
    path.replace(folder / PENDING) if edited else path.unlink(missing_ok=True)


def store_plan(folder: Path, chosen: ChosenPlan) -> None:
    """Write plan.json, which says that the folder is ready for use."""
    if not chosen.edits:
        # Beside a newer plan.auto.json it would look edited.
        (folder / PLAN).unlink(missing_ok=True)
    write_json(chosen.automatic, folder / AUTOMATIC)
    write_json(chosen.plan, folder / PLAN)
    (folder / PENDING).unlink(missing_ok=True)
    forget_outdated(folder)


def read_plan(folder: Path) -> Plan:
    """The plan of a folder of shards.

    Raises:
        UserError: there is none, it is malformed, or shards beside it were made by another one.
    """
    plan = read_json(Plan, folder / PLAN)
    wanted = stamp_plan(plan)
    other = [case for case, stamp in plan_stamps(folder, list_cases(folder)).items() if stamp != wanted]
    if other:
        raise list_problems(
            f"{folder / PLAN} asks for other shards than those beside it: it was edited, or these were replaced "
            "or made by an earlier version of the program:",
            other, advice="Run preprocess.py again with the same flags as before; it keeps an edited plan: "
            f"{preprocess_command(folder, plan)}",
        )  # fmt: skip
    return plan


def _previous(folder: Path) -> Plan | None:
    """The automatic plan that the stored one was written with."""
    try:
        return read_json(Plan, folder / AUTOMATIC)
    except UserError:
        return None


def _names_order(path: Path) -> bool:
    return "normalize_first" in parse_json(path.read_text(encoding="utf-8"))


def _differences(plan: Plan, other: Plan) -> tuple[str, ...]:
    """Names of the numbers in which two plans differ, by the names that reasons have."""
    names = [f.name for f in dataclasses.fields(Plan) if f.name not in ("stage", "channels", "reasons")]
    differing = [name for name in names if getattr(plan, name) != getattr(other, name)]
    differing += [
        f.name for f in dataclasses.fields(plan.stage) if getattr(plan.stage, f.name) != getattr(other.stage, f.name)
    ]
    num_channels = max(len(plan.channels), len(other.channels))
    differing += [f"channel_{i}" for i in range(num_channels) if plan.channels[i : i + 1] != other.channels[i : i + 1]]
    return tuple(differing)


def _check_edited(plan: Plan, automatic: Plan, path: Path) -> None:
    """Refuse edits that do not fit the data set or the flags of this run."""
    compared = {
        "task": lambda p: p.task,
        "data set": lambda p: p.dataset,
        "stage": lambda p: p.stage.name,
        "dimension": lambda p: p.stage.dim,
        "channels": lambda p: tuple(channel.name for channel in p.channels),
        "labels": lambda p: (p.labels.names, p.labels.values, p.labels.ignore_value),
    }
    problems = [
        f"{what} is {get(plan)}, and here it is {get(automatic)}"
        for what, get in compared.items()
        if get(plan) != get(automatic)
    ]
    if automatic.mask_channel and not plan.mask_channel:
        problems.append("mask_channel is false, and --ohe asks for it")
    if automatic.labels.regions and plan.labels.regions != automatic.labels.regions:
        problems.append("its regions are not those of this run (dataset.json, --brats)")
    if problems:
        raise list_problems(
            f"{path} was {EDITED} and does not fit:", problems, advice="Correct it, or plan anew with --overwrite."
        )
