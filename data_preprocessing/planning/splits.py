"""Cross-validation folds: by the plain rule, patient by patient, or from a file that somebody else made."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.description_file import FOLD_SEED, make_splits, require_two
from utils.config import DEFAULT_FOLDS
from utils.errors import UserError, list_problems
from utils.files import from_dict
from utils.json_text import parse_json
from utils.schema import FORMAT_VERSION, Fold, Splits


def choose_splits(
    cases: Sequence[str], *, nfolds: int, path: Path | None, group_by: str | None
) -> tuple[Splits, list[str]]:
    """The folds of a file, those that keep patients together, or those of the plain rule; and what may surprise.

    Raises:
        UserError: the file or the pattern does not fit the cases.
    """
    if path is not None:
        unused = "--nfolds has no effect with --splits: the file says how many there are"
        return read_splits(path, cases), [unused] if nfolds != DEFAULT_FOLDS else []
    units, name = (len(cases), "cases")
    if group_by is not None:
        units, name = len(find_groups(cases, group_by)), "patients"
    fewer = min(nfolds, max(units, 2))
    warnings = []
    if 2 <= units < nfolds:
        warnings.append(f"{units} {name} make {fewer} folds at most; split as with --nfolds {fewer}")
    return split_folds(cases, fewer, group_by), warnings


def split_folds(cases: Sequence[str], nfolds: int, group_by: str | None = None) -> Splits:
    """Folds of the cases; with `group_by` those of one patient stay together.

    Raises:
        UserError: there are fewer cases or patients than folds, or `group_by` does not fit the names.
    """
    if group_by is None:
        return make_splits(cases, nfolds)
    return split_groups(find_groups(cases, group_by), nfolds)


def find_groups(cases: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """Patient -> cases, both sorted, by a regular expression whose one group finds the patient in a case's name.

    Raises:
        UserError: it is no regular expression with one group, or does not find a patient in every name; all are listed.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group_by {pattern!r} is not a regular expression: {error}") from None
    if expression.groups != 1:
        raise UserError(
            f"--group_by {pattern!r} has {expression.groups} groups; put one pair of parentheses around the patient, "
            "such as '(.+)_visit'"
        )
    groups: dict[str, list[str]] = defaultdict(list)
    problems = []
    for case in sorted(cases):
        found = expression.search(case)
        if found is None or not found.group(1):
            problems.append(case)
        else:
            groups[found.group(1)].append(case)
    if problems:
        title = f"--group_by {pattern!r} finds no patient in these names:"
        raise list_problems(title, problems, advice="Change the pattern so that it fits all cases.")
    return dict(sorted(groups.items()))


def split_groups(groups: dict[str, list[str]], nfolds: int) -> Splits:
    """Folds in which no group is torn apart, as even in cases as that allows; the same on every machine.

    The largest group goes first, each to the fold with the fewest cases. Groups of one size come in an order that is
    drawn, since names often tell the hospital or the year.

    Raises:
        UserError: there are fewer groups than folds.
    """
    require_two(len(groups), "patients that --group_by tells apart")
    if len(groups) < nfolds:
        raise UserError(f"{len(groups)} patients cannot make {nfolds} folds; lower --nfolds or look at --group_by")
    drawn = np.random.RandomState(FOLD_SEED).permutation(len(groups))
    members = [list(groups.values())[index] for index in drawn]
    folds: list[list[str]] = [[] for _ in range(nfolds)]
    for group in sorted(members, key=len, reverse=True):
        min(folds, key=len).extend(group)
    everyone = sorted(case for group in members for case in group)
    return Splits(
        version=FORMAT_VERSION,
        folds=tuple(
            Fold(train=tuple(case for case in everyone if case not in val), val=tuple(sorted(val)))
            for val in map(set, folds)
        ),
    )


def read_splits(path: Path, known: Iterable[str]) -> Splits:
    """The folds of a file: `splits.json` of this program, or nnU-Net's list of {"train": [...], "val": [...]}.

    Two folds may validate on the same cases, as those of a data set with one official split do.

    Raises:
        UserError: the file is missing or malformed, or its folds are (see `check_folds`).
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--splits {path} cannot be read as JSON: {reason}") from None
    if isinstance(content, list):
        content = {"version": FORMAT_VERSION, "folds": content}
    splits = from_dict(Splits, content, source=f"--splits {path}")
    check_folds(splits, known, source=f"--splits {path}")
    return splits


def check_folds(splits: Splits, known: Iterable[str], *, source: str) -> None:
    """Refuse folds that cannot be trained on or whose validation would be flattered.

    Raises:
        UserError: no folds, a fold without training or validation cases, cases that are not known, are named twice or
            are trained and validated on in one fold; all are listed, `source` says where they come from.
    """
    known = set(known)
    problems = [] if splits.folds else ["there is no fold"]
    for number, fold in enumerate(splits.folds):
        parts = {"train": fold.train, "val": fold.val}
        problems += [f"fold {number}: {part} is empty" for part, cases in parts.items() if not cases]
        for part, cases in parts.items():
            problems += [f"fold {number}: {case} is {n} times in {part}" for case, n in Counter(cases).items() if n > 1]
            problems += [f"fold {number}: {case} in {part} is no training case" for case in sorted({*cases} - known)]
        both = sorted(set(fold.train) & set(fold.val))
        problems += [f"fold {number}: {case} is in train and in val" for case in both]
    if problems:
        raise list_problems(f"{source} cannot be used:", problems, advice="Correct the file and run again.")
