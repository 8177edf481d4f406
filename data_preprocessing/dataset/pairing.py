"""Which image belongs to which label, by their keys alone.

Keys (see scan_search.py) are cut into words, numbers and signs, so that affixes such as `_img` and `_seg` never cut
through a number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.scan_search import Scan

NUM_SAMPLES = 5
"""Labels from which the rule that pairs all of them is read off."""
MAX_RULES = 100
"""Rules that are tried on all labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What stands before and after the name of the case in keys of images and labels."""

    image: tuple[str, str] = ("", "")
    label: tuple[str, str] = ("", "")

    def size(self) -> int:
        """Number of characters beside the case's name."""
        return sum(map(len, (*self.image, *self.label)))


def pair(images: Sequence[Scan], labels: Sequence[Scan], problems: list[str]) -> tuple[list[CaseFiles], Rule]:
    """The training cases; images or labels without a partner are appended to `problems`."""
    if len(images) == len(labels) == 1:
        rule = _rule_of(images[0].key, labels[0].key)
        name = plain_name(PurePosixPath(_core(images[0].key, *rule.image) or images[0].key).name)
        return [CaseFiles(case=name, images=images[0].paths, label=labels[0].paths[0])], rule
    best = _best_rule([scan.key for scan in images], [scan.key for scan in labels])
    if best is None:
        if images and labels:
            problems.append(
                f"images ({images[0].key}, ...) and labels ({labels[0].key}, ...) cannot be paired by their names "
                "without doubt; give patterns with {case}, such as --images 'scans/{case}_img.nii.gz'"
            )
        return [], Rule()
    rule = best
    by_case = {_core(scan.key, *rule.label) or scan.key: scan for scan in labels}
    cases = [(_core(scan.key, *rule.image) or scan.key, scan) for scan in images]
    problems += [f"{scan.paths[0]} has no label" for case, scan in cases if case not in by_case]
    paired = {case: scan for case, scan in cases if case in by_case}
    problems += [f"{scan.paths[0]} has no image" for case, scan in by_case.items() if case not in paired]
    names = case_names(list(paired))
    return [
        CaseFiles(case=names[case], images=scan.paths, label=by_case[case].paths[0]) for case, scan in paired.items()
    ], rule


def unlabelled_cases(scans: Sequence[Scan], rule: Rule) -> list[CaseFiles]:
    """Cases without labels, named by the rule that named the training cases where it fits."""
    cores = [_core(scan.key, *rule.image) or scan.key for scan in scans]
    names = case_names(cores)
    return [CaseFiles(case=names[core], images=scan.paths, label=None) for core, scan in zip(cores, scans)]


def case_names(cores: Sequence[str]) -> dict[str, str]:
    """File names for the cases: the last part of the path where that tells them apart, else all parts."""
    last = {core: PurePosixPath(core).name for core in cores}
    short = len(set(last.values())) == len(set(cores))
    return {core: plain_name(last[core] if short else core.replace("/", "_")) for core in cores}


def plain_name(name: str) -> str:
    """The name without what is trouble for shells and tools: spaces and signs become `_`."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_-. ") or name


def _best_rule(images: Sequence[str], labels: Sequence[str]) -> Rule | None:
    """The rule that pairs most labels with the least beside the names; None if two rules do so differently."""
    image_set, samples = set(images), labels[:: max(1, len(labels) // NUM_SAMPLES)][:NUM_SAMPLES]
    candidates = {Rule(), *(_rule_of(image, label) for label in samples for image in images)}
    # Most candidates stem from an image and a label of different cases and pair just these: a few labels show it.
    shares = {rule: len(_matched(rule, samples, image_set)) for rule in candidates}
    likely = [rule for rule in candidates if shares[rule] == max(shares.values())]
    likely = sorted(likely, key=lambda rule: (rule.size(), rule.image, rule.label))[:MAX_RULES]
    matched = {rule: _matched(rule, labels, image_set) for rule in likely}
    ranks = {rule: (len(set(found.values())), -rule.size()) for rule, found in matched.items()}
    best = [rule for rule in likely if ranks[rule] == max(ranks.values()) and ranks[rule][0] > 0]
    return best[0] if best and all(matched[rule] == matched[best[0]] for rule in best) else None


def _matched(rule: Rule, labels: Iterable[str], images: set[str]) -> dict[str, str]:
    cores = {label: _core(label, *rule.label) for label in labels}
    found = {label: f"{rule.image[0]}{core}{rule.image[1]}" for label, core in cores.items() if core}
    return {label: image for label, image in found.items() if image in images}


def _rule_of(image: str, label: str) -> Rule:
    """The affixes around the longest run of words and numbers that two keys share."""
    first, second = _words(image), _words(label)
    best = (0, 0, 0, 0)
    for i in range(len(first)):
        for j in range(len(second)):
            n = 0
            while i + n < len(first) and j + n < len(second) and first[i + n] == second[j + n]:
                n += 1
            best = max(best, (sum(map(len, first[i : i + n])), n, i, j))
    _, n, i, j = best
    while n > 1 and re.fullmatch(r"[\W_]", first[i]):  # Signs at the ends belong to the affixes.
        n, i, j = n - 1, i + 1, j + 1
    while n > 1 and re.fullmatch(r"[\W_]", first[i + n - 1]):
        n -= 1
    return Rule(
        image=("".join(first[:i]), "".join(first[i + n :])), label=("".join(second[:j]), "".join(second[j + n :]))
    )


def _words(key: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", key)


def _core(key: str, before: str, after: str) -> str:
    """The key without its affixes; empty if it does not have them."""
    fits = key.startswith(before) and key.endswith(after) and len(key) > len(before) + len(after)
    return key[len(before) : len(key) - len(after)] if fits else ""
