"""What a header says of place and size is read in mm and written back bit by bit; what it leaves open is refused."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.tilted import PLANES, save_tilted, tilted
from utils.errors import UserError
from utils.files import from_dict, to_dict
from utils.geometry import Geometry
from utils.nifti import forms_difference_mm, is_same_grid, read_header, read_image, read_label, write_mask

VOXELS = np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4)
PIXDIM, FORMS = slice(76, 92), slice(252, 328)
"""Bytes of a NIfTI-1 header: qfac and voxel sizes; codes, quaternion, offsets and rows."""


def header_bytes(*, units: int = 2, codes: tuple[int, int] = (1, 2), mirrored: bool = False) -> bytearray:
    """A file whose qform is turned by 20 degrees against its sform, with numbers that float32 rounds."""
    angle = np.deg2rad(20)
    turned, straight = np.eye(4), np.diag([-1.1, 0.7, 1.3, 1])
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:3, :3] = turned[:3, :3] @ np.diag([1.1, 0.7, -1.3 if mirrored else 1.3])
    turned[:3, 3], straight[:3, 3] = (-30.1, 10.2, 5.3), (40.4, -20.5, -9.6)
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_qform(turned, 1)
    image.header.set_sform(straight, 2)
    image.header["xyzt_units"] = units
    content = bytearray(image.to_bytes())
    content[252:256] = np.array(codes, "<i2").tobytes()
    return content


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (4, 0), (0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("units", [2, 1, 11])
def test_a_mask_gets_both_forms_bit_by_bit(tmp_path, codes, units, mirrored):
    content = header_bytes(units=units, codes=codes, mirrored=mirrored)
    volume = read_image([save(tmp_path / "scan.nii", content)])
    # Through the JSON of a preprocessed case, as main.py predicts from it.
    geometry = from_dict(Geometry, json.loads(json.dumps(to_dict(volume.geometry))), source="case.json")
    write_mask(tmp_path / "mask.nii.gz", (volume.array[0] == 17).astype(np.uint8), geometry)
    written = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert written[PIXDIM] == content[PIXDIM] and written[FORMS] == content[FORMS]
    assert written[123] == units
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").get_fdata() == 1, VOXELS == 17)


@pytest.mark.parametrize(("units", "mm"), [(0, 1), (2, 1), (1, 1000), (3, 0.001), (9, 1000), (8 + 3, 0.001)])
@pytest.mark.parametrize("codes", [(1, 2), (1, 0), (0, 0)], ids=str)
def test_metres_and_micrometres_become_mm(tmp_path, units, mm, codes):
    path = save(tmp_path / "scan.nii.gz", header_bytes(units=units, codes=codes))
    volume = read_image([path])
    np.testing.assert_allclose(volume.spacing_mm, np.array([1.3, 0.7, 1.1]) * mm, rtol=1e-6)
    expected = nib.load(path).affine * [[mm], [mm], [mm], [1]]
    np.testing.assert_allclose(read_header(path)[1], expected, rtol=1e-12)
    np.testing.assert_allclose(volume.geometry.affine, expected, rtol=1e-12)


def test_a_grid_that_was_made_is_written_in_its_units(tmp_path):
    affine = ((2.0, 0, 0, 3), (0, 2.0, 0, 4), (0, 0, 2.0, 5), (0, 0, 0, 1))
    geometry = Geometry(shape_xyz=(2, 2, 2), affine=affine, qform_code=1, sform_code=1, xyzt_units=1)
    write_mask(tmp_path / "mask.nii", np.zeros((2, 2, 2), np.uint8), geometry)
    np.testing.assert_allclose(read_header(tmp_path / "mask.nii")[1], affine, rtol=1e-6)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii").header.get_zooms(), 0.002, rtol=1e-6)


def test_a_form_without_numbers_loses_its_code(tmp_path):
    content = header_bytes()
    content[268:272] = np.array([np.nan], "<f4").tobytes()  # qoffset_x
    geometry = read_image([save(tmp_path / "scan.nii", content)]).geometry
    assert (geometry.qform_code, geometry.sform_code) == (0, 2)
    json.dumps(to_dict(geometry), allow_nan=False)


def test_two_forms_that_disagree_are_measured(tmp_path):
    apart = read_image([save(tmp_path / "a.nii", header_bytes())]).geometry
    assert forms_difference_mm(apart) == pytest.approx(78.7, abs=0.1)
    for name, codes in (("b", (0, 2)), ("c", (1, 0))):
        assert (
            forms_difference_mm(read_image([save(tmp_path / f"{name}.nii", header_bytes(codes=codes))]).geometry) == 0
        )
    nib.save(nib.Nifti1Image(VOXELS, np.diag([-0.3, 0.4, 5, 1])), tmp_path / "same.nii")
    assert forms_difference_mm(read_image([tmp_path / "same.nii"]).geometry) < 1e-4


@pytest.mark.parametrize("offset", [0, 348, -4, np.nan])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_an_offset_inside_the_header_reads_the_voxels_behind_it_or_nothing(tmp_path, offset, ending):
    content = header_bytes()
    content[108:112] = struct.pack("<f", offset)
    path = save(tmp_path / f"scan.{ending}", content)
    try:
        values = read_image([path]).array
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert sorted(values.ravel()) == sorted(VOXELS.ravel())
    longer = save(tmp_path / f"more.{ending}", content + bytes(16))
    with pytest.raises(UserError, match=r"more\.nii"):
        read_image([longer])


def bare(*, pixdim: tuple[float, float, float], codes: tuple[int, int]) -> bytes:
    content = header_bytes(codes=codes)
    content[80:92] = np.array(pixdim, "<f4").tobytes()
    return bytes(content)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("pixdim", [(0, 0, 0), (1, 0, 1), (np.nan, 1, 1)], ids=str)
def test_a_voxel_size_that_is_missing_is_refused_by_name(tmp_path, pixdim, codes):
    path = save(tmp_path / "zero.nii.gz", bare(pixdim=pixdim, codes=codes))
    for read in (read_header, read_label, lambda p: read_image([p])):
        with pytest.raises(UserError, match=r"zero\.nii\.gz states voxel sizes .* unknown"):
            read(path)


def test_a_voxel_size_that_does_not_count_is_kept_without_a_word(tmp_path, caplog, capfd):
    path = save(tmp_path / "scan.nii", bare(pixdim=(0, 0, 0), codes=(0, 2)))
    volume = read_image([path])
    write_mask(tmp_path / "mask.nii", np.ones((4, 3, 2), np.uint8), volume.geometry)
    assert (tmp_path / "mask.nii").read_bytes()[PIXDIM] == path.read_bytes()[PIXDIM]
    np.testing.assert_allclose(volume.spacing_mm, (1.3, 0.7, 1.1), rtol=1e-6)
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tail", [b"TRAILING", bytes(512), bytes(512) + b"x", b"\x1f"], ids=["text", "0", "0x", "1f"])
@pytest.mark.parametrize("size", [(1, 1, 1), (30, 30, 30)], ids=str)
def test_bytes_after_the_gzip_stream_are_passed_over(tmp_path, tail, size):
    voxels = np.random.default_rng(0).integers(0, 999, size).astype(np.int16)
    content = nib.Nifti1Image(voxels, np.eye(4)).to_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content) + tail)
    assert read_header(path)[0] == size
    np.testing.assert_array_equal(read_image([path]).array[0], voxels.transpose(2, 1, 0))


def test_several_gzip_streams_are_one_file(tmp_path):
    content = bytes(header_bytes())
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:360]) + gzip.compress(content[360:]))
    assert sorted(read_image([path]).array.ravel()) == sorted(VOXELS.ravel())
    assert read_header(path)[0] == VOXELS.shape
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"scan\.nii\.gz is truncated or damaged"):
        read_image([path])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), (1, 1, 6, 5)), ((5, 6, 7, 1, 1), (1, 7, 6, 5)), ((5, 6, 7, 1, 3), (3, 7, 6, 5)),
        ((5, 6, 1, 1), (1, 1, 6, 5)),
    ],
    ids=str,
)  # fmt: skip
def test_axes_of_one_voxel_are_no_obstacle(tmp_path, shape, expected):
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    volume = read_image([tmp_path / "scan.nii.gz"])
    assert volume.array.shape == expected
    write_mask(tmp_path / "mask.nii.gz", np.ones(expected[1:], np.uint8), volume.geometry)
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").affine, np.eye(4))


def test_endings_in_capitals_are_read_and_written(tmp_path):
    content = bytes(header_bytes())
    (tmp_path / "scan.NII.GZ").write_bytes(gzip.compress(content))
    (tmp_path / "plain.Nii").write_bytes(content)
    packed, plain = (read_image([tmp_path / name]) for name in ("scan.NII.GZ", "plain.Nii"))
    np.testing.assert_array_equal(packed.array, plain.array)
    write_mask(tmp_path / "mask.NII.GZ", np.ones((4, 3, 2), np.uint8), packed.geometry)
    assert read_label(tmp_path / "mask.NII.GZ").array.all()


# --- Near 45 degrees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", PLANES, ids=str)
@pytest.mark.parametrize("noise", [1e-6, -1e-6])
def test_near_45_degrees_all_files_of_a_case_are_turned_alike(tmp_path, plane, noise):
    cube = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    image = read_image([save_tilted(tmp_path / "image.nii", cube, tilted(plane, noise))])
    other = save_tilted(tmp_path / "label.nii", cube, tilted(plane, -noise))
    assert not np.array_equal(read_label(other).array, image.array[0]), "the header alone turns it another way"
    label = read_label(other, image.geometry)
    np.testing.assert_array_equal(label.array, image.array[0])
    assert label.geometry == image.geometry
    channels = read_image([tmp_path / "image.nii", other])
    np.testing.assert_array_equal(channels.array[0], channels.array[1])


def test_a_label_on_another_grid_keeps_its_own(tmp_path):
    cube = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    image = read_image([save_tilted(tmp_path / "image.nii", cube, np.eye(4))])
    moved = np.diag([-1.0, 1, 1, 1])
    label = read_label(save_tilted(tmp_path / "label.nii", cube, moved), image.geometry)
    np.testing.assert_array_equal(label.geometry.affine, moved)
    near = np.eye(4)
    near[0, 3] = 0.5
    path = save_tilted(tmp_path / "near.nii", cube, near)
    assert read_label(path, image.geometry).geometry.affine != image.geometry.affine
    assert read_label(path, image.geometry, tolerance_mm=1).geometry == image.geometry


# --- Labels that were saved as scaled integers -----------------------------------------------------------------------


def save_scaled(path: Path, label: np.ndarray, dtype: type = np.uint8) -> Path:
    """As nibabel saves the floats of get_fdata() into a header of integers."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(label.astype(float), np.eye(4), header), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("classes", [2, 3, 18, 105, 200])
