"""A trained model as an object: scans in, masks out, without files in between.

    predictor = Predictor.load("model.zip")
    mask = predictor.predict(image, spacing_mm)
    prediction = predictor.predict_file("scan.nii.gz")

Shapes: C channels, K classes or regions, D H W the preprocessed grid; S A R (superior, anterior, right: z, y, x of a
scan in RAS+ orientation).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_preprocessing.cascade import previous_classes
from data_preprocessing.restoration import SlabRestorer, native_shape
from inference.archive import load_model
from inference.decision import PostProcessing
from inference.model import ModelBundle, build_networks, flips_warning, weight_bytes
from inference.model_set import ModelSet
from inference.postprocessing import keep_largest
from inference.preparing import PreparedScan, as_volume, finite_scan, prepare_scan, read_scan
from models.acceleration import Acceleration, default_acceleration
from models.inferer import InferenceSettings, free_device_bytes
from models.streaming import Ensemble, activation_bytes, stream_probabilities
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.nifti import Volume
from utils.runtime import Runtime, configure_backends, resolve_hardware
from utils.schema import Geometry, StagePlan

if TYPE_CHECKING:
    from inference.ensemble_predictor import EnsemblePredictor

AMP_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MOST_WINDOWS = 4
HOST_ACTIVATION_BYTES = 1 << 30
"""On a CPU as many windows go through together as need no more than this; there, more are not faster."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Mask (S, A, R) uint8 of file values, and the grid of the scan's file (see `utils.nifti.write_mask`)."""

    mask: np.ndarray
    geometry: Geometry


