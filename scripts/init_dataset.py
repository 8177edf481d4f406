"""Make a data set (dataset.json and its folders) from images and labels as they lie around.

python scripts/init_dataset.py --images scans --labels masks --output data/Liver
python scripts/init_dataset.py --images 'patients/{case}/{channel}.nii.gz' --labels 'masks/{case}.nii.gz' \\
    --channels T1 T2 --label_names background tumour --output data/Task12_Brain
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.errors import EXIT_OK, UserError, run_cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Make a data set from a folder of images and a folder of labels."""

    images: tuple[str, ...]
    """Folder, files, or quoted patterns with *, {case} and {channel}; several patterns with {case}: one for each
    channel. Files named <case>_0000, <case>_0001 or <case>_t1, <case>_t2 are the channels of one case."""
    labels: tuple[str, ...]
    """Folder, files or pattern of the labels; images and labels are paired by their names."""
    output: Path
    """New folder TaskNN_Name; without a number it gets the next free one."""
    test_images: tuple[str, ...] = ()
    """Folder, files or patterns of scans without labels."""
    channels: tuple[str, ...] = ()
    """Names of the channels, CT for computed tomography, or noNorm, zscore, rescale_to_0_1 or rgb_to_0_1 to choose
    another normalisation (default: found out)."""
    label_names: tuple[str, ...] = ()
    """Names of the label values in ascending order, background first (default: label_1, ...)."""
    link: bool = False
    """Link to the scans in place of copying them."""
    allow_problems: bool = False
    """Write the data set though scans have faults, so that verify_dataset.py --fix can repair them."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(InitOptions, argv, prog="init_dataset.py")
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
    from data_preprocessing.dataset.findings import findings_table, unusable
    from utils.throughput import num_cores
    from utils.workers import Workers

    sources = Sources(images=options.images, labels=options.labels, test_images=options.test_images)
    target = choose_folder(options.output, sources)
    collection = collect(sources, options.channels)
    num_cases = len(collection.training) + len(collection.test)
    with Workers(min(options.n_jobs or num_cores(), num_cases)) as workers:
        surveys = survey(collection, workers)
    faults, mistakes, channels, remarks, labels = faults_of(surveys), [], (), [], {}
    if any(found.scan is not None for found in surveys):
        channels, remarks = name_channels(surveys, collection.channels, mistakes)
        labels = name_values(surveys, options.label_names, mistakes)
    if mistakes or not channels or (faults and not options.allow_problems):
        advice = "Mend or move the files and run again."
        if faults:
            advice += (
                " --allow_problems writes the data set all the same, and scripts/verify_dataset.py --fix then "
                "a repaired copy of it."
            )
        raise unusable(
            f"no data set can be made of these {num_cases} cases; nothing was written:",
            [*mistakes, *faults], Path.cwd(), advice=advice,
        )  # fmt: skip
    write_dataset(target, collection, channels, labels, link=options.link)
    if faults:
        print(findings_table(faults, Path.cwd()))
    for remark in remarks:
        print(remark)
    print(f"channels: {', '.join(channels)}; labels: {', '.join(f'{v} {name}' for v, name in labels.items())}")
    print(f"{target}: {len(collection.training)} training cases, {len(collection.test)} test scans")
    number = f"{task_number(target.name):02d}"
    next_step = "scripts/verify_dataset.py --fix FOLDER" if faults else "preprocess.py"
    print(f"next: python {next_step} --task {number} --data {target.parent}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
