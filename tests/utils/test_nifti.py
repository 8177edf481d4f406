"""Scans in, masks out: every voxel keeps its place, and files that are damaged are refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from utils.errors import UserError
from utils.nifti import (
    from_working,
    grid_difference_mm,
    read_header,
    read_image,
    read_label,
    stored_axes,
    to_working,
    write_mask,
    write_volume,
)

SHAPE_RAS = (2, 3, 4)
SPACING_RAS_MM = (0.5, 1.0, 3.0)
RAS = np.arange(24, dtype=np.int16).reshape(SHAPE_RAS)
RAS_AFFINE = np.array([[0.5, 0, 0, -7], [0, 1, 0, 11], [0, 0, 3, 5], [0, 0, 0, 1]], float)
ORIENTATIONS = ("RAS", "LAS", "LPS", "PSR", "IRP")


def stored_as(axcodes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same scan (array x y z, affine) stored in another orientation."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    return nib.orientations.apply_orientation(RAS, change), RAS_AFFINE @ inv_ornt_aff(change, SHAPE_RAS)


def save(path: Path, array: np.ndarray, affine: np.ndarray = RAS_AFFINE, codes: tuple[int, int] = (1, 1)) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.header["xyzt_units"] = 10
    content = bytearray(image.to_bytes())
    # nibabel sets the codes anew when it writes; these are the ones that the test asks for.
    content[252:256] = np.array(codes, "<i2").tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_every_orientation_reads_as_superior_anterior_right(tmp_path, axcodes):
    array, affine = stored_as(axcodes)
    volume = read_image([save(tmp_path / "scan.nii.gz", array, affine)])
    assert volume.array.shape == (1, 4, 3, 2)
    assert volume.array.dtype == np.float32 and volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array[0], RAS.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.spacing_mm, SPACING_RAS_MM[::-1])


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_working_axes_and_back_is_the_identity(axcodes):
    array, affine = stored_as(axcodes)
    geometry = read_geometry(array, affine)
    np.testing.assert_array_equal(from_working(to_working(array, affine), geometry), array)
    channels = np.stack([array, array + 100])
    np.testing.assert_array_equal(from_working(to_working(channels, affine), geometry), channels)


def read_geometry(array: np.ndarray, affine: np.ndarray):
    from utils.schema import Geometry

    rows = tuple(tuple(float(v) for v in row) for row in affine)
    return Geometry(shape_xyz=array.shape, affine=rows, qform_code=1, sform_code=1, xyzt_units=2)


def test_axes_as_stored_are_told_with_their_directions():
    # A file whose x runs to the right, y downwards and z backwards.
    affine = np.array([[1, 0, 0, 0], [0, 0, -2, 0], [0, -3, 0, 0], [0, 0, 0, 1]], float)
    # z runs along A backwards, y along S backwards, x along R.
    assert stored_axes(affine) == ((1, 0, 2), (True, True, False))


def test_an_oblique_grid_is_read_along_the_nearest_axes(tmp_path):
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 3.0, 4.0])
    volume = read_image([save(tmp_path / "oblique.nii", RAS, affine)])
    np.testing.assert_array_equal(volume.array[0], RAS[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(volume.spacing_mm, (4.0, 3.0, 2.0), rtol=1e-6)
    mask = (volume.array[0] == 7).astype(np.uint8)
    write_mask(tmp_path / "mask.nii.gz", mask, volume.geometry)
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").get_fdata() == 1, RAS == 7)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (0, 0)], ids=str)
def test_a_mask_lies_on_the_voxel_where_the_scan_has_it(tmp_path, axcodes, codes):
    array, affine = stored_as(axcodes)
    scan_path, mask_path = save(tmp_path / "scan.nii", array, affine, codes), tmp_path / "mask.nii.gz"
    volume = read_image([scan_path])
    write_mask(mask_path, (volume.array[0] == 17).astype(np.uint8), volume.geometry)
    scan, mask = nib.load(scan_path), nib.load(mask_path)
    np.testing.assert_array_equal(np.asarray(mask.dataobj) == 1, np.asarray(scan.dataobj) == 17)
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-6)
    assert mask.get_data_dtype() == np.uint8 and mask.header["xyzt_units"] == 10
    assert (mask.header["qform_code"], mask.header["sform_code"]) == codes


def test_without_codes_the_grid_is_the_one_that_nibabel_derives(tmp_path):
    path = save(tmp_path / "bare.nii", RAS, codes=(0, 0))
    np.testing.assert_array_equal(read_header(path)[1], nib.load(path).affine)


def test_a_written_file_has_the_same_bytes_each_time(tmp_path):
    geometry = read_geometry(RAS, RAS_AFFINE)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, RAS.transpose(2, 1, 0), geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_header_is_read_without_the_voxels(tmp_path):
    array = np.random.default_rng(0).random((20, 21, 22))
    content = gzip.compress(nib.Nifti1Image(array, RAS_AFFINE).to_bytes())
    # The end is missing, which nobody who reads all of it would pass over.
    (tmp_path / "head.nii.gz").write_bytes(content[: len(content) // 2])
    shape, affine = read_header(tmp_path / "head.nii.gz")
    assert shape == array.shape
    np.testing.assert_allclose(affine, RAS_AFFINE)


def test_the_last_axis_of_a_4d_file_holds_the_channels(tmp_path):
    volume = read_image([save(tmp_path / "scan.nii.gz", np.stack([RAS, RAS * 10], axis=-1))])
    assert volume.array.shape == (2, 4, 3, 2)
    np.testing.assert_array_equal(volume.array[:, 3, 2, 1], (23, 230))


def test_one_file_per_channel_is_stacked_in_order(tmp_path):
    paths = [save(tmp_path / f"scan_{c}.nii.gz", RAS + c) for c in range(3)]
    np.testing.assert_array_equal(read_image(paths).array[:, 0, 0, 1], (12, 13, 14))


def test_channels_on_different_grids_are_refused(tmp_path):
    moved = RAS_AFFINE.copy()
    moved[0, 3] += 0.2
    first, second = save(tmp_path / "a.nii", RAS), save(tmp_path / "b.nii", RAS, moved)
    with pytest.raises(UserError, match=r"b\.nii lies 0\.2 mm"):
        read_image([first, second])
    with pytest.raises(UserError, match=r"c\.nii has shape"):
        read_image([first, save(tmp_path / "c.nii", RAS[:1])])
    with pytest.raises(UserError, match=r"d\.nii has 2 channels"):
        read_image([first, save(tmp_path / "d.nii", np.stack([RAS, RAS], axis=-1))])


@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.uint8, np.int32, np.float32, np.float64], ids=str)
def test_slope_and_intercept_are_applied_whatever_the_type(tmp_path, dtype):
    header = nib.Nifti1Header(endianness=">" if np.dtype(dtype).byteorder == ">" else "<")
    image = nib.Nifti1Image(RAS.astype(dtype), RAS_AFFINE, header)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([0.5, -3], header.endianness + "f4").tobytes()
    (tmp_path / "scaled.nii").write_bytes(content)
    np.testing.assert_array_equal(
        read_image([tmp_path / "scaled.nii"]).array[0], RAS.transpose(2, 1, 0) * np.float32(0.5) - 3
    )


def test_a_label_keeps_its_values_and_a_trailing_axis_of_one_is_dropped(tmp_path):
    path = save(tmp_path / "label.nii.gz", (RAS % 3).astype(np.uint8)[..., None])
    np.testing.assert_array_equal(read_label(path).array, (RAS % 3).transpose(2, 1, 0))


def test_a_float_label_of_whole_numbers_is_fine(tmp_path):
    values = RAS.astype(np.float32)
    values[0, 0, 0] = 256
    label = read_label(save(tmp_path / "label.nii.gz", values)).array
    assert label.dtype.kind == "i" and label[0, 0, 0] == 256


@pytest.mark.parametrize("value", [0.999, np.nan, np.inf, 1e30])
def test_a_label_value_that_is_no_whole_number_is_refused(tmp_path, value):
    values = RAS.astype(np.float32)
    values[1, 1, 1] = value
    with pytest.raises(UserError, match=r"label\.nii\.gz: 1 label values are not whole numbers"):
        read_label(save(tmp_path / "label.nii.gz", values))


def test_a_label_with_channels_is_refused(tmp_path):
    with pytest.raises(UserError, match="a label must be 3D"):
        read_label(save(tmp_path / "label.nii.gz", np.stack([RAS, RAS], axis=-1)))


@pytest.mark.parametrize("keep", [10, 200, -9])
def test_a_truncated_gz_is_refused_by_name(tmp_path, keep):
    path = save(tmp_path / "cut.nii.gz", np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.nii\.gz is truncated"):
        read_image([path])


def test_a_damaged_byte_is_found_by_the_checksum(tmp_path):
    path = save(tmp_path / "scan.nii.gz", RAS)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"scan\.nii\.gz"):
        read_image([path])


def test_a_truncated_nii_says_how_much_is_missing(tmp_path):
    path = save(tmp_path / "cut.nii", RAS)
    path.write_bytes(path.read_bytes()[:-8])
    for read in (read_header, lambda path: read_image([path])):
        with pytest.raises(UserError, match="truncated: 392 of 400 bytes"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"PNG, not a scan", bytes(1000)], ids=["empty", "text", "zeros"])
def test_what_is_no_nifti_is_refused_by_name(tmp_path, content):
    for name, data in (("x.nii", content), ("y.nii.gz", gzip.compress(content)), ("z.nii.gz", content)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_image([tmp_path / name])


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gone\.nii\.gz does not exist"):
        read_image([tmp_path / "gone.nii.gz"])


@pytest.mark.parametrize("array", [RAS[0, 0], RAS[None, None]], ids=["1D", "5D"])
def test_only_3d_and_4d_are_scans(tmp_path, array):
    with pytest.raises(UserError, match="must be 3D, or 4D"):
        read_image([save(tmp_path / "scan.nii", array)])


def test_colour_and_complex_voxels_are_refused(tmp_path):
    with pytest.raises(UserError, match="complex64 voxels"):
        read_image([save(tmp_path / "scan.nii", RAS.astype(np.complex64))])


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [0.5, 0, 0, 1], [np.nan, 0, 0, 0]], ids=["zero", "flat", "nan"])
def test_a_matrix_without_inverse_is_refused(tmp_path, row):
    path = save(tmp_path / "scan.nii", RAS)
    content = bytearray(path.read_bytes())
    content[296:312] = np.array(row, "<f4").tobytes()  # srow_y
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"scan\.nii: voxel-to-world matrix .* has no inverse"):
        read_image([path])
    with pytest.raises(UserError):
        read_header(path)


def test_axes_that_are_almost_parallel_are_refused_and_a_tilted_gantry_is_not(tmp_path):
    for shear, is_grid in ((np.tan(np.radians(30)), True), (-1.0, True), (3.0, True), (352.0, False), (-20.0, False)):
        affine = np.diag([1.0, 1.1, 1.2, 1.0])
        affine[1, 0] = shear
        path = save(tmp_path / "scan.nii", RAS, affine)
        if is_grid:
            read_image([path])
            continue
        for read in (read_header, lambda path: read_image([path])):
            with pytest.raises(UserError, match=r"scan\.nii: .* has axes that are almost parallel"):
                read(path)


def test_grids_are_compared_at_their_farthest_corner():
    longer = RAS_AFFINE.copy()
    longer[2, 2] += 0.01
    assert grid_difference_mm(RAS_AFFINE, longer, (5, 5, 11)) == pytest.approx(0.1)
    assert grid_difference_mm(RAS_AFFINE, RAS_AFFINE, (5, 5, 11)) == 0


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path):
    geometry = read_geometry(RAS, RAS_AFFINE)
    with pytest.raises(UserError, match="cannot be written"):
        write_mask(tmp_path / "no" / "mask.nii.gz", np.zeros((4, 3, 2), np.uint8), geometry)


def test_real_scans_read_as_nibabel_reads_them(real_data):
    for path in sorted(real_data.glob("Task63_*/*Tr/*.nii.gz")):
        canonical = nib.as_closest_canonical(nib.load(path))
        expected = np.asarray(canonical.dataobj, np.float32).transpose(2, 1, 0)
        np.testing.assert_array_equal(read_image([path]).array[0], expected)
        np.testing.assert_allclose(read_image([path]).spacing_mm, canonical.header.get_zooms()[::-1], rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_more_voxels_than_64_bits_count_are_refused(tmp_path, packed):
    """2^32 times 2^32 is 0 in 64 bits, which any file holds."""
    header = nib.Nifti2Header()
    header["dim"] = [3, 2**32, 2**32, 1, 1, 1, 1, 1]
    header["pixdim"][1:4], header["vox_offset"], header["sform_code"] = 1, 544, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header.set_data_dtype(np.uint8)
    content = header.binaryblock + bytes(1000)
    path = tmp_path / "scan.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match="is truncated"):
        read_image([path])
    # By the header alone memory and windows are planned.
    with pytest.raises(UserError, match="is truncated"):
        read_header(path)
