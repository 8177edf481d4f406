"""inference.py on scans of every format and on DICOM: masks in the format of the scan or as asked, nobody named."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest

from evaluate import main as evaluate
from scripts.report import main as report
from tests.report.folders import viewer_titles
from tests.scripts.trained import masks, predict, train
from utils import extras
from utils.nifti import read_image, read_label, write_volume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("model"), "3d_fullres", folds=(0,)) / "04_3d_fullres"


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 9, (8, 9, 10)).astype(np.float32)


@pytest.fixture
def nifti(tmp_path):
    """Two scans a and b, tilted and flipped."""
    affine = np.diag([-1.2, 1.0, 0.9, 1])
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ affine[:3, :3]
    (tmp_path / "nifti").mkdir()
    for seed, name in enumerate("ab"):
        nib.save(nib.Nifti1Image(image(seed), affine), tmp_path / "nifti" / f"{name}.nii.gz")
    return tmp_path / "nifti"


def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def readable(folder) -> str:
    """The text of a folder's page, without its pictures; its volumes unpacked."""
    blocks = re.findall(r'<script type="text/plain" id="volume[^>]*>([^<]*)</script>', page(folder))
    volumes = [gzip.decompress(base64.b64decode(block)).decode("latin-1") for block in blocks]
    own = re.sub(r'<script type="text/plain".*?</script>|data:image[^"]*', "", page(folder), flags=re.DOTALL)
    return own + "".join(volumes)


def shown(folder) -> list[str]:
    """Scans in the viewer of a folder's page."""
    return sorted(title.split()[0] for title in viewer_titles(page(folder)))


def test_an_anonymous_page_shows_scans_and_says_not_whose(model, nifti, tmp_path, capsys, monkeypatch):
    (nifti / "a.nii.gz").rename(nifti / "Doe_Jane.nii.gz")
    (nifti / "broken_Doe.nii.gz").write_bytes(b"x")
    words = ["--input", nifti, "--output", tmp_path / "out", "--model", model, "--anonymous"]
    monkeypatch.setattr("sys.argv", ["inference.py", *map(str, words)])
    assert predict(*words) == 1
    assert shown(tmp_path / "out") == ["scan_0001", "scan_0002"]
    assert not any(word in readable(tmp_path / "out") for word in ("Doe", "Jane", str(nifti)))
    # Later nobody knows where the scans were.
    assert report([str(tmp_path / "out")]) == 0 and shown(tmp_path / "out") == []
    assert "This page has no scans" in capsys.readouterr().err


