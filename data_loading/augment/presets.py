"""How often and how strongly training patches are changed: the choices of `--augment`, as plain numbers.

A preset holds no code. What the numbers do is in boxes.py (place, zoom, rotation), spatial.py, intensity.py and
elastic.py; all presets go through the same functions in the same order.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

ANISOTROPIC_RATIO = 3
"""A 3D patch more than this many times as wide as it is deep consists of slices, which are moved in plane only."""


SMALLEST_RANGE = 1e-7
"""What a constant channel's range and deviation count as, in place of 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of random change: how often it happens to a patch, and how its strength is drawn from `bounds`.

    `draw` is one of
    uniform: evenly between the bounds;
    about_one: below and above 1 equally often, evenly on each side, so that weakening and strengthening balance.
    """

    probability: float = 0.0
    bounds: tuple[float, float] = (0.0, 0.0)
    draw: Literal["uniform", "about_one"] = "uniform"
    channel_probability: float = 1.0
    """Of each channel, in a patch that is changed."""
    shared: bool = False
    """One strength for all channels (blur: and axes) in place of one for each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Where patches come from and what is done to them, in the order of the fields.

    Noise is added to normalised intensities, whose standard deviation is about 1.
    """

    foreground: float = 0.0
    """Probability that a patch is centred on a foreground voxel."""
    in_plane: bool = False
    """Zoom, rotation, elastic deformation and loss of resolution leave the first of three axes alone."""
    zoom: Change = Change(bounds=(1.0, 1.0))
    """Extent of what a patch shows, as a share of the patch: less than 1 magnifies."""
    cubic_zoom: bool = False
    """Cubic interpolation of a zoomed image, else linear."""
    rotation: Change = Change()
    """Degrees about each axis."""
    flip: float = 0.0
    """Probability of mirroring along each axis."""
    flip_axes: tuple[int, ...] | None = None
    """Axes of the patch that are mirrored, its first is 0; None: all of them."""
    noise: Change = Change()
    """Standard deviation of the noise."""
    blur: Change = Change()
    """Standard deviation of the Gaussian, in voxels."""
    brightness: Change = Change()
    """Factor of the intensities."""
    contrast: Change = Change()
    """Factor of the intensities' distance from their mean."""
    low_resolution: Change = Change()
    """Share of the voxels that are kept along an axis, before the patch is brought back to its size."""
    inverted_gamma: Change = Change()
    """Exponent of the intensities, counted from the brightest voxel down."""
    gamma: Change = Change()
    """Exponent of the intensities, counted from the darkest voxel up."""
    elastic: Change = Change()
    """Standard deviation of the displacement, in voxels."""
    degraded: bool = True
    """Whether the masks of a cascade's first stage are made worse (previous_stage.py)."""

    def geometry(self) -> Preset:
        """Without the changes of intensities."""
        changes = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
        return dataclasses.replace(self, **{name: Change() for name in changes})


UNCHANGED = Preset(degraded=False)
"""Exact parts of the volumes."""

REFERENCE = Preset(
    zoom=Change(probability=0.15, bounds=(0.7, 1.0)),
    cubic_zoom=True,
    flip=0.5,
    noise=Change(probability=0.15, bounds=(0.0, 0.33)),
    blur=Change(probability=0.15, bounds=(0.5, 1.5), shared=True),
    brightness=Change(probability=0.15, bounds=(0.7, 1.3)),
    contrast=Change(probability=0.15, bounds=(0.65, 1.5)),
)
"""Source: the NVIDIA reference, PyTorch/Segmentation/nnUNet, data_loading/dali_loader.py.

It draws one factor of brightness and contrast for all channels; here each channel has its own, as in nnU-Net.
"""

NNUNET = Preset(
    zoom=Change(probability=0.2, bounds=(0.7, 1.4)),
    rotation=Change(probability=0.2, bounds=(-30.0, 30.0)),
    flip=0.5,
    # Called a variance in nnU-Net, and used as the deviation there.
    noise=Change(probability=0.1, bounds=(0.0, 0.1)),
    blur=Change(probability=0.2, bounds=(0.5, 1.0), channel_probability=0.5),
    brightness=Change(probability=0.15, bounds=(0.75, 1.25), draw="about_one"),
    contrast=Change(probability=0.15, bounds=(0.75, 1.25), draw="about_one"),
    low_resolution=Change(probability=0.25, bounds=(0.5, 1.0), channel_probability=0.5),
    inverted_gamma=Change(probability=0.1, bounds=(0.7, 1.5), draw="about_one"),
    gamma=Change(probability=0.3, bounds=(0.7, 1.5), draw="about_one"),
)
"""Source: nnU-Net v2 (2.8.1), the default trainer's training transforms, for a 3D patch that is not anisotropic.

Mirroring comes last there and before the intensities here, which changes no distribution: no change of intensities
knows a direction.
"""

PRESETS = {"none": UNCHANGED, "reference": REFERENCE, "nnunet": NNUNET}

FULL_TURN = (-180.0, 180.0)
LITTLE_TURN = (-15.0, 15.0)
ELONGATED_RATIO = 1.5
"""A 2D patch with sides in a greater ratio is only rotated a little."""

ELASTIC_STD_VOXELS = (0.0, 2.5)
"""Source: nnU-Net v1, noise of strength up to 900 (2D: 200) smoothed by 9 to 13 voxels, is displacements of up to
about 2 (3) voxels standard deviation. nnU-Net v2 knows elastic deformation too, but its default does not use it."""


def choose_preset(
    name: str,
    patch: tuple[int, ...],
    *,
    foreground: float = 0.0,
    elastic_probability: float = 0.0,
    flip_axes: tuple[int, ...] | None = None,
) -> Preset:
    """The preset of that name for a patch (D, H, W) or (H, W), which is mirrored along some axes (default: all).

    A 2D patch is moved in its plane. With `nnunet` an anisotropic 3D patch is too, slice by slice alike and by any
    angle; `reference` keeps to what the NVIDIA reference does, which zooms all three axes.
    """
    preset = PRESETS[name]
    if preset.rotation.probability:
        preset = dataclasses.replace(
            preset,
            in_plane=is_anisotropic(patch),
            rotation=dataclasses.replace(preset.rotation, bounds=rotation_degrees(patch)),
        )
    return dataclasses.replace(
        preset,
        foreground=foreground,
        flip_axes=flip_axes,
        in_plane=preset.in_plane or len(patch) == 2,
        elastic=Change(
            probability=elastic_probability if name != "none" else 0.0, bounds=ELASTIC_STD_VOXELS, shared=True
        ),
    )


def is_anisotropic(patch: tuple[int, ...]) -> bool:
    """Whether (D, H, W) is so flat that a rotation out of its plane would mix voxels of very different distances."""
    return len(patch) == 3 and max(patch) / patch[0] > ANISOTROPIC_RATIO


def rotation_degrees(patch: tuple[int, ...]) -> tuple[float, float]:
    """Least and greatest angle of nnU-Net v2 for a patch (D, H, W) or (H, W)."""
    if len(patch) == 3:
        return FULL_TURN if is_anisotropic(patch) else NNUNET.rotation.bounds
    return LITTLE_TURN if max(patch) / min(patch) > ELONGATED_RATIO else FULL_TURN
