"""Every format that inference.py reads is a scan for the service, too; what hides other files in it is refused."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("prometheus_client", reason="the extra serve is not installed")
pytest.importorskip("SimpleITK", reason="the extra formats is not installed")

from inference.predictor import Predictor
from scripts import inference
from serving import receiving, uploads
from serving.kinds import unpacked_beyond
from serving.refusals import Refused
from serving.scratch import SPARE_BYTES, Folder, Scratch
from tests.models.builders import make_plan, make_stage
from tests.models.checkpoints import save_ours
from tests.serving.service import form, running, save_model, save_scan
from utils import extras
from utils.errors import UserError
from utils.nifti import read_image, read_label, write_volume

pytestmark = pytest.mark.slow
VOXELS = bytes(range(8))
NRRD = (
    b"NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n"
)
MHA = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 2 2 2\n"
    b"ElementType = MET_UCHAR\n"
)
LOCAL = b"ElementDataFile = LOCAL\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def service(model):
    with running(Predictor.load(model, device="cpu"), voxels=100_000) as client:
        yield client


def predicted(model: Path, place: Path, output: Path, *more: str) -> Path:
    words = ["--input", place, "--output", output, "--model", model, "--gpus", "0", "--no-report", *more]
    assert inference.main([*map(str, words)]) == 0
    return output


def zipped(folder: Path, **more: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
        for name, data in more.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_volumes_of_other_formats_come_back_in_their_format(service, model, tmp_path):
    volume = read_image([save_scan(tmp_path / "a.nii.gz")])
    (tmp_path / "scans").mkdir()
    for number, ending in enumerate((".nrrd", ".mha")):
        write_volume(tmp_path / f"scans/{number}{ending}", volume.array[0], volume.geometry)
    expected = predicted(model, tmp_path / "scans", tmp_path / "masks")
    for path in sorted((tmp_path / "scans").iterdir()):
        status, body, headers = service.predict(path.read_bytes(), names=["x.nii.gz"])
        assert status == 200 and f'filename="mask{path.suffix}"' in headers["Content-Disposition"]
        assert body == (expected / path.name).read_bytes()
        as_nifti = service.predict(path.read_bytes(), format="nii.gz")[1]
        (tmp_path / "got.nii.gz").write_bytes(as_nifti)
        true = read_label(expected / path.name)
        np.testing.assert_array_equal(read_label(tmp_path / "got.nii.gz").array, true.array)
        assert true.array.any()


def test_a_page_gets_the_scan_and_its_mask_as_nifti(service, tmp_path):
    volume = read_image([save_scan(tmp_path / "a.nii.gz")])
    write_volume(tmp_path / "a.nrrd", volume.array[0], volume.geometry)
    answer = json.loads(service.predict((tmp_path / "a.nrrd").read_bytes(), answer="view")[1])
    assert answer["file"] == "mask.nrrd" and base64.b64decode(answer["mask"]).startswith(b"NRRD")
    for name in ("view_scan", "view_mask"):
        (tmp_path / f"{name}.nii.gz").write_bytes(base64.b64decode(answer[name]))
    np.testing.assert_array_equal(read_image([tmp_path / "view_scan.nii.gz"]).array, volume.array)
    counts = [each["voxels"] for each in answer["structures"]]
    assert sum(counts) == np.count_nonzero(nib.load(tmp_path / "view_mask.nii.gz").get_fdata())
    own = json.loads(service.predict((tmp_path / "a.nii.gz").read_bytes(), answer="view")[1])
    assert "view_scan" not in own and "view_mask" not in own and own["file"] == "mask.nii.gz"


def test_pictures(tmp_path):
    save_ours(tmp_path / "model.ckpt", make_plan(make_stage((8, 8))))
    (tmp_path / "scans").mkdir()
    import SimpleITK as sitk

    values = np.random.default_rng(0).integers(1, 200, (20, 24)).astype(np.uint8)
    for name in ("a.png", "b.tif"):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "scans" / name))
    expected = predicted(tmp_path / "model.ckpt", tmp_path / "scans", tmp_path / "masks")
    with running(Predictor.load(tmp_path / "model.ckpt", device="cpu")) as client:
        for path in sorted((tmp_path / "scans").iterdir()):
            assert client.predict(path.read_bytes())[1] == (expected / path.name).read_bytes()
        # A volume has no place in a picture.
        status, message = client.error(save_scan(tmp_path / "a.nii.gz").read_bytes(), format="png")
        assert status == 422 and "png cannot hold where the scan lies" in message


def test_a_zip_of_a_dicom_series(service, model, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    highdicom = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    from tests.inference.dicom.made_up import values, write_series

    made = write_series(tmp_path / "study/ct", values((9, 10, 11)))
    shutil.copy(made.files[0], tmp_path / "study/copy")
    expected = predicted(model, tmp_path / "study", tmp_path / "masks")
    content = zipped(tmp_path / "study", **{"notes.txt": b"no DICOM"})
    status, body, headers = service.predict(content)
    [mask] = expected.glob("*.nii.gz")
    assert status == 200 and body == mask.read_bytes()
    assert json.loads(headers["X-Result"])["remarks"] == ["1 copies of slices are left out"]
    for wanted in ("dicom-seg", "dicom-seg-labelmap"):
        (tmp_path / "got.dcm").write_bytes(service.predict(content, format=wanted)[1])
        found = highdicom.seg.segread(tmp_path / "got.dcm")
        uids = [pydicom.dcmread(path).SOPInstanceUID for path in made.files]
        planes = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(planes.transpose(2, 1, 0), np.asarray(nib.load(mask).dataobj))
    assert planes.any()
    status, message = service.error(save_scan(tmp_path / "a.nii.gz").read_bytes(), format="dicom-seg")
    assert status == 422 and "refers to a DICOM series" in message
    write_series(tmp_path / "study/more", values((4, 5, 6)))
    status, message = service.error(zipped(tmp_path / "study"))
    assert status == 422 and "holds 2 series" in message


def test_a_study_gives_the_channels_that_the_service_was_told_of(tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from tests.inference.dicom.made_up import values, write_series

    model = save_model(tmp_path / "model", num_channels=2)
    for number, name in enumerate(("T2", "T1", "scout")):
        write_series(
            tmp_path / "study" / name, values((6, 8, 9), number), number=number, study="1.2", SeriesDescription=name
        )
    channels = ["--dicom_channels", "t1*", "t2*"]
    [mask] = predicted(model, tmp_path / "study", tmp_path / "masks", *channels).glob("*.nii.gz")
    with running(Predictor.load(model, device="cpu"), dicom_channels=channels[1:]) as client:
        assert client.predict(zipped(tmp_path / "study"))[1] == mask.read_bytes()


def test_deflated_dicom_is_refused_as_nobody_knows_its_size(service, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from tests.inference.dicom.made_up import values, write_series

    for path in write_series(tmp_path / "ct", values()).files:
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.save_as(path, enforce_file_format=True)
    status, message = service.error(zipped(tmp_path / "ct"))
    assert status == 422 and "deflated DICOM" in message
    # Without their first bytes they are DICOM by their names, and pydicom reads them.
    for path in (tmp_path / "ct").iterdir():
        path.with_suffix(".dcm").write_bytes(path.read_bytes()[132:])
        path.unlink()
    assert pydicom.dcmread(next((tmp_path / "ct").iterdir()), force=True).Rows == 6
    status, message = service.error(zipped(tmp_path / "ct"))
    assert status == 422 and "deflated DICOM" in message


def test_one_file_with_all_slices(service, model, tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from tests.inference.dicom.made_up import values, write_frames

    made = write_frames(tmp_path / "ct/all.dcm", values((5, 8, 9)), (3, 0, 4, 1, 2))
    [mask] = predicted(model, tmp_path / "ct", tmp_path / "masks").glob("*.nii.gz")
    assert service.predict(made.files[0].read_bytes())[1] == mask.read_bytes()


def other_file(tmp: Path) -> bytes:
    (tmp / "secret.raw").write_bytes(VOXELS)
    return str(tmp / "secret.raw").encode()


HOSTILE = {
    "a data file": lambda file: NRRD + b"data file: " + file + b"\n\n",
    "a data file in other letters": lambda file: NRRD + b"DataFile: " + file + b"\n\n",
    "a data file behind a carriage return": lambda file: NRRD + b"# x\rdata file: " + file + b"\n\n" + VOXELS,
    "no end of the header": lambda file: NRRD + b"data  file",
    "an element data file": lambda file: MHA + b"ElementDataFile = " + file + b"\n",
    "an element data file behind a comment": lambda file: MHA + b"Comment = " + LOCAL + b"ElementDataFile = " + file,
    "a list of files": lambda file: MHA + b"ElementDataFile = LIST\n" + file + b"\n",
    "300 axes": lambda file: MHA.replace(b"NDims = 3", b"NDims = 300") + LOCAL + VOXELS,
    "axes said twice": lambda file: MHA + b"NDims = 300\n" + LOCAL + VOXELS,
    "other sizes than axes": lambda file: MHA.replace(b"2 2 2", b"2 " * 300) + LOCAL + VOXELS,
    "a line without an end": lambda file: MHA + b"Comment = " + b"x" * 70000 + b"\n" + LOCAL + VOXELS,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_name_other_files_or_claim_too_much_are_refused(service, tmp_path, name):
    status, message = service.error(HOSTILE[name](other_file(tmp_path)))
    assert status == 422 and message.startswith("file 1 has") and "secret" not in message
    # The same without what is hostile is a scan.
    assert service.predict(NRRD + b"\n" + VOXELS)[0] == service.predict(MHA + LOCAL + VOXELS)[0] == 200


@pytest.mark.parametrize("words", [b"CompressedData = True\n", b"CompressedData=True\n", b"CompressedData: T\n"])
def test_packed_voxels_are_counted(service, tmp_path, words):
    bomb = zlib.compress(bytes(60_000_000))
    size = b"CompressedDataSize = %d\n" % len(bomb)
    packed = MHA.replace(b"CompressedData = False\n", words + size) + LOCAL + bomb
    status, message = service.error(packed)
    assert status == 413 and "unpacks to far more" in message
    status, message = service.error(packed.replace(size, b""))
    assert status == 422 and "file 1 has packed voxels" in message
    (tmp_path / "x").write_bytes(b"head" + zlib.compress(bytes(1000)))
    assert unpacked_beyond(tmp_path / "x", 999, 4) and not unpacked_beyond(tmp_path / "x", 1000, 4)
    assert service.error(NRRD.replace(b"2 2 2", b"2000 2000 2000") + b"\n" + VOXELS)[0] == 413


def test_voxels_that_a_packed_stream_lacks_are_no_memory_of_the_service(service):
    few = zlib.compress(VOXELS[:1])
    size = b"CompressedDataSize = %d\n" % len(few)
    packed = MHA.replace(b"CompressedData = False\n", b"CompressedData = True\n" + size) + LOCAL + few
    status, message = service.error(packed)
    assert status == 422 and "file 1 is truncated: it unpacks to 1 bytes" in message


def test_a_line_that_ends_its_reader_does_not_end_the_service(service):
    status, message = service.error(NRRD.replace(b"type: ", b"type: " + b"x" * 2000) + b"\n" + VOXELS)
    assert status == 422 and "file 1 has a line of 20" in message


def test_packed_voxels_are_counted_in_the_file_that_holds_them(tmp_path):
    """Uploads with a second file are refused before; this counts nothing wrong should they be taken one day."""
    (tmp_path / "a.raw.gz").write_bytes(gzip.compress(bytes(1_000_000)))
    (tmp_path / "a.nrrd").write_bytes(NRRD.replace(b"raw", b"gzip") + b"data file: a.raw.gz\n\n")
    uploads._check_unpacked(tmp_path / "a.nrrd", 1_000_000)
    with pytest.raises(Refused):
        uploads._check_unpacked(tmp_path / "a.nrrd", 999_999)


def zip_of(name: str, content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return target.getvalue()


ZIPS = {
    "a name that reaches outside": (zip_of("../evil.dcm", b"x"), 422, "lies outside the folder"),
    "an absolute name": (zip_of("/tmp/evil.dcm", b"x"), 422, "lies outside the folder"),
    "a bomb": (zip_of("a.dcm", bytes(200_000_000)), 413, "unpack to 200000000 bytes"),
    "no DICOM": (zip_of("a.txt", b"hello"), 422, "holds no DICOM file"),
    "a scan of another format": (zip_of("a.nrrd", NRRD + b"data file: /etc/passwd\n\n"), 422, "holds no DICOM file"),
    "DICOM by its name alone": (zip_of("a.dcm", b"hello" * 100), 422, "holds no DICOM series"),
    "nothing": (zip_of("a", b"")[:-30], 422, "damaged zip"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips_that_are_not_safe_or_hold_no_series_are_refused(service, name):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    content, status, message = ZIPS[name]
    got = service.error(content)
    assert got[0] == status and message in got[1] and "/nnunet-serve" not in got[1], got


def test_a_missing_package_is_said(service, monkeypatch, tmp_path):
    whole = extras.importlib.import_module

    def absent(name):
        if name in ("SimpleITK", "pydicom"):
            raise ModuleNotFoundError(name=name)
        return whole(name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    for content, extra in ((NRRD + b"\n" + VOXELS, "formats"), (zip_of("a.dcm", b"x"), "dicom")):
        status, message = service.error(content)
        assert status == 415 and f"the extra '{extra}'" in message
    status, message = service.error(save_scan(tmp_path / "a.nii.gz").read_bytes(), format="nrrd")
    assert status == 415 and "cannot write nrrd" in message


def test_a_full_disk_is_said_before_anything_is_written(service, monkeypatch, tmp_path):
    content, saved, asked = save_scan(tmp_path / "a.nii.gz").read_bytes(), [], []
    name, promise = receiving.file_name, Scratch.promise
    monkeypatch.setattr(receiving, "file_name", lambda *args: saved.append(args) or name(*args))
    monkeypatch.setattr(Scratch, "promise", lambda *args: asked.append(args[2]) or promise(*args))
    # Nothing is written here, so that all promised room is still to be taken.
    monkeypatch.setattr(Folder, "written_bytes", lambda folder: 0)

    def refused(*free: int) -> bool:
        """Whether a scan is, where there is so much room at each time that it is asked for."""
        left = list(free)
        monkeypatch.setattr("serving.scratch.free_bytes", lambda path: left.pop(0) + SPARE_BYTES)
        saved.clear(), asked.clear()
        status, body, _ = service.predict(content)
        assert status == 200 or (status == 507 and "no room" in json.loads(body)["error"])
        return status == 507

    # The upload, which lies there twice while it comes; then the mask.
    sent, mask = 2 * len(form([content])[0]), 2 * 12 * 10 * 14
    assert refused(sent - 1) and asked == [sent] and not saved
    assert refused(sent, sent + mask - 1) and asked == [sent, mask] and len(saved) == 1
    assert not refused(sent, sent + mask)


def test_codes_of_segments_are_those_that_the_service_was_given(model, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    from tests.inference.dicom.made_up import values, write_series

    write_series(tmp_path / "ct", values((9, 10, 11)))
    codes = tmp_path / "dataset.json"
    codes.write_text(json.dumps({"segment_codes": {"anterior": ["10200004", "SCT", "Liver"]}}))
    with running(Predictor.load(model, device="cpu"), segment_codes=codes) as client:
        (tmp_path / "got.dcm").write_bytes(client.predict(zipped(tmp_path / "ct"), format="dicom-seg")[1])
    found = pydicom.dcmread(tmp_path / "got.dcm").SegmentSequence
    assert [each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for each in found] == ["Liver", "Tissue"]
    codes.write_text(json.dumps({"segment_codes": {"spleen": ["1", "SCT", "Spleen"]}}))
    with (
        pytest.raises(UserError, match="spleen is no class of the model"),
        running(Predictor.load(model, device="cpu"), segment_codes=codes),
    ):
        pass
