"""Masks as DICOM-SEG: read back by highdicom and by pydicom, on the slices of their source."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from inference.dicom.segmentation import Segment, segments_of, write_segmentation
from inference.scans import find_input, with_reference
from tests.inference.dicom.made_up import PATIENT, values, write_frames, write_series
from utils.errors import UserError

highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
import pydicom  # noqa: E402

CLASSES = {"liver": 1, "tumour": 4}
LIVER = ("10200004", "SCT", "Liver")


def mask_of(stored: np.ndarray) -> np.ndarray:
    """A mask (z, y, x) by the values of the slices: 1 and 4 somewhere, one slice empty."""
    mask = np.where(stored > 1600, 4, np.where(stored > 1000, 1, 0)).astype(np.uint8)
    mask[2] = 0
    return mask


def write(tmp_path, place, *, labelmap=False, anonymous=False, codes=None, empty=False):
    (scan,) = find_input(place, 1).scans
    volume = scan.read()
    mask = mask_of((volume.array[0] + 1024).astype(np.int16)) * np.uint8(not empty)
    path = tmp_path / "mask.seg.dcm"
    write_segmentation(
        path, mask, volume.geometry, series=scan.series, segments=segments_of(CLASSES, codes), labelmap=labelmap,
        anonymous=anonymous,
    )  # fmt: skip
    return path


def expected(stored: np.ndarray) -> np.ndarray:
    """Which slices (z, y, x) have which segment number; the position of slices decides their order."""
    mask = mask_of(stored[:, ::-1, ::-1])[:, ::-1, ::-1]
    return np.where(mask == 4, 2, mask)


@pytest.mark.parametrize("labelmap", [False, True])
def test_both_kinds_are_read_back_on_their_source(tmp_path, labelmap):
    made = write_series(tmp_path / "ct", values())
    path = write(tmp_path, tmp_path / "ct", labelmap=labelmap)
    segmentation = highdicom.seg.segread(path)
    sources = {pydicom.dcmread(file).SOPInstanceUID: index for index, file in enumerate(made.files)}
    found = segmentation.get_pixels_by_source_instance(
        list(sources), combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, expected(values()))
    data = pydicom.dcmread(path)
    assert data.Modality == "SEG" and data.SegmentationType == ("LABELMAP" if labelmap else "BINARY")
    named = {each.SegmentNumber: each.SegmentLabel for each in data.SegmentSequence}
    assert {number: name for number, name in named.items() if number} == {1: "liver", 2: "tumour"}
    (series,) = data.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == made.uid
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} == set(sources)
    assert (
        data.PatientName == PATIENT and data.FrameOfReferenceUID == pydicom.dcmread(made.files[0]).FrameOfReferenceUID
    )


def test_voxels_read_by_pydicom_alone_lie_at_their_positions(tmp_path):
    write_series(tmp_path / "ct", values())
    data = pydicom.dcmread(write(tmp_path, tmp_path / "ct"))
    planes = data.pixel_array
    true = expected(values())
    for plane, group in zip(planes, data.PerFrameFunctionalGroupsSequence):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        index = round((float(position[2]) - 100) / 2.5)
        np.testing.assert_array_equal(plane, true[index] == number)
    assert len(planes) == sum(int((true[i] == n).any()) for i in range(5) for n in (1, 2))


def test_frames_of_one_file_are_referred_to(tmp_path):
    order = (3, 0, 4, 1, 2)
    made = write_frames(tmp_path / "ct" / "all.dcm", values(), order)
    segmentation = highdicom.seg.segread(write(tmp_path, tmp_path / "ct"))
    found = segmentation.get_pixels_by_source_frame(
        pydicom.dcmread(made.files[0]).SOPInstanceUID, list(range(1, 6)), combine_segments=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected(values())[list(order)])


def test_a_tilted_gantry_gets_its_segments_on_its_own_slices(tmp_path):
    # A row from slice to slice: nothing is lost on the way there and back.
    made = write_series(tmp_path / "ct", values(), step=(0, 0.8, 2.5))
    segmentation = highdicom.seg.segread(write(tmp_path, tmp_path / "ct"))
    sources = [pydicom.dcmread(file).SOPInstanceUID for file in made.files]
    found = segmentation.get_pixels_by_source_instance(
        sources, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, expected(values()))


def test_a_volume_of_a_series_is_referred_to_alone(tmp_path):
    made = write_series(tmp_path / "ct" / "0", values(), EchoTime=1)
    write_series(tmp_path / "ct" / "1", values(seed=1), EchoTime=2, SeriesInstanceUID=made.uid)
    (scan,) = (each for each in find_input(tmp_path, 1).scans if each.case == "ct_echo2")
    volume = scan.read()
    write_segmentation(
        tmp_path / "mask.dcm", np.ones(volume.array.shape[1:], np.uint8), volume.geometry, series=scan.series,
        segments=segments_of(CLASSES, None), labelmap=False, anonymous=False,
    )  # fmt: skip
    (series,) = pydicom.dcmread(tmp_path / "mask.dcm").ReferencedSeriesSequence
    own = {pydicom.dcmread(path).SOPInstanceUID for path in scan.images}
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} == own


def rewrite(files, **values):
    """Attributes as no program that keeps to the standard writes them; None takes one out."""
    for file in files:
        data = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation(), warnings.catch_warnings(action="ignore"):
            for name, value in values.items():
                setattr(data, name, value) if value is not None else delattr(data, name)
            data.save_as(file)


LACKING = dict.fromkeys(
    ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
     "StudyTime", "ReferringPhysicianName", "SliceThickness")
)  # fmt: skip
ODD = {"PatientBirthDate": "1970-1", "StudyDate": "today", "StudyTime": "noon", "PatientSex": "female",
       "SpecificCharacterSet": "nonsense"}  # fmt: skip


@pytest.mark.parametrize("values_of", [LACKING, ODD], ids=["lacking", "odd"])
def test_headers_that_archives_emptied_or_scanners_spoiled_are_no_hindrance(tmp_path, values_of):
    made = write_series(tmp_path / "ct", values())
    rewrite(made.files, **values_of)
    data = pydicom.dcmread(write(tmp_path, tmp_path / "ct"))
    assert data.PatientBirthDate == data.StudyDate == data.StudyTime == data.PatientSex == ""
    assert data.PatientName == ("" if values_of is LACKING else PATIENT)
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 2.5


@pytest.mark.parametrize("codec", [b"rot13     ", b"undefined "])
def test_a_character_set_that_python_knows_and_that_is_none_of_text_is_no_hindrance(tmp_path, codec):
    made = write_series(tmp_path / "ct", values(), SpecificCharacterSet="ISO_IR 100")
    replace_bytes(made.files, b"ISO_IR 100", codec)
    data = pydicom.dcmread(write(tmp_path, tmp_path / "ct"))
    assert data.PatientName == PATIENT and "SpecificCharacterSet" not in data


def replace_bytes(files, old: bytes, new: bytes) -> None:
    """Put other bytes into files, once in each."""
    for path in files:
        content = path.read_bytes()
        assert content.count(old) == 1 and len(old) == len(new)
        path.write_bytes(content.replace(old, new))


def test_whatever_a_header_does_to_a_segmentation_is_a_message_that_quotes_nothing(tmp_path, monkeypatch):
    def spoiled(source):
        raise LookupError("Doe")

    write_series(tmp_path / "ct", values())
    monkeypatch.setattr("inference.dicom.sources._complete", spoiled)
    with pytest.raises(UserError, match=r"headers of ct lack something .* \(LookupError\)"):
        write(tmp_path, tmp_path / "ct")


def test_names_are_not_quoted_in_warnings(tmp_path, recwarn):
    rewrite(write_series(tmp_path / "ct", values()).files, PatientName="Jane")
    write(tmp_path, tmp_path / "ct")
    assert not recwarn


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_what_cannot_be_referred_to_is_said_before_the_work(tmp_path, name):
    rewrite(write_series(tmp_path / "ct", values()).files, **{name: None})
    (scan,) = find_input(tmp_path / "ct", 1).scans
    assert f"no {name}, which DICOM-SEG refers to" in with_reference(scan).problem
    with pytest.raises(UserError, match="headers of ct lack something"):
        write(tmp_path, tmp_path / "ct")
    assert not (tmp_path / "mask.seg.dcm").exists() and not list(tmp_path.glob(".tmp*"))


def test_an_empty_mask_is_a_file_too(tmp_path):
    write_series(tmp_path / "ct", values())
    assert not pydicom.dcmread(write(tmp_path, tmp_path / "ct", empty=True)).pixel_array.any()


def test_codes_come_from_dataset_json(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {}, "segment_codes": {"liver": LIVER}}))
    write_series(tmp_path / "ct", values())
    liver, tumour = pydicom.dcmread(write(tmp_path, tmp_path / "ct", codes=tmp_path / "dataset.json")).SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_both_codes_can_be_given(tmp_path):
    entry = {
        "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
        "type": ["108369006", "SCT", "Neoplasm"],
    }
    (tmp_path / "codes.json").write_text(json.dumps({"segment_codes": {"tumour": entry}}))
    assert segments_of(CLASSES, tmp_path / "codes.json")[1] == Segment(
        value=4, name="tumour", category=tuple(entry["category"]), kind=tuple(entry["type"])
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"labels": {}}, 'has no "segment_codes"'),
        ({"segment_codes": {"spleen": LIVER}}, "spleen is no class of the model(.|\n)*classes are liver, tumour"),
        ({"segment_codes": {"liver": ["1", "SCT"]}}, "liver: a code is"),
        ([], 'has no "segment_codes"'),
    ],
)
def test_codes_that_cannot_be_used_are_refused(tmp_path, content, reason):
    (tmp_path / "codes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        segments_of(CLASSES, tmp_path / "codes.json")


def test_an_anonymous_file_names_nobody(tmp_path):
    write_series(tmp_path / "ct", values())
    path = write(tmp_path, tmp_path / "ct", anonymous=True)
    content = path.read_bytes()
    for word in (b"Doe", b"Jane", b"PatX", b"Who^Dr"):
        assert word not in content
    data = pydicom.dcmread(path)
    assert not any(data.get(name) for name in ("PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"))


def test_an_anonymous_file_takes_over_nothing_else_of_the_patient(tmp_path):
    for file in write_series(tmp_path / "ct", values()).files:
        data = pydicom.dcmread(file)
        data.OtherPatientNames, data.PatientComments, data.PatientAge = "Secret^Name", "secret words", "056Y"
        data.StudyDescription, data.PatientAddress = "secret study", "secret street"
        data.NameOfPhysiciansReadingStudy, data.AdditionalPatientHistory = "secret^doctor", "secret past"
        data.save_as(file)
    content = write(tmp_path, tmp_path / "ct", anonymous=True).read_bytes()
    assert b"secret" not in content.lower() and b"056Y" not in content
    assert b"secret" in write(tmp_path, tmp_path / "ct").read_bytes().lower(), "else it shows nothing"
