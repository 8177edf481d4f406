"""Whether a folder of shards may be used: all cases are there, by the plan that counts, and none that is gone.

A folder of training shards is ready while it has its plan.json, `val` and `test` while they have `cases.json`. Each is
taken away before the first shard is replaced or removed and written when all are there, so that a run which failed or
was killed at any moment leaves a folder that says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.description_file import DESCRIPTION
from data_preprocessing.shards import (
    ARRAYS,
    PREVIOUS_STAMP,
    corrected_labels,
    read_meta,
    shard_paths,
    shard_stamps,
    stamp_plan,
)
from utils.errors import UserError, list_problems
from utils.files import read_json, write_json
from utils.json_text import parse_json
from utils.outdated import forget_outdated, outdated_cases
from utils.runs import ShardFolder
from utils.schema import FORMAT_VERSION, Fold, Plan, check_version

READY = "cases.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyCases:
    """The cases of a `val` or `test` folder that is complete. Written to `cases.json`, last."""

    version: int
    cases: tuple[str, ...]

    def __post_init__(self) -> None:
        check_version(self.version, READY)


def mark_ready(folder: Path, cases: Iterable[str]) -> None:
    """Say that a folder is complete, and of which cases."""
    write_json(ReadyCases(version=FORMAT_VERSION, cases=tuple(sorted(cases))), folder / READY)
    forget_outdated(folder)


def withdraw_mark(folder: Path) -> None:
    """Say that a folder is not complete any more."""
    (folder / READY).unlink(missing_ok=True)


def ready_cases(folder: Path, command: str) -> tuple[str, ...]:
    """The cases of a `val` or `test` folder.

    Raises:
        UserError: its last preprocessing did not come to its end; `command` repeats it.
    """
    if not (folder / READY).is_file():
        why = [f"  - {case}: {reason}" for case, reason in outdated_cases(folder).items()]
        lines = [f"{folder} is not ready: its shards are missing, incomplete or outdated; run: {command}", *why[:20]]
        raise UserError("\n".join(lines))
    return read_json(ReadyCases, folder / READY).cases


def run_cases(shards: ShardFolder, plan: Plan, fold: Fold, *, scored: bool) -> tuple[str, ...]:
    """What a run looks at: the cases of the fold, its validation cases (`scored`), or all test scans.

    Raises:
        UserError: the folder is not ready, or shards are missing or of another plan.
    """
    command = preprocess_command(shards.root, plan, shards.cases)
    ready = () if shards.cases == shards.root else ready_cases(shards.cases, command)
    cases = ready if shards.is_test else fold.val if scored else (*fold.train, *fold.val)
    require_current(shards.cases, cases, plan, command)
    require_same_sources(shards, cases, plan)
    return cases


def require_same_sources(shards: ShardFolder, cases: Sequence[str], plan: Plan) -> None:
    """Refuse `val` shards and those of a cascade where the training shards beside them were made anew since.

    Raises:
        UserError: there are any; all are listed.
    """
    other = None
    if plan.previous_stage is not None and shards.cases == shards.root:
        other = shards.root.with_name(shards.root.name.removesuffix("_cascade_fullres"))
    elif shards.cases != shards.root and not shards.is_test:
        other = shards.root
    if other is None or other == shards.cases:
        return
    there = [case for case in cases if shard_paths(other, case).meta.is_file()]
    now, made = shard_stamps(other, there), shard_stamps(shards.cases, there)
    changed = [f"{case}: its shard in {other} was made from other files" for case in there if now[case] != made[case]]
    if changed:
        raise list_problems(
            f"{len(changed)} of {len(cases)} cases in {shards.cases} do not go with their training shards:", changed,
            advice=f"Make them anew: {', then '.join(commands_for(shards, plan))}",
        )  # fmt: skip


def require_same_labels(shards: ShardFolder, cases: Sequence[str], plan: Plan) -> None:
    """Refuse shards whose label files were corrected since, so that nothing is learned from the earlier ones.

    Raises:
        UserError: there are any; all are listed.
    """
    if changed := corrected_labels(shards.cases, cases):
        raise list_problems(
            f"{len(changed)} of {len(cases)} cases in {shards.cases} have another label now:", changed,
            advice=f"Make their shards anew: {', then '.join(commands_for(shards, plan))}",
        )  # fmt: skip


def gone_cases(folder: Path, cases: Iterable[str]) -> tuple[str, ...]:
    """Cases of which a folder holds shards, whole or not, and that are none of `cases`; sorted."""
    found = {path.name.removesuffix(end) for end in ARRAYS for path in folder.glob(f"*{end}")}
    return tuple(sorted(found - set(cases)))


def remove_gone(folder: Path, gone: Sequence[str]) -> None:
    """Remove the shards of cases that the data set has no longer, and say so."""
    if not gone:
        return
    drop_metas(folder, gone)
    for case in gone:
        for end in (*ARRAYS, PREVIOUS_STAMP):
            (folder / f"{case}{end}").unlink(missing_ok=True)
    named = ", ".join(gone[:10]) + (f" and {len(gone) - 10} more" if len(gone) > 10 else "")
    print(f"{folder}: removed the shards of cases that the data set has no longer ({len(gone)}): {named}")


def drop_metas(folder: Path, cases: Iterable[str]) -> None:
    """Make shards incomplete before any of them is made anew: what a killed run has not reached is missing, not old."""
    for case in cases:
        shard_paths(folder, case).meta.unlink(missing_ok=True)


def update_sources(folder: Path, cases: Sequence[CaseFiles]) -> None:
    """Where a data set was moved, note where the sources of its shards are now."""
    for files in cases:
        meta = read_meta(folder, files.case)
        image = str(files.images[0].absolute())
        label = None if files.label is None else str(files.label.absolute())
        if (meta.image, meta.label) != (image, label):
            write_json(dataclasses.replace(meta, image=image, label=label), shard_paths(folder, files.case).meta)


def plan_stamps(folder: Path, cases: Iterable[str]) -> dict[str, str | None]:
    """By which plan the shards of each case were made; None where they are incomplete."""
    stamps = {}
    for case in cases:
        try:
            # Not through the schema: a thousand files take a tenth of a second this way.
            content = parse_json(shard_paths(folder, case).meta.read_bytes())
            stamps[case] = content["plan_stamp"] if isinstance(content, dict) else None
        except (OSError, ValueError, KeyError):
            stamps[case] = None
    return stamps


def require_current(folder: Path, cases: Sequence[str], plan: Plan, command: str) -> None:
    """Refuse shards that are incomplete or were made by another plan.

    Args:
        folder: of the shards.
        cases: those that are used.
        plan: by which they have to be made.
        command: what makes them anew, for the message.

    Raises:
        UserError: there are any; all are listed.
    """
    wanted = stamp_plan(plan)
    stamps = plan_stamps(folder, cases)
    problems = [
        f"{case}: {'its shards are incomplete' if stamp is None else 'its shards were made by another plan'}"
        for case, stamp in stamps.items()
        if stamp != wanted
    ]
    if problems:
        raise list_problems(
            f"{len(problems)} of {len(cases)} cases in {folder} are not what its plan.json asks for:",
            problems, advice=f"Make them anew: {command}",
        )  # fmt: skip


def commands_for(shards: ShardFolder, plan: Plan) -> list[str]:
    """What makes shards and the training shards that they come from anew, in this order."""
    own = preprocess_command(shards.root, plan, shards.cases)
    if plan.previous_stage is not None:
        first = preprocess_command(shards.root, dataclasses.replace(plan, previous_stage=None))
        return [first, own]
    return [own] if shards.is_test else list(dict.fromkeys([preprocess_command(shards.root, plan), own]))


def preprocess_command(root: Path, plan: Plan, folder: Path | None = None) -> str:
    """What makes the shards of a folder (default: the training shards) anew."""
    words = ["python preprocess.py", f"--task {plan.task}", f"--dim {plan.stage.dim}"]
    if plan.previous_stage is not None:
        words.append("--cascade MASKS")
    elif plan.stage.name.endswith("_lowres"):
        words.append("--lowres")
    if folder is not None and folder != root:
        words.append(f"--exec_mode {folder.name}")
    elif plan.planner and plan.previous_stage is None:
        words.append(f"--planner {plan.planner}")
    return " ".join([*words, f"--results {shlex.quote(str(root.parent))}", *_data_words(root)])


def _data_words(root: Path) -> list[str]:
    """Where the data set of a folder's shards is, as far as they tell."""
    for path in itertools.islice(root.glob("*_x.npy"), 1):
        with contextlib.suppress(UserError, OSError):
            task = Path(read_meta(root, path.name.removesuffix("_x.npy")).image).parent.parent
            if (task / DESCRIPTION).is_file():
                return [f"--data {shlex.quote(str(task))}"]
    return []
