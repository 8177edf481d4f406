"""docs/tutorial.md, typed as a reader would type it: raw scans to a file that predicts, on tiny scans and few steps."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference.configuration import read_configuration
from inference.saved import read_probabilities
from scripts import nnunet
from tests.conftest import PROJECT
from tests.tiny_task import write_scan
from utils.errors import run_cli
from utils.nifti import read_label

TINY = ["--max_epochs", "2", "--depth", "1", "--filters", "4", "8", "--learning_rate", "0.01", "--num_workers", "1"]
MORE = {
    "init-dataset": ["--n_jobs", "1"], "verify-dataset": ["--n_jobs", "1"],
    "preprocess": ["--nfolds", "2", "--n_jobs", "1"],
    "cross-validate": ["--gpus", "0"], "find-best": ["--n_jobs", "1"], "predict": ["--gpus", "0"],
}  # fmt: skip
"""What makes the tutorial's commands small; everything else of them stays."""


def tutorial() -> list[list[str]]:
    text = (PROJECT / "docs/tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def made_small(words: list[str]) -> list[str]:
    if "--" in words:
        words = [*words[: words.index("--")], *MORE[words[0]], "--", *TINY]
        return words
    return [*words, *MORE.get(words[0], [])]


def write_scans(folder: Path, labels: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        image = rng.uniform(-80, 20, (14, 18, 16)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[4:9, 5:12, 3:10] = 1
        image[label > 0] += 100
        write_scan(folder / f"{name}.nii.gz", image)
        write_scan(labels / f"{name}.nii.gz", label)


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> Iterator[Path]:
    """The working folder after the last command."""
    if Path("/data").exists() or Path("/results").exists():
        pytest.skip("commands would write there by default")
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        type_all()
    yield folder


def type_all() -> None:
    write_scans(Path("scans"), Path("masks"), ["p1", "p2", "p3", "p4"])
    write_scans(Path("new"), Path("new_masks"), ["q1", "q2"])
    for words in map(made_small, tutorial()):
        assert run_cli(lambda words=words: nnunet.main(words)) == 0, words


@pytest.mark.slow
def test_the_tutorial_leads_from_raw_scans_to_a_model_in_one_file(typed):
    assert zipfile.is_zipfile(typed / "model.zip")
    for name in ("q1", "q2"):
        mask, scan = nib.load(typed / f"predictions/{name}.nii.gz"), nib.load(typed / f"new/{name}.nii.gz")
        assert mask.shape == scan.shape and set(np.unique(np.asanyarray(mask.dataobj))) <= {0, 1}
    assert (typed / "predictions/summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_its_folds_end_in_a_model_and_out_of_fold_masks(typed, configuration):
    folder = typed / f"results/80_{configuration}"
    for case in ("p1", "p2", "p3", "p4"):
        member = read_probabilities(folder / "out_of_fold", case)
        mask = read_label(folder / f"out_of_fold/{case}.nii.gz").array
        np.testing.assert_array_equal(member.values.argmax(axis=0), mask)
    assert [fold.fold for fold in read_configuration(folder).folds] == [0, 1]
    records = json.loads((typed / "results/80_cross_validation.json").read_text())["configurations"]
    (record,) = (each for each in records if each["configuration"] == configuration)
    assert [fold["epochs"] for fold in record["folds"]] == [2, 2]


def test_the_tutorial_goes_the_whole_way():
    verbs = ["init-dataset", "verify-dataset", "preprocess", "cross-validate", "find-best", "export-model", "predict"]
    assert list(dict.fromkeys(words[0] for words in tutorial())) == [*verbs, "evaluate"]
