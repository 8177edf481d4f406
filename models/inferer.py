"""From a whole preprocessed case to logits: sliding window, slices, test-time augmentation, stitching.

Shapes: N windows or slices, C channels, K classes or regions, D H W space (2D windows have no D).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.schema import LabelScheme, StagePlan

logger = logging.getLogger(__name__)

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


@torch.inference_mode()
def predict_volume(image: Tensor, network: nn.Module, *, stage: StagePlan, settings: InferenceSettings) -> Tensor:
    """Logits (1, K, D, H, W) float32 of a case (1, C, D, H, W); every voxel keeps its position.

    A 3D network sees windows of the patch size, a 2D one windows of every slice. A volume smaller than the
    patch is padded with zeros and cropped again. The image may lie on the host; the result lies on the
    network's device, or on the host where it would take too much of the device's memory.
    """
    assert not network.training, "call network.eval() first"
    assert image.dim() == 5 and image.shape[0] == 1, image.shape
    # In 2D the slices are the batch.
    batch = image[0].transpose(0, 1) if stage.dim == 2 else image
    windows = _Windows(network, image.device, stage.patch_size, settings)
    if all(size <= window for size, window in zip(batch.shape[2:], stage.patch_size)):
        logits = windows.predict_one_each(batch)
    else:
        logits = windows.predict_overlapping(batch)
    return logits.transpose(0, 1)[None] if stage.dim == 2 else logits


def to_probabilities(logits: Tensor, labels: LabelScheme) -> Tensor:
    """Softmax over classes, or sigmoid of each region, of (N, K, D, H, W), in float32."""
    return logits.float().sigmoid() if labels.regions else logits.float().softmax(dim=1)


def flips(dim: int) -> tuple[tuple[int, ...], ...]:
    """All sets of spatial axes of an (N, C, ...) tensor, the empty one first: 4 in 2D, 8 in 3D."""
    axes = range(2, 2 + dim)
    return tuple(itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(dim + 1)))


def window_logits(network: nn.Module, windows: Tensor, settings: InferenceSettings) -> Tensor:
    """Logits (N, K, ...) of windows (N, C, ...) on the network's device: float32 means over flips with `tta`.

    Without, they are what the network handed out, which may be a view of its input: nobody may change them in place.
    """
    count = len(windows)
    room = filled_size(count, settings.window_batch) if settings.fill_batches else count
    if room > count:
        windows = torch.cat([windows, windows.new_zeros(room - count, *windows.shape[1:])])
    if not settings.tta:
        return network(windows)[:count]
    axes_sets = flips(windows.dim() - 2)
    total = network(windows).to(torch.float32, copy=True)
    for axes in axes_sets[1:]:
        _add_flipped(total, network(windows.flip(axes)), axes)
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


@functools.cache
def say_host(device: torch.device) -> None:
    """Warn, once for each device, that logits go where they take longer."""
    logger.warning(
        "the logits of a whole scan do not fit on %s beside everything else; they are put together on the host, which "
        "is slower", device,
    )  # fmt: skip


class _Windows:
    """Puts a batch of images (N, C, ...) through the network window by window."""

    def __init__(
        self, network: nn.Module, default: torch.device, window: tuple[int, ...], settings: InferenceSettings
    ) -> None:
        self.network, self.window, self.settings = network, window, settings
        self.device = next((p.device for p in network.parameters()), default)

    def logits(self, windows: Tensor) -> Tensor:
        """Float32 logits of windows on the device, averaged over flips."""
        # A copy, since MONAI scales them in place; means over flips are one already.
        return window_logits(self.network, windows, self.settings).to(torch.float32, copy=not self.settings.tta)

    def predict_one_each(self, batch: Tensor) -> Tensor:
        """Images no larger than one window: padded, predicted and cropped, nothing to put together."""
        sizes = batch.shape[2:]
        low = [(window - size) // 2 for window, size in zip(self.window, sizes)]
        high = [window - size - before for window, size, before in zip(self.window, sizes, low)]
        padding = [margin for pair in zip(reversed(low), reversed(high)) for margin in pair]
        inside = (..., *(slice(before, before + size) for before, size in zip(low, sizes)))
        parts = batch.split(self.settings.window_batch)
        return torch.cat([self.logits(F.pad(part.to(self.device), padding))[inside] for part in parts])

    def predict_overlapping(self, batch: Tensor) -> Tensor:
        """Images larger than a window: overlapping windows, blended."""
        host = torch.device("cpu")
        if self.device.type != "cuda":
            return self._blend(batch, self.device)
        if not self._fits(batch):
            say_host(self.device)
            return self._blend(batch, host)
        try:
            return self._blend(batch, self.device)
        except torch.OutOfMemoryError:
            say_host(self.device)
        # Outside the except clause, so that what the failed attempt held is free by now.
        torch.cuda.empty_cache()
        return self._blend(batch, host)

    def _blend(self, batch: Tensor, device: torch.device) -> Tensor:
        # Half of a program's start, and not needed where scans are streamed.
        from monai.inferers.utils import sliding_window_inference

        settings = self.settings
        return sliding_window_inference(
            batch, self.window, settings.window_batch, self.logits, overlap=settings.overlap,
            mode=settings.blend, sw_device=self.device, device=device, progress=False,
        )  # fmt: skip

    def _fits(self, batch: Tensor) -> bool:
        num_outputs = getattr(self.network, "num_outputs", 1)
        num_bytes = 4 * num_outputs * batch.shape[0] * batch[0, 0].numel()
        # A third: the logits, probabilities of the same size, and the activations of the windows.
        limit = self.settings.device_bytes
        return num_bytes <= (free_device_bytes(self.device) // 3 if limit is None else limit)
