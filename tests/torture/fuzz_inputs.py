"""Files that are damaged and that the way of the small data set does not leave by itself."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.torture.commands import run

V2 = Path(__file__).resolve().parents[1] / "inference/nnunet_v2/trained_by_nnunet.zip"
OPTIONS = "max_epochs: 1\namp: no\nlearning_rate: 0.01\nfilters: [4, 8, 8]\nscheduler: cosine\naugment: none\n"


def write_further(whole: Path, packages: set[str]) -> None:
    """Labels of the masks, archives, options, a model of nnU-Net v2, and scans in the formats of these packages."""
    folder = next((whole / "raw").iterdir())
    for name in ("labels", "labelled"):
        shutil.copytree(folder / "labelsTr", whole / name)
    (whole / "archives").mkdir()
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(whole / "archives" / name, mode) as archive:
            archive.add(folder, "Task04_Hippocampus")
    shutil.make_archive(str(whole / "archives/a"), "zip", folder)
    (whole / "options.yaml").write_text(OPTIONS)
    shutil.copy2(V2, whole / "v2.zip")
    with zipfile.ZipFile(V2) as archive:
        archive.extractall(whole / "unpacked")
    shutil.move(str(next((whole / "unpacked").glob("*/*"))), whole / "v2")
    if packages:
        # In a process of its own: they start threads.
        outcome = run(__name__, [str(whole), *sorted(packages)], folder=whole)
        assert outcome.status == 0, outcome.text


def main(argv: Sequence[str]) -> int:
    """Write the scans of the folder argv[0] in the formats of the packages argv[1:]."""
    whole = Path(argv[0])
    scans = sorted((whole / "scans").glob("*.nii.gz"))[:2]
    if "SimpleITK" in argv:
        import SimpleITK

        for kind in ("nrrd", "mha"):
            (whole / kind).mkdir()
            for scan in scans:
                name = scan.name.removesuffix(".nii.gz")
                SimpleITK.WriteImage(
                    SimpleITK.ReadImage(str(scan)), str(whole / kind / f"{name}.{kind}"), kind == "mha"
                )
    if "pydicom" in argv:
        from tests.inference.dicom.made_up import write_series

        write_series(whole / "dicom", np.random.default_rng(3).integers(0, 2000, (24, 40, 48)).astype(np.int16))
    return 0
