"""Scans made small for a page: voxels stay where they are in the patient, and a page keeps to its limit."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from report.layers import (
    Layers,
    Structure,
    differences,
    read_layers,
    structures_of,
    value_counts,
    volumes_ml,
    working_affine,
)
from report.pictures import outline, overlay_jpeg, paint, telling_slices
from report.sources import CaseFiles
from report.views import Room, crosshair_mm, ct_window, make_views
from report.volumes import field_of_interest, grey_window, pack, quantise
from utils.errors import UserError
from utils.nifti import read_image
from utils.schema import ChannelPlan, LabelScheme

ORGAN = (Structure(name="organ", value=1),)


def make_layers(shape=(6, 8, 10), **changes) -> Layers:
    scan = np.zeros(shape, np.float32)
    scan[1:5, 2:7, 2:9] = np.arange(4 * 5 * 7).reshape(4, 5, 7) + 1
    mask = np.zeros(shape, np.uint8)
    mask[2, 3:6, 4] = 1
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    return dataclasses.replace(
        Layers(scan=scan, mask=mask, label=None, spacing_mm=(3.0, 2.0, 1.0), affine=affine), **changes
    )


def unpack(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(base64.b64decode(text))))


def test_differences_are_named():
    mask, label = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 0, 1, 2])
    assert differences(mask, label).tolist() == [0, 0, 2, 3, 1]


def test_volume_is_voxels_times_their_size():
    mask = np.array([[[0, 1, 1, 2]]], np.uint8)
    counts = value_counts(mask, "m")
    assert volumes_ml(counts, (10, 10, 5), (*ORGAN, Structure(name="x", value=7))) == {"organ": 1.0, "x": 0.0}


def test_structures_without_names_are_called_by_their_values():
    scheme = LabelScheme(names=("background", "organ"), values=(0, 5), ignore_value=9)
    assert [s.name for s in structures_of(scheme, (0, 5, 9, 7))] == ["organ", "value 7"]
    assert [(s.name, s.value) for s in structures_of(None, (0, 2))] == [("value 2", 2)]


def test_voxels_that_count_for_nothing_are_no_difference():
    label = np.zeros((6, 8, 10), np.uint8)
    label[0], label[1, 2, 3] = 9, 1
    layers = make_layers(label=label)
    assert np.count_nonzero(layers.difference) == 80 + 4
    assert np.count_nonzero(dataclasses.replace(layers, ignore_value=9).difference) == 4


def test_a_single_slice_keeps_its_place(tmp_path):
    affine = np.array([[0.0, 0, 2.0, 7], [1.5, 0, 0, -3], [0, 0.5, 0, 11], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.arange(20).reshape(4, 5, 1).astype(np.int16), affine), tmp_path / "a.nii.gz")
    volume = read_image([tmp_path / "a.nii.gz"])
    working = np.argwhere(volume.array[0] == 17)[0][::-1]
    assert volume.array.shape == (1, 5, 4, 1)
    np.testing.assert_allclose(working_affine(volume.geometry) @ [*working, 1], affine @ [3, 2, 0, 1])
    assert abs(np.linalg.det(working_affine(volume.geometry))) == pytest.approx(1.5)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PSR", "SAL"])
def test_a_voxel_keeps_its_place_in_the_patient(tmp_path, axcodes):
    affine = np.array([[0.0, 0.5, 0, 7], [1.5, 0, 0, -3], [0, 0, 2.0, 11], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.int16), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    image = image.as_reoriented(turn)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_image([tmp_path / "a.nii.gz"])
    for value in (0, 17, 119):
        stored = np.argwhere(np.asarray(image.dataobj) == value)[0]
        working = np.argwhere(volume.array[0] == value)[0][::-1]
        np.testing.assert_allclose(
            working_affine(volume.geometry) @ [*working, 1], image.affine @ [*stored, 1], atol=1e-5
        )


def test_packed_files_hold_the_field_of_interest_at_its_place():
    layers = make_layers()
    packed = pack(layers, 1e6)
    assert packed is not None and packed.reduced == "" and set(packed.files) == {"scan", "mask"}
    scan, mask = unpack(packed.files["scan"]), unpack(packed.files["mask"])
    # One voxel of background is left around the body.
    np.testing.assert_array_equal(scan.get_fdata(), layers.scan[0:6, 1:8, 1:10].transpose(2, 1, 0))
    np.testing.assert_allclose(scan.affine, [[1, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert mask.get_fdata().sum() == 3 and mask.get_data_dtype() == np.uint8


def test_channels_go_along_as_far_as_there_is_room():
    noise = np.random.default_rng(0).normal(100, 5, (6, 8, 10)).astype(np.float32)
    layers = make_layers(other_channels=(noise, noise + 50))
    packed = pack(layers, 1e6)
    assert len(packed.other_channels) == 2 and packed.reduced == "256 grey values in the channels after the first"
    (file, window), _ = packed.other_channels
    stored = unpack(file).get_fdata()
    np.testing.assert_allclose(stored, noise[0:6, 1:8, 1:10].transpose(2, 1, 0).clip(*window), atol=0.2)
    first = packed.num_bytes - sum(len(file) for file, _ in packed.other_channels)
    packed = pack(layers, first + len(file) + 10)
    assert len(packed.other_channels) == 1 and packed.reduced.endswith("2 of 3 channels")
    assert pack(layers, first).other_channels == ()


def test_files_of_one_scan_are_its_channels(tmp_path):
    for channel in (0, 1):
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), channel, np.float32), np.eye(4)), tmp_path / f"a_000{channel}.nii")
    layers = read_layers(CaseFiles(case="a", image=tmp_path / "a_0000.nii"))
    assert layers.scan.max() == 0 and [channel.max() for channel in layers.other_channels] == [1]


def test_the_difference_goes_along_where_there_is_a_label():
    packed = pack(make_layers(label=np.zeros((6, 8, 10), np.uint8)), 1e6)
    assert (unpack(packed.files["difference"]).get_fdata() == 2).sum() == 3


def test_intensities_survive_16_bits_and_almost_8():
    scan = np.linspace(-1.5, 2.5, 1001, dtype=np.float32)
    for bits, error in ((16, 4 / 65535), (8, 4 / 255)):
        stored, slope, intercept = quantise(scan, bits, (-1.5, 2.5))
        assert stored.dtype.itemsize * 8 == bits
        assert np.abs(stored * slope + intercept - scan).max() <= error / 2 + 1e-6
    whole, slope, intercept = quantise(np.array([-1000.0, 3000.0], np.float32), 16, (0, 1))
    assert whole.tolist() == [-1000, 3000] and (slope, intercept) == (1, 0)


def test_a_large_noisy_scan_becomes_smaller_until_it_fits():
    rng = np.random.default_rng(0)
    shape = (60, 80, 80)
    mask = np.zeros(shape, np.uint8)
    mask[30, 40, 40] = 1
    layers = Layers(scan=rng.normal(0, 1, shape).astype(np.float32), mask=mask, label=None, spacing_mm=(1, 1, 1),
                    affine=np.eye(4))  # fmt: skip
    sizes = []
    for limit in (5e6, 4e5, 1.5e5, 2e4):
        packed = pack(layers, limit)
        assert packed.num_bytes <= limit
        sizes.append((packed.reduced, packed.num_bytes))
    assert [text for text, _ in sizes] == [
        "", "256 grey values" if sizes[1][1] > 3.5e5 else sizes[1][0], sizes[2][0], sizes[3][0],
    ]  # fmt: skip
    assert "25 mm around mask and label" in sizes[2][0] and "every" in sizes[3][0]
    assert pack(layers, 10) is None


def test_a_scan_of_too_many_voxels_is_cropped_and_keeps_its_intensities(monkeypatch):
    monkeypatch.setattr("report.volumes.MOST_VOXELS", 30 * 30 * 30)
    shape = (60, 60, 60)
    mask = np.zeros(shape, np.uint8)
    mask[30, 30, 30] = 1
    scan = np.arange(60**3, dtype=np.float32).reshape(shape) % 1000
    layers = Layers(scan=scan, mask=mask, label=None, spacing_mm=(2, 2, 2), affine=np.eye(4))
    packed = pack(layers, 1e7)
    assert packed.reduced == "cropped to 25 mm around mask and label"
    assert (
        np.prod(unpack(packed.files["scan"]).shape) <= 27_000 and unpack(packed.files["scan"]).get_fdata().max() > 255
    )


def test_without_mask_and_label_all_of_the_scan_is_the_field_of_interest():
    layers = make_layers(mask=None, scan=np.zeros((3, 4, 5), np.float32))
    assert [cut.stop - cut.start for cut in field_of_interest(layers, focus=True)] == [3, 4, 5]
    assert grey_window(layers.scan) == (0, 1)


def test_the_crosshair_begins_on_what_is_to_be_seen():
    layers = make_layers()
    right, anterior, superior = np.linalg.inv(layers.affine)[:3, :3] @ crosshair_mm(layers)
    assert layers.mask[round(superior), round(anterior), round(right)] == 1


def test_a_label_in_another_place_leads_the_crosshair_to_the_disagreement():
    label = np.zeros((6, 8, 10), np.uint8)
    label[4, 2:7, 2:9] = 1
    assert telling_slices(make_layers(label=label).telling)[0] == 4


def test_a_picture_shows_mask_filled_and_label_outlined():
    inside = np.zeros((5, 5), bool)
    inside[1:4, 1:4] = True
    assert outline(inside).sum() == 8 and not outline(inside)[2, 2]
    picture = paint(np.full((5, 5), 100, np.uint8), inside.astype(np.uint8), inside.astype(np.uint8), ORGAN)
    assert picture[0, 0].tolist() == [100, 100, 100]
    assert picture[1, 1].tolist() == [230, 159, 0] and picture[2, 2].tolist() == [158, 127, 55]


def test_a_picture_is_a_data_address():
    assert overlay_jpeg(make_layers(), ORGAN).startswith("data:image/jpeg;base64,")


def test_a_mask_on_another_grid_is_named(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 5), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    files = CaseFiles(case="a", image=tmp_path / "scan.nii.gz", mask=tmp_path / "mask.nii.gz")
    with pytest.raises(UserError, match=r"mask\.nii\.gz lies on another grid than its scan scan\.nii\.gz"):
        read_layers(files)


def test_what_cannot_be_shown_is_refused_with_the_reason_and_others_are_shown():
    def read(files: CaseFiles) -> Layers:
        if files.case == "bad":
            raise UserError("truncated")
        return make_layers()

    chosen = [CaseFiles(case=name, image=None) for name in ("bad", "good")]
    views = make_views(chosen, ORGAN, Room(), pictured=[*chosen, CaseFiles(case="other", image=None)], read=read)
    assert [view.case for view in views.shown] == ["good"] and views.refused == {"bad": "truncated"}
    assert views.pictures.keys() == {"good", "other"} and (views.number_of("good"), views.number_of("bad")) == (0, None)


def test_a_ct_is_shown_as_its_network_sees_it():
    channels = (ChannelPlan(name="CT", scheme="ct", lower=-100, upper=200, mean=0, std=1),)
    assert ct_window(SimpleNamespace(channels=channels)) == (-190, 290)
    assert ct_window(SimpleNamespace(channels=(ChannelPlan(name="T1", scheme="zscore"),))) is ct_window(None) is None
    packed = pack(make_layers(window=(-190.0, 290.0)), 1e6)
    # What is stored is the scan and not only what is shown.
    assert packed.window == (-190, 290) and unpack(packed.files["scan"]).get_fdata().max() == 140


def test_cases_that_are_asked_for_take_the_place_of_the_worst():
    assert Room(viewer_cases=1).choose(["a", "b"]) == ["a"]
    assert Room(cases=("b",)).choose(["a", "b"]) == ["b"]
    with pytest.raises(UserError, match="no such case: c"):
        Room(cases=("c",)).choose(["a", "b"])