class Predictor:
    """Predicts scans with the mean of a model's folds; a cascade with its first stage before them.

    Args:
        bundle: plan and weights.
        device: where the networks compute.
        amp: type for mixed precision, None for float32.
        settings: sliding window and test-time augmentation; None chooses the usual ones.
        post_processing: what is done to masks.
        previous: for a cascade, the predictor of its first stage; None makes one with the same arguments.
        acceleration: see `models.acceleration`; None chooses what suits the device, without torch.compile.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        device: torch.device,
        amp: torch.dtype | None = None,
        settings: InferenceSettings | None = None,
        post_processing: PostProcessing | None = None,
        previous: Predictor | None = None,
        acceleration: Acceleration | None = None,
    ) -> None:
        self.bundle, self.plan, self.post_processing = bundle, bundle.plan, post_processing or PostProcessing()
        self.settings = settings or InferenceSettings(
            window_batch=window_batch(self.plan.stage, device, num_outputs=self.plan.labels.num_outputs, tta=False)
        )
        self.previous = previous
        if bundle.previous is not None and previous is None:
            self.previous = Predictor(
                bundle.previous, device=device, amp=amp, settings=settings, acceleration=acceleration
            )
        if acceleration is None:
            acceleration = default_acceleration(device, amp, norm=bundle.model.norm)
        self.ensemble = Ensemble(
            names=tuple(fold.name for fold in bundle.folds),
            networks=build_networks(bundle, device, acceleration),
            labels=self.plan.labels, device=device, amp=amp,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        path: Path | str,
        folds: Sequence[int] | None = None,
        device: str = "auto",
        *,
        amp: bool = False,
        settings: InferenceSettings | None = None,
    ) -> Predictor | EnsemblePredictor:
        """Load a checkpoint, a folder of checkpoints or of folds, of a decision, or an exported zip.

        Args:
            path: what `inference.py --model` takes; several configurations make an `EnsemblePredictor`.
            folds: which folds to average; None takes all.
            device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<n>`.
            amp: mixed precision, where the device computes in it.
            settings: see `Predictor`.

        Raises:
            UserError: no such model, fold or device.
        """
        runtime = resolve_hardware(_hardware(device, amp))
        configure_backends(runtime)
        place = torch.device(device) if device not in ("auto", "cpu", "cuda") else runtime.device
        models = load_model(Path(path), folds)
        if settings is not None and settings.tta:
            warn_of_flips(models)
        options = {"device": place, "amp": amp_type(runtime), "settings": settings}
        members = [cls(bundle, **options) for bundle in models.members]
        if len(members) > 1:
            from inference.ensemble_predictor import EnsemblePredictor

            return EnsemblePredictor(models, members)
        members[0].post_processing = models.post_processing
        return members[0]

    @property
    def weight_bytes(self) -> int:
        """Memory of all folds' weights."""
        first = 0 if self.previous is None else self.previous.weight_bytes
        return first + weight_bytes(self.ensemble.networks)

    def predict(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Mask (S, A, R) uint8 of file values.

        Args:
            image: (C, S, A, R), or (S, A, R) for a single channel, in the intensities of the files.
            spacing_mm: voxel size along S, A and R.

        Raises:
            UserError: another number of channels than the model's, an empty image, values that are not finite.
        """
        return self._mask(self.prepare(as_volume(image, spacing_mm)))

    def predict_probabilities(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Probabilities (K, S, A, R) float32 in the grid of the image; see `predict`. Post-processing plays no part."""
        return self.native_probabilities(self.prepare(as_volume(image, spacing_mm)))

    def native_probabilities(self, prepared: PreparedScan) -> np.ndarray:
        """Probabilities (K, S, A, R) float32 of a prepared scan."""
        native = np.zeros((self.plan.labels.num_outputs, *native_shape(prepared.meta)), dtype=np.float32)
        self.restore(prepared, native)
        return native

    def predict_file(self, paths: Path | str | Sequence[Path | str]) -> Prediction:
        """Predict one 3D or 4D NIfTI file, or one 3D file per channel.

        Raises:
            UserError: as `predict`; a file cannot be read.
        """
        volume, name = read_scan(paths)
        return Prediction(mask=self._mask(self.prepare(volume, name)), geometry=volume.geometry)

    def prepare(self, volume: Volume, name: str = "the image", *, quiet: bool = False) -> PreparedScan:
        """Preprocess a scan; messages call it `name`. With `quiet` nothing is said of odd voxels, once is enough.

        Raises:
            UserError: as `predict`.
        """
        volume = finite_scan(volume, name, quiet=quiet)
        previous = None if self.previous is None else self.previous.prepare(volume, name)
        return dataclasses.replace(prepare_scan(volume, self.plan, name), previous=previous)

    def stream(self, prepared: PreparedScan) -> Iterator[np.ndarray]:
        """Probabilities of a prepared scan as slabs (K, d, H, W) float32, in order, D planes together."""
        image = torch.from_numpy(self._with_previous(prepared))[None]
        for slab in stream_probabilities(image, self.ensemble, stage=self.plan.stage, settings=self.settings):
            yield slab.numpy()
            # Gone before the next one is made.
            del slab

    def _with_previous(self, prepared: PreparedScan) -> np.ndarray:
        """The image (C, D, H, W) and, in a cascade, a channel for each foreground class of the first stage's mask."""
        if self.previous is None:
            return prepared.image
        geometry = prepared.meta.geometry
        mask = Volume(
            array=self.previous.restore(prepared.previous), spacing_mm=prepared.meta.spacing_mm, geometry=geometry
        )
        [classes] = previous_classes(mask, prepared.meta, self.plan)
        image = np.empty((self.plan.in_channels, *classes.shape), dtype=np.float32)
        image[: len(prepared.image)] = prepared.image
        for k, channel in enumerate(image[len(prepared.image) :], start=1):
            channel[...] = classes == k
        return image

    def _mask(self, prepared: PreparedScan) -> np.ndarray:
        return keep_largest(self.restore(prepared), self.plan.labels, self.post_processing)

    def restore(self, prepared: PreparedScan, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Mask (S, A, R) uint8 of a prepared scan, without post-processing.

        Probabilities are added to (K, S, A, R) float32.
        """
        restorer = SlabRestorer(prepared.meta, self.plan, probabilities)
        for slab in self.stream(prepared):
            restorer.add(slab)
            del slab
        return restorer.finish()


def warn_of_flips(models: ModelSet) -> None:
    """Say so on the error output where test-time augmentation makes masks worse."""
    for text in dict.fromkeys(filter(None, map(flips_warning, models.members))):
        print(f"warning: {text}", file=sys.stderr)


def amp_type(runtime: Runtime) -> torch.dtype | None:
    """The type in which a run's networks compute under autocast; None for float32."""
    return AMP_TYPES[runtime.precision]


def window_batch(stage: StagePlan, device: torch.device, *, num_outputs: int, tta: bool) -> int:
    """Windows that go through the network together: four, or fewer where feature maps and logits would be large."""
    most_bytes = free_device_bytes(device) // 2 if device.type == "cuda" else HOST_ACTIVATION_BYTES
    each = activation_bytes(stage, num_windows=1, num_outputs=num_outputs, tta=tta)
    return min(max(most_bytes // max(each, 1), 1), MOST_WINDOWS)


def _hardware(device: str, amp: bool) -> HardwareConfig:
    if device == "auto":
        return HardwareConfig(amp=amp)
    if device == "cpu":
        return HardwareConfig(accelerator="cpu", amp=amp)
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:<number>, got {device!r}")
    # As many GPUs as the number asks for must be there.
    return HardwareConfig(gpus=int(number or 0) + 1, amp=amp)
