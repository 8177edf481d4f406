"""NRRD, MetaImage and pictures give the voxels and the grid of the same scan in NIfTI; masks go back as they came."""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from utils import extras
from utils.errors import UserError
from utils.nifti import read_header, read_image, read_label, write_mask, write_volume
from utils.scan_formats import copy_scan

sitk = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ARRAY = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 7
NOISE = np.random.default_rng(0).integers(0, 2**15, (9, 9, 9)).astype(np.int16)
"""Packed, a changed byte of it is a changed voxel and nothing else."""
SIGNED_AXES = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
TILTED = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])


def affine_of(turn: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 1.3, 2.9)
    affine[:3, 3] = (-10.25, 5.5, 77.125)
    return affine


def signed_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    turn = np.zeros((3, 3))
    turn[list(order), range(3)] = signs
    return turn


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Written by SimpleITK itself, and by nibabel where the name says NIfTI."""
    if path.name.endswith(".nii.gz"):
        image = nib.Nifti1Image(array, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, path)
        return path
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def assert_same_scan(path: Path, nifti: Path) -> None:
    found, true = read_image([path]), read_image([nifti])
    np.testing.assert_array_equal(found.array, true.array)
    assert found.array.dtype == np.float32 and found.array.flags.c_contiguous
    # NIfTI's own header holds single precision.
    np.testing.assert_allclose(found.geometry.affine, true.geometry.affine, atol=1e-5)
    np.testing.assert_allclose(found.spacing_mm, true.spacing_mm, rtol=1e-6)
    shape, affine = read_header(path)
    assert shape == found.geometry.shape_xyz == true.geometry.shape_xyz
    np.testing.assert_array_equal(affine, found.geometry.affine)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_all_orientations_give_the_scan_that_nifti_gives(tmp_path, ending):
    for order, signs in SIGNED_AXES:
        affine = affine_of(signed_axes(order, signs))
        assert_same_scan(save(tmp_path / f"a{ending}", ARRAY, affine), save(tmp_path / "a.nii.gz", ARRAY, affine))


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_tilted_scans_give_the_scan_that_nifti_gives(tmp_path, ending):
    affine = affine_of(TILTED)
    assert_same_scan(save(tmp_path / f"a{ending}", ARRAY, affine), save(tmp_path / "a.nii.gz", ARRAY, affine))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("turn", [np.diag([-1, 1, -1]), TILTED], ids=["flipped", "tilted"])
def test_a_mask_lies_exactly_on_its_scan(tmp_path, ending, turn):
    scan = read_image([save(tmp_path / f"scan{ending}", ARRAY, affine_of(turn))])
    mask = (scan.array[0] > 3).astype(np.uint8)
    write_mask(tmp_path / f"mask{ending}", mask, scan.geometry)
    again = read_label(tmp_path / f"mask{ending}")
    np.testing.assert_array_equal(again.array, mask)
    np.testing.assert_allclose(again.geometry.affine, scan.geometry.affine, rtol=0, atol=1e-14)
    image, original = sitk.ReadImage(str(tmp_path / f"mask{ending}")), sitk.ReadImage(str(tmp_path / f"scan{ending}"))
    np.testing.assert_allclose(image.GetDirection(), original.GetDirection(), rtol=0, atol=1e-15)
    # x, y, z of the stored file, by SimpleITK alone.
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, ARRAY > 3)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_channels_come_as_components_or_as_a_fourth_axis(tmp_path):
    stack = np.stack([ARRAY, ARRAY + 100, ARRAY * 2])
    vector = sitk.GetImageFromArray(np.ascontiguousarray(stack.transpose(3, 2, 1, 0)), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "vector.nrrd"))
    fourth = sitk.GetImageFromArray(np.ascontiguousarray(stack.transpose(0, 3, 2, 1)), isVector=False)
    sitk.WriteImage(fourth, str(tmp_path / "fourth.nrrd"))
    vector, fourth = (read_image([tmp_path / f"{name}.nrrd"]) for name in ("vector", "fourth"))
    np.testing.assert_array_equal(vector.array, fourth.array)
    # SimpleITK's plain axes run to the left and to the back.
    np.testing.assert_array_equal(vector.array, stack.transpose(0, 3, 2, 1)[..., ::-1, ::-1])
    assert read_header(tmp_path / "vector.nrrd")[0] == read_header(tmp_path / "fourth.nrrd")[0] == (2, 3, 4, 3)
    write_volume(tmp_path / "again.mha", vector.array, vector.geometry)
    np.testing.assert_array_equal(read_image([tmp_path / "again.mha"]).array, vector.array)


def test_endings_in_upper_case_are_read(tmp_path):
    for ending in (".nrrd", ".mha", ".png"):
        if ending == ".png":
            sitk.WriteImage(sitk.GetImageFromArray(np.uint8(ARRAY[0] + 7)), str(tmp_path / "a.png"))
        else:
            save(tmp_path / f"a{ending}", ARRAY, np.eye(4))
        (tmp_path / f"a{ending}").rename(tmp_path / f"B{ending.upper()}")
        assert read_image([tmp_path / f"B{ending.upper()}"]).array.size == (ARRAY[0].size if ending == ".png" else 24)


def test_a_picture_is_one_slice_and_its_colours_are_channels(tmp_path):
    colours = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a_0000.png"))
    volume = read_image([tmp_path / "a_0000.png"])
    assert read_header(tmp_path / "a_0000.png")[0] == (4, 5, 1, 3)
    # Rows run to the back, columns to the left; worked on is towards the front and the right.
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(colours, -1, 0)[:, ::-1, ::-1])
    mask = np.uint8(volume.array[0] > 20)
    for name in ("mask.png", "mask.tif"):
        write_mask(tmp_path / name, mask, volume.geometry)
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
        np.testing.assert_array_equal(written, colours[..., 0] > 20)
        np.testing.assert_array_equal(read_label(tmp_path / name).array, mask)
    with pytest.raises(UserError, match=r"in colours.*grey values"):
        read_label(tmp_path / "a_0000.png")


def test_pages_of_a_tiff_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(tmp_path / "a.tif"))
    with pytest.raises(UserError, match=r"a\.tif holds 2 pages"):
        read_image([tmp_path / "a.tif"])
    geometry = read_image([save(tmp_path / "a.nrrd", ARRAY, np.eye(4))]).geometry
    with pytest.raises(UserError, match="a picture holds one slice"):
        write_mask(tmp_path / "mask.png", np.zeros((4, 3, 2), np.uint8), geometry)


SPELLINGS = [
    (".nrrd", b"encoding: gzip", b"encoding: gzip"), (".nrrd", b"encoding: gzip", b"encoding:  gzip"),
    (".nrrd", b"encoding: gzip", b"Encoding: GZ"), (".nrrd", b"encoding: gzip", b"encoding:   Gz"),
    (".mha", b"CompressedData = True", b"CompressedData = True"),
    (".mha", b"CompressedData = True", b"CompressedData=True"),
    (".mha", b"CompressedData = True", b"CompressedData: T"),
    (".mha", b"CompressedData = True", b"CompressedData =  1"),
    (".mha", b"CompressedData = True", b" CompressedData == t"),
    (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile=Local"),
    (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile :  local"),
]  # fmt: skip


@pytest.mark.parametrize(("ending", "ours", "theirs"), SPELLINGS)
def test_damage_is_found(tmp_path, ending, ours, theirs):
    path = tmp_path / f"a{ending}"
    whole = save(path, NOISE, np.eye(4)).read_bytes()
    assert ours in whole
    expected = read_image([path]).array
    whole = whole.replace(ours, theirs)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_image([path]).array, expected)
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=rf"a\{ending} is truncated"):
        read_image([path])
    damaged = bytearray(whole)
    damaged[-300] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"a\{ending} is damaged"):
        read_image([path])
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=rf"a\{ending} is no readable"):
        read_header(path)
    with pytest.raises(UserError, match="does not exist"):
        read_image([tmp_path / f"none{ending}"])


@pytest.mark.parametrize(("ending", "voxels"), [(".nhdr", "a.raw.gz"), (".mhd", "a.zraw")])
def test_damage_of_voxels_in_a_file_of_their_own_is_found(tmp_path, ending, voxels):
    path, packed = save(tmp_path / f"a{ending}", NOISE, np.eye(4)), tmp_path / voxels
    whole = packed.read_bytes()
    assert read_image([path]).array.size == NOISE.size
    damaged = bytearray(whole)
    damaged[-300] ^= 0xFF
    for content, word in ((whole[:-200], "truncated"), (bytes(damaged), "damaged")):
        packed.write_bytes(content)
        with pytest.raises(UserError, match=rf"{voxels} is {word}"):
            read_image([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda data: re.sub(rb"CompressedDataSize.*\n", b"", data), "how many bytes they are"),
     (lambda data: data.replace(b"CompressedDataSize = ", b"CompressedDataSize = 9"), "is truncated"),
     (lambda data: data.replace(b"Data = True", b"Data = True\nCompressedData = False"), "does not say as it should"),
     (lambda data: data.replace(b"NDims", b"HeaderSize = 12\nNDims"), "where they begin"),
     (lambda data: data.replace(b"Data = True", b"Data = Yes"), "does not say as it should"),
     (lambda data: data.replace(b"CompressedData = T", b"Compresseddata = T"), "does not say as it should")],
)  # fmt: skip
def test_a_packed_metaimage_says_how_many_bytes_it_has(tmp_path, change, message):
    path = save(tmp_path / "a.mha", NOISE, np.eye(4))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_image([path])


@pytest.mark.parametrize("change", [b"", b"CompressedDataSize = 0\n"], ids=["none", "0"])
def test_packed_voxels_of_a_file_of_their_own_may_have_no_size(tmp_path, change):
    path = save(tmp_path / "a.mhd", NOISE, np.eye(4))
    expected = read_image([path]).array
    path.write_bytes(re.sub(rb"CompressedDataSize.*\n", change, path.read_bytes()))
    np.testing.assert_array_equal(read_image([path]).array, expected)
    voxels = next(tmp_path.glob("*.zraw"))
    voxels.write_bytes(voxels.read_bytes()[:-100])
    with pytest.raises(UserError, match="is truncated"):
        read_image([path])


def test_complex_voxels_are_called_so_whether_packed_or_not(tmp_path):
    image = sitk.GetImageFromArray(NOISE.astype(np.complex64))
    for packed in (False, True):
        sitk.WriteImage(image, tmp_path / "a.nrrd", packed)
        with pytest.raises(UserError, match="holds complex voxels; convert it"):
            read_image([tmp_path / "a.nrrd"])


def test_a_tiff_s_name_is_in_no_warning_of_its_library(tmp_path, capfd):
    path = save(tmp_path / "Doe John.tif", NOISE[:, :, :1], np.eye(4))
    content = path.read_bytes()
    # An entry of the directory: resolution's unit, a short, once. 0 is none of its values.
    entry = re.compile(re.escape(b"\x28\x01\x03\x00\x01\x00\x00\x00") + b"..", re.DOTALL)
    assert entry.search(content)
    path.write_bytes(entry.sub(b"\x28\x01\x03\x00\x01\x00\x00\x00\x00\x00", content))
    read_image([path])
    said = capfd.readouterr().err
    assert "Doe" not in said and str(tmp_path) not in said


def packed_as(path: Path, packed: bytes) -> Path:
    """A MetaImage or NRRD file of `NOISE` with other packed voxels, which its header fits."""
    whole = save(path, NOISE, np.eye(4)).read_bytes()
    end = whole.index(b"LOCAL\n") + 6 if path.suffix == ".mha" else whole.index(b"\n\n") + 2
    head = re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = %d" % len(packed), whole[:end])
    path.write_bytes(head + packed)
    return path


def test_fewer_voxels_than_the_header_says_are_refused_though_their_stream_is_whole(tmp_path):
    stored = NOISE.transpose(2, 1, 0).tobytes()
    for packed in (zlib.compress(stored[:600]), zlib.compress(stored[:600]) + zlib.compress(stored[600:])):
        # What is missing would be what lay in this process's memory.
        with pytest.raises(UserError, match=r"a\.mha is truncated: it unpacks to 600 bytes, and its header says 1458"):
            read_image([packed_as(tmp_path / "a.mha", packed)])
    np.testing.assert_array_equal(
        read_image([packed_as(tmp_path / "a.mha", zlib.compress(stored))]).array,
        read_image([save(tmp_path / "b.mha", NOISE, np.eye(4))]).array,
    )


def test_all_streams_of_an_nrrd_are_checked_and_are_gzip(tmp_path):
    stored = NOISE.transpose(2, 1, 0).tobytes()
    expected = read_image([save(tmp_path / "b.nrrd", NOISE, np.eye(4))]).array
    streams = gzip.compress(stored[:600]) + gzip.compress(stored[600:])
    path = packed_as(tmp_path / "a.nrrd", streams)
    np.testing.assert_array_equal(read_image([path]).array, expected)
    damaged = bytearray(streams)
    damaged[-300] ^= 0xFF
    for packed in (bytes(damaged), zlib.compress(stored)):
        with pytest.raises(UserError, match=r"a\.nrrd is damaged"):
            read_image([packed_as(path, packed)])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_what_follows_packed_voxels_is_left_alone(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", NOISE, np.eye(4))
    expected = read_image([path]).array
    path.write_bytes(path.read_bytes() + b"\n")
    np.testing.assert_array_equal(read_image([path]).array, expected)


def test_the_size_of_packed_voxels_says_nothing_of_plain_ones(tmp_path):
    path = save(tmp_path / "a.mha", NOISE, np.eye(4))
    expected, whole = read_image([path]).array, path.read_bytes()
    end = whole.index(b"LOCAL\n") + 6
    head = whole[:end].replace(b"CompressedData = True", b"CompressedData = False")
    path.write_bytes(head + zlib.decompress(whole[end:]))
    np.testing.assert_array_equal(read_image([path]).array, expected)
    path.write_bytes(head.replace(b"CompressedData = False\n", b"") + whole[end:])
    with pytest.raises(UserError, match="does not say as it should"):
        read_image([path])


@pytest.mark.parametrize("name", ["b 50%.nhdr", "list of t1.mhd", "list of t1.nhdr", "List.mhd"])
def test_names_like_those_of_several_files_are_read(tmp_path, name):
    expected = read_image([save(tmp_path / "a.nrrd", NOISE, np.eye(4))]).array
    np.testing.assert_array_equal(read_image([save(tmp_path / name, NOISE, np.eye(4))]).array, expected)


@pytest.mark.parametrize("name", ["LIST of t1.mhd", "LIST.nhdr", "50%.mhd", "b %03d 1 3 1.nhdr"])
def test_names_that_a_reader_takes_for_several_files_are_refused(tmp_path, name):
    """SimpleITK writes them, and gives other voxels in silence or fails when it reads them."""
    with pytest.raises(UserError, match=r"in one whose name is read as several|is no readable"):
        read_image([save(tmp_path / name, NOISE, np.eye(4))])


def test_a_header_with_its_voxels_elsewhere_is_copied_as_one_file(tmp_path):
    save(tmp_path / "a.nhdr", ARRAY, affine_of(TILTED))
    copy_scan(tmp_path / "a.nhdr", tmp_path / "b.nrrd")
    (tmp_path / "a.raw.gz").unlink()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.nrrd"))), ARRAY.T)
    with pytest.raises(UserError, match=r"a\.nhdr is no readable"):
        read_image([tmp_path / "a.nhdr"])


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    path = save(tmp_path / "a.nrrd", ARRAY, np.eye(4))
    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs the package SimpleITK.*pip install -e '\.\[formats\]'"):
        read_image([path])


META = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n{}ElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{}\n"
SPACE = "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"


@pytest.mark.parametrize(
    ("name", "text", "unit"),
    [("a.mha", META.format("DistanceUnits = um\n"), "um"), ("a.mha", META.format("DistanceUnits = mm\n"), ""),
     ("a.mha", META.format(""), ""), ("a.nrrd", NRRD.format(SPACE), ""),
     ("a.nrrd", NRRD.format(SPACE + 'space units: "mm" "mm" "mm"\n'), ""),
     ("a.nrrd", NRRD.format(SPACE + 'Space Units: "mm" "Meters" "mm"\n'), "Meters"),
     ("a.nrrd", NRRD.format(SPACE + 'space units: "µm" "µm" "µm"\n'), "µm"),
     ("a.nrrd", (NRRD.format(SPACE + 'space units: "µm" "mm" "mm"\n')).encode("latin-1"), "\ufffdm"),
     ("a.nrrd", NRRD.format('spacings: 1 1 1\nunits: "cm" "cm" "cm"\n'), "cm"),
     ("a.nrrd", NRRD.format(SPACE + '# space units: "m" "m" "m"\nspace units:="m"\n'), ""),
     ("a.nrrd", NRRD.format(SPACE) + '\nspace units: "m"\n', "")],
)  # fmt: skip
def test_other_lengths_than_millimetres_are_not_taken_for_them(tmp_path, name, text, unit):
    (tmp_path / name).write_bytes((text if isinstance(text, bytes) else text.encode()) + bytes(8))
    if not unit:
        assert read_image([tmp_path / name]).spacing_mm == (1.0, 1.0, 1.0)
        return
    for read in (read_header, lambda path: read_image([path])):
        with pytest.raises(UserError, match=f"voxel size in {unit}, .*store it in mm"):
            read(tmp_path / name)