def test_a_label_that_became_scaled_integers_is_read_as_it_was(tmp_path, classes, dtype):
    label = (np.arange(6 * 6 * 6) % classes).reshape(6, 6, 6)
    path = save_scaled(tmp_path / "label.nii.gz", label, dtype)
    assert nib.load(path).dataobj.slope != 1
    np.testing.assert_array_equal(read_label(path).array, label.transpose(2, 1, 0))


@pytest.mark.parametrize("raw", [(0, 127, 128, 255), (0, 64, 255), (0, 126, 255)], ids=str)
def test_values_between_classes_are_not_explained_by_the_step(tmp_path, raw):
    array = np.resize(np.array(raw, np.uint8), (4, 4, 4))
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2 / 255, 0)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([2 / 255, 0], "<f4").tobytes()
    (tmp_path / "label.nii").write_bytes(content)
    with pytest.raises(UserError, match="are not whole numbers"):
        read_label(tmp_path / "label.nii")


def test_in_micrometres_the_tolerance_is_half_a_voxel(tmp_path):
    cube = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    affine, flipped = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    geometries = []
    for name, matrix in (("a", affine), ("b", flipped)):
        image = nib.Nifti1Image(cube, matrix)
        image.header.set_xyzt_units("micron")
        nib.save(image, tmp_path / f"{name}.nii")
        geometries.append(read_image([tmp_path / f"{name}.nii"]).geometry)
    assert not is_same_grid(*geometries)
    np.testing.assert_array_equal(read_label(tmp_path / "b.nii", geometries[0]).array, cube[::-1].transpose(2, 1, 0))
