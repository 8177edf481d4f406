"""A data set of images and labels as they lie around: found, looked at, named and written, or refused with reasons."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from data_preprocessing.dataset.builder import (
    Sources,
    choose_folder,
    collect,
    faults_of,
    name_channels,
    name_values,
    survey,
    write_dataset,
)
from data_preprocessing.dataset.description_file import task_number
from data_preprocessing.dataset.findings import Finding, findings_table, unusable
from utils.runs import require_creatable
from utils.throughput import num_cores
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the data set is to be.

    Attributes:
        output: new folder; without a number it gets the next free one.
        channels: names of the image channels; none: they are found out.
        label_names: of the label values in ascending order, background first; none: label_1, ...
        link: link to the scans in place of copying them.
        allow_problems: write it though scans have faults.
    """

    output: Path
    channels: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    link: bool = False
    allow_problems: bool = False


def make_dataset(sources: Sources, wanted: Wanted, *, n_jobs: int | None) -> Path:
    """Write the data set and say what was found out and what comes next; returns its folder.

    Raises:
        UserError: files cannot be paired or used, names do not fit; nothing is written then.
    """
    target = choose_folder(wanted.output, sources)
    require_creatable(target, "--output")
    collection = collect(sources, wanted.channels)
    num_cases = len(collection.training) + len(collection.test)
    with Workers(min(n_jobs or num_cores(), num_cases)) as workers:
        surveys = survey(collection, workers)
    faults = faults_of(surveys)
    mistakes: list[Finding] = []
    channels: tuple[str, ...] = ()
    remarks: list[str] = []
    labels: dict[int, str] = {}
    if any(found.scan is not None for found in surveys):
        channels, remarks = name_channels(surveys, collection.channels, mistakes)
        labels = name_values(surveys, wanted.label_names, mistakes)
    if mistakes or not channels or (faults and not wanted.allow_problems):
        raise unusable(
            f"no data set can be made of these {num_cases} cases; nothing was written:",
            [*mistakes, *faults], Path.cwd(), advice=_advice(repairable=bool(faults)),
        )  # fmt: skip
    write_dataset(target, collection, channels, labels, link=wanted.link)
    if faults:
        print(findings_table(faults, Path.cwd()))
    for remark in remarks:
        print(remark)
    print(f"channels: {', '.join(channels)}; labels: {', '.join(f'{v} {name}' for v, name in labels.items())}")
    print(f"{target}: {len(collection.training)} training cases, {len(collection.test)} test scans")
    number = f"{task_number(target.name):02d}"
    next_step = "scripts/verify_dataset.py --fix FOLDER" if faults else "preprocess.py"
    print(f"next: python {next_step} --task {number} --data {shlex.quote(str(target.parent))}")
    return target


def _advice(*, repairable: bool) -> str:
    advice = "Fix or move the files and run again."
    if repairable:
        advice += (
            " --allow_problems writes the data set all the same, and scripts/verify_dataset.py --fix then "
            "a repaired copy of it."
        )
    return advice