def test_a_zip_is_opened_again_for_its_page(model, nifti, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(nifti.iterdir()):
            archive.write(path, path.name)
    assert predict("--input", tmp_path / "in.zip", "--output", tmp_path / "out", "--model", model) == 0
    assert shown(tmp_path / "out") == ["a", "b"]
    assert report([str(tmp_path / "out")]) == 0 and shown(tmp_path / "out") == ["a", "b"]


def test_maps_of_a_prediction_are_not_taken_for_masks_that_were_overlooked(model, nifti, tmp_path, capsys):
    words = ("--input", nifti, "--output", tmp_path / "out", "--model", model)
    assert predict(*words, "--save_soft", "anterior", "--save_probabilities", "--no_report") == 0
    (tmp_path / "labels").mkdir()
    for path in (tmp_path / "out").glob("*.nii.gz"):
        nib.save(nib.load(path), tmp_path / "labels" / path.name)
    capsys.readouterr()
    assert evaluate(["--preds", str(tmp_path / "out"), "--lbls", str(tmp_path / "labels"), "--no_report"]) == 0
    assert "left out" not in capsys.readouterr().err
    (tmp_path / "out" / "masks.json").unlink()
    assert evaluate(["--preds", str(tmp_path / "out"), "--lbls", str(tmp_path / "labels"), "--no_report"]) == 0
    assert "soft_anterior/ (a folder with 2 scans" in capsys.readouterr().err


class TestFormats:
    @pytest.fixture(autouse=True)
    def _simpleitk(self):
        pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")

    @pytest.fixture
    def converted(self, nifti, tmp_path):
        """Scan a in NRRD, scan b in MetaImage."""
        (tmp_path / "converted").mkdir()
        for name, ending in (("a", ".NRRD"), ("b", ".mha")):
            volume = read_image([nifti / f"{name}.nii.gz"])
            write_volume(tmp_path / "converted" / f"{name}{ending.lower()}", volume.array[0], volume.geometry)
            (tmp_path / "converted" / f"{name}{ending.lower()}").rename(tmp_path / "converted" / f"{name}{ending}")
        return tmp_path / "converted"

    def test_masks_have_the_format_of_their_scan_and_the_voxels_of_nifti(self, model, nifti, converted, tmp_path):
        assert predict("--input", nifti, "--output", tmp_path / "one", "--model", model) == 0
        assert predict("--input", converted, "--output", tmp_path / "two", "--model", model) == 0
        for name, ending in (("a", ".nrrd"), ("b", ".mha")):
            found, true = (
                read_label(tmp_path / "two" / f"{name}{ending}"),
                read_label(tmp_path / "one" / f"{name}.nii.gz"),
            )
            np.testing.assert_array_equal(found.array, true.array)
            assert true.array.any()
            np.testing.assert_allclose(found.geometry.affine, true.geometry.affine, atol=1e-5)

    def test_another_format_takes_the_place_of_the_first(self, model, nifti, tmp_path, capsys):
        words = ("--input", nifti, "--output", tmp_path / "out", "--model", model)
        assert predict(*words) == 0
        before = masks(tmp_path / "out")
        assert predict(*words, "--output_format", "nrrd") == 0
        assert "its format was .nii.gz, now it is .nrrd" in capsys.readouterr().out
        assert not masks(tmp_path / "out")
        np.testing.assert_array_equal(read_label(tmp_path / "out/a.nrrd").array.T[::-1], before["a.nii.gz"])
        assert predict(*words, "--output_format", "nrrd") == 0
        assert "2 of 2 scans have been predicted before" in capsys.readouterr().out

    def test_an_edited_mask_of_another_format_is_not_taken_away(self, model, nifti, tmp_path, capsys):
        words = ("--input", nifti, "--output", tmp_path / "out", "--model", model)
        assert predict(*words) == 0
        edited = nib.load(tmp_path / "out/a.nii.gz")
        nib.save(nib.Nifti1Image(np.ones(edited.shape, np.uint8), edited.affine), tmp_path / "out/a.nii.gz")
        assert predict(*words, "--output_format", "nrrd") == 2
        assert "a.nii.gz" in capsys.readouterr().err
        assert masks(tmp_path / "out")["a.nii.gz"].all()

    def test_formats_that_do_not_fit_are_refused(self, model, nifti, tmp_path, capsys):
        words = ("--input", nifti, "--output", tmp_path / "out", "--model", model, "--output_format")
        assert predict(*words, "dicom-seg") == 2
        assert "a: dicom-seg refers to a DICOM series" in capsys.readouterr().err
        assert predict(*words, "png") == 2
        assert "png cannot hold where the scan lies in space" in capsys.readouterr().err
        assert not masks(tmp_path / "out")


class TestDicom:
    @pytest.fixture
    def studies(self, tmp_path):
        """Two series, Doe_Jane and next, and one with a gap between them, `broken`."""
        made_up = pytest.importorskip("tests.inference.dicom.made_up")
        stored = np.random.default_rng(0).integers(1000, 2000, (3, 8, 9, 10)).astype(np.int16)
        made_up.write_series(tmp_path / "in" / "Doe_Jane", stored[0])
        made_up.write_series(tmp_path / "in" / "broken", stored[1], leave_out=(3,))
        made_up.write_series(tmp_path / "in" / "next", stored[2])
        return tmp_path / "in"

    def test_a_series_that_cannot_be_read_fails_alone(self, model, studies, tmp_path, capsys):
        assert predict("--input", studies, "--output", tmp_path / "out", "--model", model) == 1
        assert "broken: slices are missing" in capsys.readouterr().err
        found = masks(tmp_path / "out")
        assert sorted(found) == ["Doe_Jane.nii.gz", "next.nii.gz"] and found["next.nii.gz"].shape == (10, 9, 8)
        # Its page shows the series, also when it is written later; the names are those that the folders have.
        assert shown(tmp_path / "out") == ["Doe_Jane", "next"]
        (tmp_path / "out" / "report.html").unlink()
        assert report([str(tmp_path / "out")]) == 0 and shown(tmp_path / "out") == ["Doe_Jane", "next"]
        assert not any(word in readable(tmp_path / "out") for word in ("PatX", "19700101", "Who^Dr"))

    def test_a_zip_gives_the_masks_of_its_folder_as_dicom_seg(self, model, studies, tmp_path, capsys):
        highdicom = pytest.importorskip("highdicom")
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for path in sorted((studies / "next").iterdir()):
                archive.write(path, path.name)
        words = ("--input", tmp_path / "study.zip", "--output", tmp_path / "out", "--model", model)
        assert predict(*words, "--output_format", "dicom-seg") == 0
        assert predict("--input", studies / "next", "--output", tmp_path / "plain", "--model", model) == 0
        segmentation = highdicom.seg.segread(tmp_path / "out/study.seg.dcm")
        volume = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
        mask = masks(tmp_path / "plain")["next.nii.gz"]
        assert int((volume.array > 0).sum()) == int((mask > 0).sum()) > 0
        assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".tmp")] == []
        capsys.readouterr()
        assert predict(*words, "--output_format", "dicom-seg") == 0
        assert "1 of 1 scans have been predicted before" in capsys.readouterr().out

    def test_anonymous_names_nobody_anywhere(self, model, studies, tmp_path, capsys, monkeypatch):
        words = ["--input", studies, "--output", tmp_path / "out", "--model", model, "--anonymous"]
        monkeypatch.setattr("sys.argv", ["inference.py", *map(str, words)])
        assert predict(*words) == 1
        captured = capsys.readouterr()
        said = captured.out + captured.err
        records = [path.read_text() for path in (tmp_path / "out").glob("*.json")] + [readable(tmp_path / "out")]
        for text in (said, *records):
            for word in ("Doe", "Jane", "PatX", "broken", str(studies)):
                assert word not in text
        assert sorted(masks(tmp_path / "out")) == ["scan_0001.nii.gz", "scan_0003.nii.gz"]
        assert shown(tmp_path / "out") == ["scan_0001", "scan_0003"]
        assert "scan_0002: slices are missing" in said
        record = json.loads((tmp_path / "out/run.json").read_text())
        assert record["options"]["input"] == "(hidden by --anonymous)" and record["outcome"]["written"] == 2

    def test_only_the_map_says_who_is_who_and_keeps_the_names(self, model, studies, tmp_path):
        words = ["--input", studies, "--output", tmp_path / "out", "--model", model, "--anonymous"]
        assert predict(*words, "--anonymous_map", tmp_path / "names.json") == 1
        names = json.loads((tmp_path / "names.json").read_text())
        assert names == {"Doe_Jane": "scan_0001", "broken": "scan_0002", "next": "scan_0003"}
        (studies / "Doe_Jane").rename(tmp_path / "gone")
        (studies / "next").rename(studies / "a_later")
        assert predict(*words, "--anonymous_map", tmp_path / "names.json") == 1
        assert json.loads((tmp_path / "names.json").read_text())["a_later"] == "scan_0004"

    def test_a_map_without_anonymous_is_refused(self, model, studies, tmp_path, capsys):
        words = ["--input", studies, "--output", tmp_path / "out", "--model", model]
        assert predict(*words, "--anonymous_map", tmp_path / "names.json") == 2
        assert "--anonymous_map has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output_format", "package", "extra"), [("nrrd", "SimpleITK", "formats"), ("dicom-seg", "highdicom", "dicom")]
)
def test_a_missing_package_is_said_before_the_work(
    model, nifti, tmp_path, capsys, monkeypatch, output_format, package, extra
):
    def without(name):
        if name == package:
            raise ModuleNotFoundError(name=name)
        return __import__(name)

    place = nifti
    if output_format == "dicom-seg":
        made_up = pytest.importorskip("tests.inference.dicom.made_up")
        place = tmp_path / "dicom"
        made_up.write_series(place, np.zeros((3, 4, 5), np.int16))
    monkeypatch.setattr(extras.importlib, "import_module", without)
    words = ("--input", place, "--output", tmp_path / "out", "--model", model, "--output_format", output_format)
    assert predict(*words) == 2
    error = capsys.readouterr().err
    assert (
        f"needs the package {package}" in error and f"pip install -e '.[{extra}]'" in error and "Traceback" not in error
    )
