"""From windows to logits and probabilities: how whole cases are predicted, and flips of each window.

Shapes: N windows or slices, C channels, K classes or regions, D H W space (2D windows have no D).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from utils.schema import LabelScheme

logger = logging.getLogger(__name__)

FlipCounter = Callable[[Tensor, tuple[int, ...]], None]
"""Called with logits (N, K, ...) of flipped windows and the axes that were flipped."""
BLOCK_VALUES = 2**22
"""Most values of a copy that is made of logits on their way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """How whole cases are predicted."""

    tta: bool = False
    """Average the logits over all flips of each window."""
    overlap: float = 0.5
    """Overlap of neighbouring windows, as a share of the window."""
    blend: str = "gaussian"
    """`gaussian` trusts the middle of a window more than its border; `constant` does not."""
    window_batch: int = 4
    """Windows (or slices) that go through the network together."""
    fill_batches: bool = False
    """Fill batches up with empty windows to 1, 2, 4, ... or `window_batch`, so that compiled code meets few shapes."""
    device_bytes: int | None = None
    """Largest logits that are put together on a GPU (default: a third of its free memory)."""

    def __post_init__(self) -> None:
        if self.blend not in ("gaussian", "constant"):
            raise ValueError(f"blend must be 'gaussian' or 'constant', got {self.blend!r}")
        if not 0 <= self.overlap < 1 or self.window_batch < 1:
            raise ValueError(f"overlap must lie in [0, 1) and window_batch be positive, got {self}")


def to_probabilities(logits: Tensor, labels: LabelScheme) -> Tensor:
    """Softmax over classes, or sigmoid of each region, of (N, K, D, H, W), in float32."""
    return logits.float().sigmoid() if labels.regions else logits.float().softmax(dim=1)


def flips(dim: int, mirror_axes: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """All sets of spatial axes of an (N, C, ...) tensor, the empty one first: 4 in 2D, 8 in 3D.

    With `mirror_axes` (0 is the first spatial axis) only sets of those.
    """
    axes = [2 + axis for axis in (range(dim) if mirror_axes is None else sorted(mirror_axes))]
    return tuple(itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)))


def window_logits(
    network: nn.Module, windows: Tensor, settings: InferenceSettings, mirror_axes: Sequence[int] | None = None,
    flip: FlipCounter | None = None,
) -> Tensor:  # fmt: skip
    """Logits (N, K, ...) of windows (N, C, ...) on the network's device: float32 means over flips with `tta`.

    Without, they are what the network handed out, which may be a view of its input: nobody may change them in place.
    With `tta`, `flip` sees the logits of the windows as they are and of each set of flips.
    """
    count = len(windows)
    room = filled_size(count, settings.window_batch) if settings.fill_batches else count
    if room > count:
        windows = torch.cat([windows, windows.new_zeros(room - count, *windows.shape[1:])])
    if not settings.tta:
        return network(windows)[:count]
    axes_sets = flips(windows.dim() - 2, mirror_axes)
    total = network(windows).to(torch.float32, copy=True)
    if flip is not None:
        flip(total[:count], ())
    for axes in axes_sets[1:]:
        logits = network(windows.flip(axes))
        if flip is not None:
            flip(logits[:count], axes)
        _add_flipped(total, logits, axes)
        # Gone before the next one is made.
        del logits
    return total[:count].div_(len(axes_sets))


def _add_flipped(total: Tensor, logits: Tensor, axes: tuple[int, ...]) -> None:
    """total += logits.flip(axes), a few planes at a time: a flip is a copy."""
    depth = total.shape[2]
    for part in plane_blocks(total):
        source = slice(depth - part.stop, depth - part.start) if 2 in axes else part
        total[:, :, part] += logits[:, :, source].flip(axes)


def plane_blocks(values: Tensor) -> list[slice]:
    """Ranges of the first spatial axis of (N, K, ...) that cover it, of BLOCK_VALUES unless a single plane has more."""
    depth = values.shape[2]
    step = max(1, BLOCK_VALUES * depth // max(values.numel(), 1))
    return [slice(start, min(start + step, depth)) for start in range(0, depth, step)]


def filled_size(count: int, most: int) -> int:
    """The smallest power of two, or `most`, that holds `count` windows."""
    assert 1 <= count <= most
    return min(1 << (count - 1).bit_length(), most)


def free_device_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors may still take: what is free, and what torch holds without using it."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def most_device_bytes(device: torch.device, settings: InferenceSettings) -> int:
    """Of a GPU's memory what logits may take together.

    A third of what is free: the logits, probabilities of the same size, and the feature maps of the windows.
    """
    return free_device_bytes(device) // 3 if settings.device_bytes is None else settings.device_bytes


@functools.cache
def say_cpu(device: torch.device) -> None:
    """Warn, once for each device, that logits go where they take longer."""
    logger.warning(
        "the logits of a whole scan do not fit on %s beside everything else; they are put together on the CPU, which "
        "is slower", device,
    )  # fmt: skip
