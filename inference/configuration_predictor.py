"""One configuration of a model on a device: prepared scans in, probabilities of the mean of its folds out.

Shapes: C channels, K classes or regions, D H W the preprocessed grid; S A R (superior, anterior, right: z, y, x of a
scan in RAS+ orientation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from data_preprocessing.cascade import previous_classes
from data_preprocessing.preprocessor import outside_mask
from data_preprocessing.restoration import restore_slabs
from inference.configuration import ConfigurationModel, build_networks, weight_bytes
from inference.engines.engine import Engine
from inference.preparing import PreparedScan, prepare_scan
from models.acceleration import Acceleration, default_acceleration
from models.certainty import CertaintyCounter
from models.inferer import InferenceSettings, flips, free_device_bytes
from models.sliding_window import Ensemble, activation_bytes, stream_probabilities
from models.windows import window_layout
from utils.nifti import Volume
from utils.schema import StagePlan

MOST_WINDOWS = 4
CPU_ACTIVATION_BYTES = 1 << 30
"""On a CPU as many windows go through together as need no more than this; there, more are not faster."""
Counter = Callable[["Work"], None]
"""Called with what has just been done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Windows, and the voxels that they put through networks (folds and flips counted)."""

    windows: int = 0
    voxels: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(windows=self.windows + other.windows, voxels=self.voxels + other.voxels)


class ConfigurationPredictor:
    """Predicts with the mean of a configuration's folds; a cascade with its first stage before them.

    Args:
        configuration: plan and weights.
        device: where the networks compute.
        amp: type for mixed precision, None for float32.
        settings: sliding window and test-time augmentation; None chooses the usual ones.
        previous: for a cascade, what predicts its first stage; None makes one with the same arguments.
        acceleration: see `models.acceleration`; None chooses what suits the device, without torch.compile.
        engine: what computes the networks in place of torch, on the CPU; device and acceleration are torch's.
    """

    def __init__(
        self,
        configuration: ConfigurationModel,
        *,
        device: torch.device,
        amp: torch.dtype | None = None,
        settings: InferenceSettings | None = None,
        previous: ConfigurationPredictor | None = None,
        acceleration: Acceleration | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.configuration, self.plan, self.engine = configuration, configuration.plan, engine
        self.settings = settings or InferenceSettings(
            window_batch=window_batch(self.plan.stage, device, num_outputs=self.plan.labels.num_outputs, tta=False)
        )
        self.previous = previous
        if configuration.previous is not None and previous is None:
            self.previous = ConfigurationPredictor(
                configuration.previous, device=device, amp=amp, settings=settings, acceleration=acceleration,
                engine=engine,
            )  # fmt: skip
        if engine is not None:
            assert device.type == "cpu", device
            networks, amp = engine.networks(configuration), engine.amp
        else:
            chosen = acceleration or default_acceleration(device, amp, norm=configuration.model.norm)
            networks = build_networks(configuration, device, chosen)
        self.ensemble = Ensemble(
            names=tuple(fold.name for fold in configuration.folds),
            networks=networks,
            labels=self.plan.labels, device=device, amp=amp, rules=self.plan.rules, mirror_axes=self.plan.mirror_axes,
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Memory of all folds' weights."""
        first = 0 if self.previous is None else self.previous.weight_bytes
        return first + weight_bytes(self.configuration)

    def prepare(self, volume: Volume, name: str) -> PreparedScan:
        """Preprocess a scan of finite intensities; messages call it `name`.

        Raises:
            UserError: another number of channels than the plan's, or an empty image.
        """
        previous = None if self.previous is None else self.previous.prepare(volume, name)
        return dataclasses.replace(prepare_scan(volume, self.plan, name), previous=previous)

    def work(self, prepared: PreparedScan) -> Work:
        """What `stream` will do."""
        first = Work()
        if self.previous is not None and prepared.previous is not None:
            first = self.previous.work(prepared.previous)
        layout = window_layout(prepared.image.shape[1:], self.plan.stage, self.settings, self.plan.rules)
        return first + self._work(layout.num_windows)

    def _work(self, windows: int) -> Work:
        stage = self.plan.stage
        passes = len(self.ensemble.networks) * (
            len(flips(stage.dim, self.plan.mirror_axes)) if self.settings.tta else 1
        )
        return Work(windows=windows, voxels=windows * passes * math.prod(stage.patch_size))

    def stream(
        self, prepared: PreparedScan, count: Counter | None = None, certainty: CertaintyCounter | None = None
    ) -> Iterator[np.ndarray]:
        """Probabilities of a prepared scan as slabs (K, d, H, W) float32, in order, D planes together.

        `count` is told of what is done, the first stage of a cascade included; `certainty` counts the last stage.
        """
        image = torch.from_numpy(self._with_previous(prepared, count))[None]
        counter = None if count is None else lambda windows: count(self._work(windows))
        for slab in stream_probabilities(
            image, self.ensemble, stage=self.plan.stage, settings=self.settings, count=counter, certainty=certainty
        ):
            yield slab.numpy()
            # Gone before the next one is made.
            del slab

    def _with_previous(self, prepared: PreparedScan, count: Counter | None = None) -> np.ndarray:
        """The image (C, D, H, W) and, in a cascade, a channel for each foreground class of the first stage's mask."""
        if self.previous is None:
            return prepared.image
        first, meta = prepared.previous, prepared.meta
        assert first is not None, "prepared by a configuration without a first stage"
        mask = restore_slabs(self.previous.stream(first, count), first.meta, self.previous.plan)
        volume = Volume(array=mask, spacing_mm=meta.spacing_mm, geometry=meta.geometry)
        outside = None if prepared.scan is None else outside_mask(prepared.scan, meta)
        [classes] = previous_classes(volume, meta, self.plan, outside=outside)
        own = prepared.image if outside is None else self._seen_again(prepared, mask, outside)
        image = np.empty((self.plan.in_channels, *classes.shape), dtype=np.float32)
        image[: len(own)] = own
        for k, channel in enumerate(image[len(own) :], start=1):
            channel[...] = classes == k
        return image

    def _seen_again(self, prepared: PreparedScan, mask: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """The image, normalised anew where the first stage's mask (S, A, R) is larger than what is not zero."""
        masked = any(channel.scheme == "zscore_mask" for channel in self.plan.channels)
        if prepared.scan is None or not masked or not mask[outside].any():
            return prepared.image
        return prepare_scan(prepared.scan, self.plan, prepared.meta.case, also_inside=mask).image


def window_batch(stage: StagePlan, device: torch.device, *, num_outputs: int, tta: bool) -> int:
    """Windows that go through the network together: four, or fewer where feature maps and logits would be large."""
    most_bytes = free_device_bytes(device) // 2 if device.type == "cuda" else CPU_ACTIVATION_BYTES
    each = activation_bytes(stage, num_windows=1, num_outputs=num_outputs, tta=tta)
    return min(max(most_bytes // max(each, 1), 1), MOST_WINDOWS)
