from __future__ import annotations

import dataclasses

import pytest

from data_loading.augment.presets import (
    NNUNET,
    PRESETS,
    UNCHANGED,
    Change,
    choose_preset,
    is_anisotropic,
    rotation_degrees,
)
from utils.config import LoaderConfig


def test_every_choice_of_the_flag_is_a_preset() -> None:
    assert all(choose_preset(name, (8, 8, 8)) for name in PRESETS)
    for name in PRESETS:
        assert LoaderConfig(augment=name).augment == name


@pytest.mark.parametrize(
    "patch, degrees",
    [
        ((128, 128, 128), 30), ((40, 56, 40), 30), ((64, 192, 192), 30), ((20, 320, 256), 180), ((40, 224, 224), 180),
        ((192, 160), 180), ((56, 40), 180), ((64, 40), 15), ((40, 64), 15),
    ],
)  # fmt: skip
def test_rotation_follows_the_shape_of_the_patch(patch, degrees) -> None:
    assert rotation_degrees(patch) == (-degrees, degrees)
    assert choose_preset("nnunet", patch).rotation.bounds == (-degrees, degrees)


def test_a_patch_more_than_three_times_as_wide_as_deep_is_anisotropic() -> None:
    assert is_anisotropic((20, 320, 256)) and is_anisotropic((40, 224, 224))
    assert not is_anisotropic((64, 192, 192)) and not is_anisotropic((20, 320))
    # Only the first axis counts: slices lie in the last two.
    assert not is_anisotropic((128, 128, 16))


@pytest.mark.parametrize(
    "name, patch, in_plane",
    [
        ("nnunet", (20, 320, 256), True), ("nnunet", (40, 56, 40), False), ("nnunet", (56, 40), True),
        ("reference", (20, 320, 256), False), ("reference", (56, 40), True), ("none", (56, 40), True),
    ],
)  # fmt: skip
def test_slices_and_anisotropic_patches_are_moved_in_plane(name, patch, in_plane) -> None:
    assert choose_preset(name, patch).in_plane == in_plane


def test_elastic_deformation_is_off_unless_asked_for() -> None:
    for name in PRESETS:
        assert choose_preset(name, (8, 8, 8)).elastic.probability == 0
    assert choose_preset("nnunet", (8, 8, 8), elastic_probability=0.3).elastic.probability == 0.3


def test_none_changes_nothing() -> None:
    preset = choose_preset("none", (8, 8, 8), foreground=0.4, elastic_probability=0.5)
    changes = [
        value for field in dataclasses.fields(preset) if isinstance(value := getattr(preset, field.name), Change)
    ]
    assert preset.foreground == 0.4 and preset.flip == 0 and not any(change.probability for change in changes)
    assert PRESETS["none"] is UNCHANGED


def test_nnunet_has_the_numbers_of_the_default_trainer() -> None:
    probabilities = {
        "zoom": 0.2, "rotation": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15,
        "low_resolution": 0.25, "inverted_gamma": 0.1, "gamma": 0.3, "elastic": 0.0,
    }  # fmt: skip
    assert {name: getattr(NNUNET, name).probability for name in probabilities} == probabilities


def test_geometry_leaves_intensities_alone_and_everything_else_as_it_was() -> None:
    preset = choose_preset("nnunet", (8, 8, 8), foreground=0.4, elastic_probability=0.3)
    geometry = preset.geometry()
    kept = ("foreground", "in_plane", "zoom", "cubic_zoom", "rotation", "flip", "flip_axes", "elastic", "degraded")
    names = [field.name for field in dataclasses.fields(preset)]
    assert [name for name in names if getattr(geometry, name) == getattr(preset, name)] == list(kept)
    assert all(getattr(geometry, name) == Change() for name in names if name not in kept)
