"""Cases whose truth one knows: two halves of an ellipsoid, and blurred probabilities of networks that see them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cross_validation.audit.evidence import Evidence, make_evidence
from cross_validation.audit.ranking import Usual, find_usual
from cross_validation.audit.signals import signals
from utils.schema import Geometry, LabelScheme, Region

SHAPE = (22, 34, 24)
FRONT_BACK = LabelScheme(names=("background", "front", "back"), values=(0, 1, 3))
NESTED = LabelScheme(
    names=("background", "edema", "core"), values=(0, 1, 3),
    regions=(Region(name="whole", classes=(1, 2), write_class=1), Region(name="core", classes=(2,), write_class=2)),
)  # fmt: skip


def geometry(*, turned: bool = False) -> Geometry:
    """Of a file of this shape; turned, its x runs to the left and its y to the back."""
    sign = -1.0 if turned else 1.0
    affine = ((sign, 0.0, 0.0, 0.0), (0.0, sign, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Geometry(shape_xyz=SHAPE[::-1], affine=affine, qform_code=0, sform_code=1, xyzt_units=2)


def halves(seed: int = 0) -> np.ndarray:
    """Class indices (S, A, R); seeds differ in place and size by a voxel or so."""
    rng = np.random.default_rng(seed)
    centre, radii = rng.normal((11, 17, 12), 0.8), rng.normal((6, 10, 6), 0.4)
    grid = np.indices(SHAPE).reshape(3, -1).T
    inside = ((((grid - centre) / radii) ** 2).sum(1) < 1).reshape(SHAPE)
    label = inside.astype(np.uint8)
    label[inside & (np.indices(SHAPE)[1] > centre[1])] = 2
    return label


def believed(truth: np.ndarray, seed: int = 0, labels: LabelScheme = FRONT_BACK) -> np.ndarray:
    """Probabilities (K or R, S, A, R) of networks that see this, unsure along the boundaries."""
    rng = np.random.default_rng(seed)
    shares = np.stack([ndimage.gaussian_filter((truth == k).astype(np.float32), 1.0) for k in range(3)])
    shares = np.clip(shares + rng.normal(0, 0.01, shares.shape), 0.001, 1).astype(np.float32)
    shares /= shares.sum(0)
    if not labels.regions:
        return shares
    return np.stack([shares[list(region.classes)].sum(0) for region in labels.regions])


def evidence(given: np.ndarray, truth: np.ndarray, labels: LabelScheme = FRONT_BACK, seed: int = 0) -> Evidence:
    """A given label beside what is believed of the true one."""
    predicted = believed(truth, seed).argmax(0).astype(np.uint8)
    return make_evidence(given, predicted, believed(truth, seed, labels), labels, geometry())


def usual(labels: LabelScheme = FRONT_BACK, lacking: int | None = None) -> Usual:
    """What is usual of sound labels, or of such that lack a class."""
    truths = [np.where(halves(seed) == lacking, 0, halves(seed)).astype(np.uint8) for seed in range(10)]
    return find_usual([signals(evidence(truth, truth, labels, seed)) for seed, truth in enumerate(truths)])
