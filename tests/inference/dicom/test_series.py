"""DICOM series become scans by their headers, whatever their files are called; what makes no grid is named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from inference.dicom import voxels
from inference.preparing import read_scan
from inference.scans import find_input
from tests.inference.dicom.made_up import values, write_frames, write_series
from utils import extras
from utils.errors import UserError
from utils.nifti import read_image

OBLIQUE = (0.8, 0.48, 0.36, -0.6, 0.64, 0.48)


def found(place):
    return {scan.case: scan for scan in find_input(place, 1).scans}


def problem(place) -> str:
    (scan,) = find_input(place, 1).scans
    with pytest.raises(UserError) as caught:
        scan.read()
    return str(caught.value)


def simpleitk_scan(folder, tmp_path):
    """The scan as SimpleITK reads the series."""
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    # By itself it takes the type of the first slice for all of them, and cuts fractions off.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    sitk.WriteImage(reader.Execute(), str(tmp_path / "oracle.nrrd"))
    return read_image([tmp_path / "oracle.nrrd"])


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), OBLIQUE])
def test_a_series_is_the_scan_that_simpleitk_reads(tmp_path, orientation):
    scales = [(1 + 0.25 * index, -1000 - index) for index in range(5)]
    write_series(tmp_path / "ct", values(), orientation=orientation, scales=scales)
    (scan,) = find_input(tmp_path / "ct", 1).scans
    volume, oracle = scan.read(), simpleitk_scan(tmp_path / "ct", tmp_path)
    np.testing.assert_array_equal(volume.array, oracle.array)
    np.testing.assert_allclose(volume.geometry.affine, oracle.geometry.affine, atol=1e-6)
    assert volume.array.flags.c_contiguous and volume.array.dtype == np.float32
    shape, affine = scan.header()
    assert shape == volume.geometry.shape_xyz == oracle.geometry.shape_xyz
    np.testing.assert_array_equal(affine, volume.geometry.affine)


def test_slices_are_in_hounsfield_units_and_in_the_order_of_position(tmp_path):
    write_series(tmp_path / "ct", values())
    volume = found(tmp_path / "ct")["ct"].read()
    # In LPS both in-plane axes run against the working axes.
    np.testing.assert_array_equal(volume.array[0], values()[:, ::-1, ::-1] - 1024.0)
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.6))


def test_frames_of_one_file_are_ordered_too(tmp_path):
    write_series(tmp_path / "slices", values())
    write_frames(tmp_path / "frames" / "all.dcm", values(), (3, 0, 4, 1, 2))
    scans = found(tmp_path)
    one, other = (scans[name].read() for name in ("frames", "slices"))
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.geometry.affine, other.geometry.affine)


def test_studies_are_told_apart_and_other_files_are_named(tmp_path):
    write_series(tmp_path / "a" / "ct", values(), number=3)
    write_series(tmp_path / "b", values(seed=1), number=3)
    write_series(tmp_path / "b2", values(seed=2), number=4)
    for path in (tmp_path / "b2").iterdir():
        path.rename(tmp_path / "b" / f"other{path.name}")
    (tmp_path / "b" / "notes.txt").write_text("no DICOM")
    (tmp_path / "overview.png").write_text("no scan")
    write_series(tmp_path / "b" / "scout", values(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "report", values()[:1], Modality="SR")
    (tmp_path / "b" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    there = find_input(tmp_path, 1)
    assert {scan.case for scan in there.scans} == {"a_ct", "b_3", "b_4"}
    np.testing.assert_array_equal(found(tmp_path)["b_4"].read().array[0, :, ::-1, ::-1], values(seed=2) - 1024.0)
    text = "\n".join(there.left_out)
    for part in ("2 files that are no DICOM", "5 files: localizers", "1 files: SR and no scan"):
        assert part in text
    assert "damaged headers" in text or "no DICOM" in text


def test_series_that_would_have_one_name_are_refused(tmp_path):
    write_series(tmp_path / "a", values(), number=1)
    for path in write_series(tmp_path / "more", values(), number=2).files:
        path.rename(tmp_path / "a" / f"more{path.name}")
    write_series(tmp_path / "a_2", values())
    with pytest.raises(UserError, match=r"several series of one name:\n  - a_2"):
        find_input(tmp_path, 1)


def test_a_file_means_the_series_that_it_belongs_to(tmp_path):
    write_series(tmp_path / "ct", values())
    second = write_series(tmp_path / "more", values(seed=1))
    for path in second.files:
        path.rename(tmp_path / "ct" / f"more{path.name}")
    (scan,) = find_input(tmp_path / "ct" / "moreIM002", 1).scans
    assert len(scan.images) == 5 and scan.images[0].name == "moreIM001"


def test_missing_slices_are_named(tmp_path):
    write_series(tmp_path / "ct", values((9, 4, 4)), leave_out=(3, 4))
    assert "slices are missing where others are 2.5 mm apart: 2 between instance numbers 7 and 4 (7.5 mm" in problem(
        tmp_path
    )


def test_copies_are_left_out_and_other_slices_in_one_place_are_named(tmp_path):
    made = write_series(tmp_path / "ct", values())
    shutil.copy(made.files[1], tmp_path / "ct" / "copy")
    (scan,) = find_input(tmp_path, 1).scans
    assert scan.remarks == ("1 copies of slices are left out",)
    np.testing.assert_array_equal(scan.read().array[0], values()[:, ::-1, ::-1] - 1024.0)
    again = write_series(tmp_path / "again", values(seed=1), SeriesInstanceUID=made.uid)
    for path in again.files[1:]:
        path.unlink()
    again.files[0].rename(tmp_path / "ct" / "again")
    assert "1 places have two slices of different content (instance numbers 5 and 5)" in problem(tmp_path / "ct")


def several(folder, count: int, marks, **options) -> str:
    """Some volumes of one series, each with attributes of its own; returns the UID."""
    uid = None
    for number in range(count):
        made = write_series(folder / str(number), values(seed=number), **marks(number), **options)
        options["SeriesInstanceUID"] = uid = uid or made.uid
    return uid


@pytest.mark.parametrize(
    ("marks", "names", "words"),
    [(lambda n: {"EchoTime": 10 - 3.5 * n}, ["ct_echo3", "ct_echo2", "ct_echo1"], "echo time"),
     (lambda n: {"DiffusionBValue": 500.0 * n}, ["ct_b0", "ct_b500", "ct_b1000"], "b-value"),
     (lambda n: {"ImageType": ["ORIGINAL", "PRIMARY", "MPR"[n]]}, ["ct_type1", "ct_type2", "ct_type3"], "image type"),
     (lambda n: {"TemporalPositionIdentifier": n + 1, "AcquisitionTime": f"10101{n}"}, ["ct_time1", "ct_time2",
      "ct_time3"], "position in time"),
     (lambda n: {"EchoTime": n % 2, "FlipAngle": n // 2}, ["ct_echo1_flip1", "ct_echo2_flip1", "ct_echo1_flip2"],
      "echo time, flip angle")],
)  # fmt: skip
def test_the_volumes_of_one_series_are_scans_of_their_own(tmp_path, marks, names, words):
    several(tmp_path / "ct", 3, marks)
    scans = found(tmp_path)
    assert set(scans) == set(names)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(scans[name].read().array[0], values(seed=number)[:, ::-1, ::-1] - 1024.0)
        assert len(scans[name].images) == 5
        assert scans[name].remarks == (f"one of 3 volumes of its series, told apart by {words}",)


def test_a_volume_of_a_series_that_lacks_slices_fails_alone(tmp_path):
    uid = several(tmp_path / "ct", 1, lambda n: {"EchoTime": 1})
    write_series(tmp_path / "ct/1", values(seed=1), EchoTime=2, SeriesInstanceUID=uid, leave_out=(2,))
    scans = found(tmp_path)
    assert scans["ct_echo1"].read().array.size
    with pytest.raises(UserError, match="slices are missing"):
        scans["ct_echo2"].read()


def test_volumes_without_marks_are_told_apart_by_instance_numbers_or_refused(tmp_path):
    import pydicom

    uid = several(tmp_path / "ct", 1, lambda n: {})
    second = write_series(tmp_path / "ct" / "more", values(seed=1), SeriesInstanceUID=uid)
    assert "10 slices lie at 5 places: several volumes in one series" in problem(tmp_path)
    for path in second.files:
        data = pydicom.dcmread(path)
        data.InstanceNumber += 5
        data.save_as(path)
    scans = found(tmp_path)
    np.testing.assert_array_equal(scans["ct_volume2"].read().array[0, :, ::-1, ::-1], values(seed=1) - 1024.0)
    assert "by the order of instance numbers alone" in scans["ct_volume1"].remarks[0]


def test_frames_of_several_volumes_are_told_apart(tmp_path):
    import pydicom
    from pydicom.dataset import Dataset

    made = write_frames(tmp_path / "ct" / "all.dcm", np.concatenate([values(), values(seed=1)]), range(10))
    data = pydicom.dcmread(made.files[0])
    for index, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [-20.5, 10.25, 100.0 + 2.5 * (index % 5)]
        content = Dataset()
        content.TemporalPositionIndex = 1 + index // 5
        group.FrameContentSequence = [content]
    data.save_as(made.files[0])
    scans = found(tmp_path)
    np.testing.assert_array_equal(scans["ct_time2"].read().array[0, :, ::-1, ::-1], values(seed=1) - 1024.0)
    # A file that says of fewer frames where they are than it has is not taken for a smaller scan.
    del data.PerFrameFunctionalGroupsSequence[9]
    data.save_as(made.files[0])
    with pytest.raises(UserError, match="1 files: frames without a position"):
        find_input(tmp_path, 1)


def test_a_tilted_gantry_is_straightened(tmp_path):
    # A function of place that linear interpolation keeps.
    angle, rows, columns = np.radians(12), np.arange(6)[:, None], np.arange(7)
    step = (0.3, -2.5 * np.sin(angle), 2.5 * np.cos(angle))
    places = [(-20.5 + 0.3 * z + 0.6 * columns, 10.25 + step[1] * z + 0.8 * rows, 100 + step[2] * z) for z in range(5)]
    planes = np.stack([5 * (7 * x + 3 * y + 5 * z + 1000) for x, y, z in places])
    write_series(tmp_path / "ct", np.rint(planes).astype(np.int16), step=step, RescaleSlope=0.2, RescaleIntercept=-1000)
    (scan,) = find_input(tmp_path, 1).scans
    assert scan.remarks == ("the gantry was tilted by 13.8 degrees; slices are brought onto one grid",)
    volume = scan.read()
    shape, affine = scan.header()
    assert shape == volume.geometry.shape_xyz == (9, 9, 5)
    turned = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(turned.T @ turned, np.eye(3), atol=1e-9)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    true = 7 * -x + 3 * -y + 5 * z
    stored = to_stored(volume)
    seen = stored > stored.min()
    assert seen.sum() > 5 * 5 * 6
    np.testing.assert_allclose(stored[seen], true[seen], atol=0.3)


def to_stored(volume):
    from utils.nifti import from_working

    return from_working(volume.array[0], volume.geometry)


def test_slice_distances_that_differ_are_refused(tmp_path):
    made = write_series(tmp_path / "ct", values())
    import pydicom

    data = pydicom.dcmread(made.files[2])
    data.ImagePositionPatient = [-20.5, 10.25, 105.9]
    data.save_as(made.files[2])
    assert "instance number 3 lies 0.9 mm off its place" in problem(tmp_path)


def test_slices_of_other_planes_are_left_out_where_most_agree(tmp_path):
    made = write_series(tmp_path / "ct", values())
    scout = write_series(
        tmp_path / "scout", values((2, 6, 7)), orientation=(0, 1, 0, 0, 0, -1), SeriesInstanceUID=made.uid
    )
    for path in scout.files:
        path.rename(tmp_path / "ct" / f"scout{path.name}")
    (scan,) = find_input(tmp_path / "ct", 1).scans
    assert scan.remarks == ("2 slices in other planes or of other sizes than the 5 others are left out",)
    assert scan.header()[0] == (7, 6, 5)


def test_a_folder_of_one_series_is_a_scan_in_python_too(tmp_path):
    write_series(tmp_path / "ct", values())
    volume, title = read_scan(tmp_path / "ct")
    assert title == "ct" and volume.array.shape == (1, 5, 6, 7)
    write_series(tmp_path / "more", values())
    with pytest.raises(UserError, match="holds 2 scans, not one"):
        read_scan(tmp_path)


def test_three_planes_in_one_series_are_a_localizer(tmp_path):
    made = write_series(tmp_path / "ct" / "a", values()[:2])
    for name, orientation in (("b", (0, 1, 0, 0, 0, -1)), ("c", (1, 0, 0, 0, 0, -1))):
        write_series(tmp_path / "ct" / name, values()[:2], orientation=orientation, SeriesInstanceUID=made.uid)
    assert "6 slices lie in 3 planes" in problem(tmp_path)


def test_a_model_of_several_channels_cannot_take_a_series(tmp_path):
    write_series(tmp_path / "ct", values())
    (scan,) = find_input(tmp_path, 2).scans
    with pytest.raises(UserError, match="needs 2 channels"):
        scan.read()


def test_a_file_cut_short_fails_alone(tmp_path):
    made = write_series(tmp_path / "ct", values())
    write_series(tmp_path / "ok", values())
    made.files[0].write_bytes(made.files[0].read_bytes()[:-20])
    scans = found(tmp_path)
    assert scans["ok"].read().array.size
    with pytest.raises(UserError, match="instance number 5 is damaged or cut short"):
        scans["ct"].read()


@pytest.mark.slow
def test_whatever_damage_does_to_a_file_is_a_message(tmp_path):
    made = write_series(tmp_path / "ct", values((3, 4, 5)))
    whole, random = made.files[0].read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        content = np.frombuffer(whole, np.uint8).copy()
        content[random.integers(132, len(whole), 20)] = random.integers(0, 256, 20)
        made.files[0].write_bytes(content.tobytes())
        with contextlib.suppress(UserError):
            for scan in find_input(tmp_path, 1).scans:
                scan.read()


ODD = {
    "no size": ({"PixelSpacing": ["nan", "1"]}, "slices without a position"),
    "no place": ({"ImagePositionPatient": ["inf", "0", "0"]}, "slices without a position"),
    "kilometres": ({"PixelSpacing": ["1e300", "1"]}, "that lie in no grid"),
    "one axis": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "lie at 1 places"),
    "far away": ({"ImagePositionPatient": ["1e300", "0", "0"]}, "lie at 1 places"),
}


@pytest.mark.parametrize("name", ODD)
def test_numbers_that_make_no_grid_are_a_fault_of_their_series_alone(tmp_path, name):
    import pydicom

    changes, message = ODD[name]
    write_series(tmp_path / "good", values())
    for path in write_series(tmp_path / "odd", values(seed=1)).files:
        data = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            for key, value in changes.items():
                setattr(data, key, value)
            data.save_as(path)
    there = find_input(tmp_path, 1)
    faults = []
    for scan in there.scans:
        with contextlib.suppress(UserError):
            scan.header()
            scan.read()
            continue
        faults.append(scan.problem)
    assert re.search(message, " ".join([*map(str, faults), *there.left_out]))
    assert "good" in {scan.case for scan in there.scans if scan.problem is None}


def test_a_slope_that_makes_nothing_finite_warns_nobody_here(tmp_path):
    import pydicom

    for path in write_series(tmp_path / "ct", values()).files:
        data = pydicom.dcmread(path)
        data.RescaleSlope = "1e300"
        data.save_as(path)
    assert not np.isfinite(found(tmp_path)["ct"].read().array).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_among_the_slices_is_not_waited_for(tmp_path):
    write_series(tmp_path / "ct", values())
    os.mkfifo(tmp_path / "ct/pipe.dcm")
    there = find_input(tmp_path, 1)
    assert [scan.case for scan in there.scans] == ["ct"] and there.left_out == ("1 files that are no DICOM",)


@pytest.mark.parametrize("place", [".", "IM001", "../anna", "sub/.."])
def test_a_series_in_the_folder_of_one_dot_is_called_after_that_folder(tmp_path, monkeypatch, place):
    write_series(tmp_path / "anna", values())
    (tmp_path / "anna/sub").mkdir()
    monkeypatch.chdir(tmp_path / "anna")
    assert [scan.case for scan in find_input(Path(place), 1).scans] == ["anna"]


def test_packed_slices_are_unpacked(tmp_path):
    import pydicom
    from pydicom.uid import RLELossless

    made = write_series(tmp_path / "ct", values())
    for path in made.files:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(found(tmp_path)["ct"].read().array[0], values()[:, ::-1, ::-1] - 1024.0)


def pack(files, folder) -> None:
    """Pack the frames of files as lossless JPEG, by GDCM, which pydicom alone cannot unpack."""
    sitk = pytest.importorskip("SimpleITK")
    import pydicom
    from pydicom.encaps import encapsulate, generate_frames

    for path in files:
        data, packed, frames = pydicom.dcmread(path), None, []
        array = data.pixel_array
        for plane in array.reshape(-1, *array.shape[-2:]):
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.SetUseCompression(True)
            writer.SetCompressor("JPEG")
            writer.SetFileName(str(folder / "packed.dcm"))
            writer.Execute(sitk.GetImageFromArray(plane[None].astype(np.uint16)))
            packed = pydicom.dcmread(folder / "packed.dcm")
            frames += generate_frames(packed.PixelData, number_of_frames=1)
        data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate(frames), packed.file_meta.TransferSyntaxUID
        data["PixelData"].is_undefined_length = True
        for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
            setattr(data, name, packed[name].value)
        data.save_as(path, enforce_file_format=True)
    (folder / "packed.dcm").unlink()


@pytest.mark.parametrize("kind", ["files", "frames"])
def test_what_pydicom_cannot_unpack_simpleitk_does_slice_by_slice(tmp_path, monkeypatch, kind):
    used, original = [], voxels._by_simpleitk
    monkeypatch.setattr(voxels, "_by_simpleitk", lambda *args: used.append(args) or original(*args))
    scales = [(1 + 0.25 * index, -1000 - index) for index in range(5)]
    if kind == "files":
        made = write_series(tmp_path / "ct", values(), scales=scales)
    else:
        made = write_frames(tmp_path / "ct" / "all.dcm", values(), (3, 0, 4, 1, 2), scales=scales)
    pack(made.files, tmp_path)
    (scan,) = find_input(tmp_path, 1).scans
    slopes, intercepts = np.array(scales, np.float64).T[:, :, None, None]
    expected = (values()[:, ::-1, ::-1] * slopes + intercepts).astype(np.float32)
    np.testing.assert_array_equal(scan.read().array[0], expected)
    assert len(used) == len(made.files)


def write_echoes(path, echoes):
    """One file of several volumes, echo by echo within each place."""
    import pydicom

    write_frames(path, echoes.transpose(1, 0, 2, 3).reshape(-1, *echoes.shape[2:]), range(echoes[:, :, 0, 0].size))
    data = pydicom.dcmread(path)
    for index, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.5 * (index // len(echoes))]
        group.MREchoSequence = [pydicom.Dataset()]
        group.MREchoSequence[0].EffectiveEchoTime = index % len(echoes)
    data.save_as(path)
    return path


def test_a_packed_file_that_lacks_frames_is_cut_short_and_no_other_series_with_it(tmp_path):
    import pydicom
    from pydicom.encaps import encapsulate, generate_frames

    path = write_echoes(tmp_path / "cut/all.dcm", np.stack([values((3, 6, 7), seed) for seed in range(2)]))
    pack([path], tmp_path)
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate(list(generate_frames(data.PixelData, number_of_frames=6))[:3])
    data.save_as(path)
    write_series(tmp_path / "whole", values())
    scans_of = found(tmp_path)
    assert scans_of.pop("whole").read().array.shape == (1, 5, 6, 7)
    for scan in scans_of.values():
        with pytest.raises(UserError, match=r"instance number \d+ is damaged or cut short"):
            scan.read()
    assert len(scans_of) == 2


def test_an_unknown_character_set_is_neither_in_the_way_nor_quoted(tmp_path):
    """Warnings are errors here."""
    import pydicom

    made = write_series(tmp_path / "ct", values())
    for path in made.files:
        data = pydicom.dcmread(path)
        data.SpecificCharacterSet = "ISO_IR 100"
        data.save_as(path)
    pack(made.files, tmp_path)
    for path in made.files:
        content = path.read_bytes()
        assert content.count(b"ISO_IR 100") == 1
        path.write_bytes(content.replace(b"ISO_IR 100", b"Doe^Jane  "))
    np.testing.assert_array_equal(found(tmp_path)["ct"].read().array[0], values()[:, ::-1, ::-1] - 1024.0)


@pytest.mark.parametrize("packing", ["none", "RLE", "JPEG"])
def test_of_a_file_of_many_volumes_the_frames_of_each_are_unpacked_once(tmp_path, monkeypatch, packing):
    import pydicom
    from pydicom.pixels.decoders.base import DecodeRunner

    echoes = np.stack([values(seed=seed) for seed in range(3)])
    path = write_echoes(tmp_path / "mr/all.dcm", echoes)
    if packing == "RLE":
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
    if packing == "JPEG":
        pack([path], tmp_path)
    unpacked, one, several = [], DecodeRunner.decode, voxels._by_simpleitk
    monkeypatch.setattr(DecodeRunner, "decode", lambda self, index: unpacked.append(index) or one(self, index))
    monkeypatch.setattr(voxels, "_by_simpleitk", lambda *args: unpacked.extend(args[1]) or several(*args))
    scans_of = found(tmp_path)
    assert len(scans_of) == 3
    for stored, scan in zip(echoes, scans_of.values(), strict=True):
        np.testing.assert_array_equal(scan.read().array[0], stored[:, ::-1, ::-1] - 1024.0)
    assert packing == "none" or sorted(set(unpacked)) == list(range(15))
    assert len(unpacked) <= 15 + 3 * (packing == "JPEG")


def test_what_is_unpacked_by_way_of_a_file_leaves_nothing(tmp_path, monkeypatch):
    """Neither at the end nor where the run is killed: the next one removes it. Nobody else may look at it."""
    place = tmp_path / "tmp"
    left = place / f"nnunet-dicom-{os.getuid()}/.tmp-0123456789abcdef"
    left.mkdir(parents=True)
    left.parent.chmod(0o700)
    (left / "stored.dcm").write_bytes(b"Doe^Jane")
    for path in (left / "stored.dcm", left):
        os.utime(path, (1, 1))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    pack(write_series(tmp_path / "ct", values()).files, tmp_path)
    found(tmp_path / "ct")["ct"].read()
    assert list(place.rglob("*")) == [left.parent]
    left.parent.chmod(0o755)
    with pytest.raises(UserError, match="not a folder of this user alone"):
        found(tmp_path / "ct")["ct"].read()


def test_nothing_of_the_patient_is_in_a_scan(tmp_path):
    write_series(tmp_path / "ct", values())
    (scan,) = find_input(tmp_path, 1).scans
    for word in ("Doe", "Jane", "PatX", "Who^Dr"):
        assert word not in repr(scan)


def test_without_pydicom_the_command_is_said(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    write_series(tmp_path / "ct", values())
    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package pydicom.*pip install -e '\.\[dicom\]'"):
        find_input(tmp_path, 1)
