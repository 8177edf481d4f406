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
    # After --help.
    from data_preprocessing.dataset.builder import Sources
    from data_preprocessing.dataset.make import Wanted, make_dataset

    make_dataset(
        Sources(images=options.images, labels=options.labels, test_images=options.test_images),
        Wanted(
            output=options.output, channels=options.channels, label_names=options.label_names, link=options.link,
            allow_problems=options.allow_problems,
        ),
        n_jobs=options.n_jobs,
    )  # fmt: skip
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))
