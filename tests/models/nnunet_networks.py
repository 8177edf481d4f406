"""Small networks of nnU-Net v2's kinds with made-up weights, for its own code and for ours; needs numpy only."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Iterable

import numpy as np

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Numbers of a network, level 0 first."""

    patch: Axes
    filters: tuple[int, ...]
    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]
    encoder_convs: tuple[int, ...]
    decoder_convs: tuple[int, ...]
    residual: bool
    in_channels: int = 2
    num_outputs: int = 3


FLAT = {
    "patch": (4, 24, 16),
    "filters": (4, 6, 8, 8),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
SQUARE = {
    "patch": (32, 24),
    "filters": (4, 6, 8, 8),
    "strides": ((1, 1), (2, 2), (2, 2), (2, 1)),
    "kernels": ((3, 3), (3, 3), (3, 3), (3, 3)),
}
CUBE = {
    "patch": (16, 16, 16),
    "filters": (4, 8, 8),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "kernels": ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
}
NETWORKS = {
    "plain anisotropic": Network(**FLAT, encoder_convs=(2, 2, 2, 2), decoder_convs=(2, 2, 2), residual=False),
    "plain, other numbers of convolutions": Network(
        **FLAT, encoder_convs=(1, 2, 3, 2), decoder_convs=(1, 3, 2), residual=False
    ),
    "plain 2D": Network(**SQUARE, encoder_convs=(2, 2, 2, 2), decoder_convs=(2, 2, 2), residual=False),
    "residual anisotropic": Network(**FLAT, encoder_convs=(1, 3, 2, 2), decoder_convs=(1, 1, 1), residual=True),
    "residual": Network(**CUBE, encoder_convs=(1, 3, 4), decoder_convs=(1, 2), residual=True),
    "residual 2D": Network(**SQUARE, encoder_convs=(1, 3, 2, 1), decoder_convs=(1, 1, 1), residual=True),
}


def make_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a parameter of nnU-Net's that depend on its name and shape alone; scales lie about 1."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return 1 + 0.3 * values
    if len(shape) == 1:
        return 0.3 * values
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def make_image(network: Network) -> np.ndarray:
    """Two samples (2, C, D, H, W), or (2, C, H, W), float32."""
    return np.random.RandomState(0).standard_normal((2, network.in_channels, *network.patch)).astype(np.float32)


def digest_parameters(parameters: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Of names and shapes, in any order; biases of convolutions before a normalisation, which it cancels, left out."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in parameters if not name.endswith(".conv.bias"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
