"""A trained model as an object: scans in, masks out, without files in between.

    predictor = Predictor.load("model.zip")
    mask = predictor.predict(image, spacing_mm)
    prediction = predictor.predict_file("scan.nii.gz")

Shapes: C channels, K classes or regions; S A R (superior, anterior, right: z, y, x of a scan in RAS+ orientation);
z y x the voxels of a file as stored.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data_preprocessing.restoration import SlabRestorer
from inference.configuration_agreement import ConfigurationAgreement
from inference.configuration_predictor import ConfigurationPredictor, Counter, Work
from inference.decision import PostProcessing
from inference.devices import amp_type, hardware_of, warn_of_flips
from inference.engines.engine import EngineName, choose_engine, without_gpu
from inference.merging import Merge
from inference.model_set import load_model_or_set
from inference.postprocessing import keep_largest
from inference.preparing import PreparedScan, as_volume, finite_scan, read_scan
from inference.saved import SLAB_VALUES
from models.certainty import CertaintyCounter
from models.inferer import InferenceSettings
from utils.errors import UserError
from utils.nifti import Volume, to_working
from utils.pages import give_back_pages
from utils.predictions import most_probable, working_view
from utils.reserved import create_array
from utils.runtime import configure_backends, resolve_hardware
from utils.schema import CaseMeta, Geometry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Mask (S, A, R) uint8 of file values, and the grid of the scan's file (see `utils.nifti.write_mask`)."""

    mask: np.ndarray
    geometry: Geometry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Slab:
    """Probabilities (K, d, H, W) float32 of the next planes, on the preprocessed grid of one configuration.

    `geometry` is the grid on which the mask is wanted.
    """

    configuration: int
    meta: CaseMeta
    geometry: Geometry
    planes: np.ndarray


class Predictor:
    """Predicts scans with the mean of one or several configurations.

    The probabilities of several are added up in a file; a few planes of them are in memory at a time.

    Args:
        configurations: what predicts; all see the same image channels and, without `merge`, have one label scheme.
        post_processing: what is done to masks.
        merge: for a set of models, how scans come to them and how their masks become one.
    """

    def __init__(
        self,
        configurations: Sequence[ConfigurationPredictor],
        post_processing: PostProcessing | None = None,
        merge: Merge | None = None,
    ) -> None:
        self.merge = merge
        self.configurations, self.post_processing = tuple(configurations), post_processing or PostProcessing()
        self.plan, self.settings = self.configurations[0].plan, self.configurations[0].settings

    @classmethod
    def load(
        cls,
        path: Path | str,
        folds: Sequence[int] | None = None,
        device: str = "auto",
        *,
        amp: bool = False,
        settings: InferenceSettings | None = None,
        engine: EngineName = "auto",
    ) -> Predictor:
        """Load a checkpoint, a folder of checkpoints or of folds, of a decision, an exported zip, or a set of models.

        Args:
            path: what `inference.py --model` takes.
            folds: which folds to average; None takes all.
            device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<n>`.
            amp: mixed precision, where the device computes in it.
            settings: sliding window and test-time augmentation; None chooses the usual ones.
            engine: what computes the networks, as `inference.py --engine`; all but torch (also `auto`) on the CPU.

        Raises:
            UserError: no such model, fold, device or engine, its package is missing, or it does not agree with torch.
        """
        wanted = hardware_of(device, amp)
        if engine not in ("auto", "torch") and device.startswith("cuda"):
            raise UserError(f"engine {engine} computes on the CPU, and device is {device!r}; leave one of them out")
        runtime = resolve_hardware(without_gpu(engine, wanted))
        configure_backends(runtime)
        chosen = choose_engine(engine, wanted, runtime, amp_type(runtime))
        place = torch.device(device) if device not in ("auto", "cpu", "cuda") else runtime.device
        model = load_model_or_set(Path(path), folds)
        if settings is not None and settings.tta:
            warn_of_flips(model)
        each = [
            ConfigurationPredictor(configuration, device=place, amp=amp_type(runtime), settings=settings, engine=chosen)
            for configuration in model.configurations
        ]
        return cls(each, model.post_processing, model.merge)

    @property
    def adds_up(self) -> bool:
        """Whether probabilities of several configurations are added up, which takes a place for the sum."""
        return len(self.configurations) > 1 and self.merge is None

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        return sum(configuration.weight_bytes for configuration in self.configurations)

    def predict(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Mask (S, A, R) uint8 of file values.

        Args:
            image: (C, S, A, R), or (S, A, R) for a single channel, in the intensities of the files.
            spacing_mm: voxel size along S, A and R.

        Raises:
            UserError: another number of channels than the model's, an empty image, values that are not finite.
        """
        return self.predict_volume(as_volume(image, spacing_mm), "the image")

    def predict_probabilities(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Probabilities (K, S, A, R) float32 in the grid of the image; see `predict`. Post-processing plays no part."""
        if self.merge is not None:
            raise UserError("a set of models gives masks only")
        volume = as_volume(image, spacing_mm)
        # An array in memory is stored as it is worked on.
        stored = np.zeros((self.plan.labels.num_outputs, *volume.array.shape[1:]), dtype=np.float32)
        self.collect(self.stream(self._each(volume, "the image")), stored)
        return stored

    def predict_file(self, paths: Path | str | Sequence[Path | str]) -> Prediction:
        """Predict one 3D or 4D NIfTI file, or one 3D file per channel.

        Raises:
            UserError: as `predict`; a file cannot be read.
        """
        volume, name = read_scan(paths)
        return Prediction(mask=self.predict_volume(volume, name), geometry=volume.geometry)

    def predict_volume(self, volume: Volume, name: str, count: Counter | None = None) -> np.ndarray:
        """Mask (S, A, R) uint8 of file values of a scan that has been read; messages call it `name`.

        `count` is told of what is done, and may raise what ends the work.

        Raises:
            UserError: as `predict`.
        """
        slabs = self.stream(self._each(volume, name), count)
        if not self.adds_up:
            return self.finish(self.collect(slabs))
        with tempfile.TemporaryDirectory(prefix="nnunet-ensemble-") as folder:
            path = Path(folder) / "sum.npy"
            shape = (self.plan.labels.num_outputs, *reversed(volume.geometry.shape_xyz))
            return self.finish(self.collect(slabs, create_array(path, shape, target=path)))

    def prepare(self, volume: Volume, name: str = "the image") -> list[PreparedScan]:
        """Preprocess a scan for each configuration; messages call it `name`.

        Raises:
            UserError: as `predict`.
        """
        return list(self._each(volume, name))

    def _each(self, volume: Volume, name: str) -> Iterator[PreparedScan]:
        """One after the other, as they are needed: only one of them is in memory then."""
        volume = finite_scan(volume, name)
        geometry = volume.geometry
        if self.merge is not None:
            volume = self.merge.on_grid(volume)
        for configuration in self.configurations:
            yield dataclasses.replace(configuration.prepare(volume, name), file_geometry=geometry)

    def work(self, prepared: Sequence[PreparedScan]) -> Work:
        """What `stream` will do."""
        each = zip(self.configurations, prepared)
        return sum((configuration.work(scan) for configuration, scan in each), Work())

    def stream(
        self,
        prepared: Iterable[PreparedScan],
        count: Counter | None = None,
        certainty: Sequence[CertaintyCounter | None] = (),
    ) -> Iterator[Slab]:
        """Probabilities by all configurations, in turn; each gives all planes of its grid in order.

        `count` is told of what is done; `certainty` has a counter for each configuration, or is empty.
        """
        scans = iter(prepared)
        # Not by zip, which holds on to the scan before while the next one is prepared.
        for index, configuration in enumerate(self.configurations):
            scan = next(scans)
            for planes in configuration.stream(scan, count, certainty[index] if certainty else None):
                yield Slab(configuration=index, meta=scan.meta, geometry=scan.geometry, planes=planes)
                # Gone before the next one is made.
                del planes
            del scan

    def collect(
        self,
        slabs: Iterable[Slab],
        stored: np.ndarray | None = None,
        agreement: ConfigurationAgreement | None = None,
    ) -> np.ndarray:
        """Mask (S, A, R) uint8 of file values, before post-processing, of all that `stream` gives.

        Args:
            slabs: of one scan.
            stored: (K, z, y, x) float32 zeros that become the mean probabilities; they are needed where several
                configurations are added up.
            agreement: compares the masks of several configurations that are added up.
        """
        if self.merge is not None:
            return self._merged(slabs, self.merge)
        assert stored is not None or not self.adds_up, "no place for the sum"
        restorer, index, affine, working = None, -1, None, None
        for slab in slabs:
            if slab.configuration != index:
                index, affine = slab.configuration, slab.meta.geometry.affine
                working = None if stored is None else working_view(stored, affine)
                if restorer is not None and agreement is not None:
                    agreement.add(restorer.finish())
                # The one before, and its mask unless it is compared, are gone first.
                restorer = None
                restorer = SlabRestorer(slab.meta, self.configurations[index].plan, working)
            assert restorer is not None
            restorer.add(slab.planes)
            del slab
        assert restorer is not None and affine is not None, "nothing to collect"
        mask = restorer.finish()
        if stored is None or not self.adds_up:
            return mask
        if agreement is not None:
            agreement.add(mask)
        del restorer, mask
        return to_working(self._average(stored).swapaxes(-1, -3), affine)

    def _merged(self, slabs: Iterable[Slab], merge: Merge) -> np.ndarray:
        """The mask (S, A, R) uint8 of a set of models, on the scan's own grid; one model's mask is held at a time."""
        restorer, index, merged, geometry = None, -1, None, None
        for slab in slabs:
            if slab.configuration != index:
                if restorer is not None:
                    merged = merge.add(merged, index, restorer.finish())
                index, geometry, restorer = slab.configuration, slab.geometry, None
                restorer = SlabRestorer(slab.meta, self.configurations[index].plan)
            assert restorer is not None
            restorer.add(slab.planes)
            del slab
        assert restorer is not None and geometry is not None, "nothing to merge"
        return merge.back(merge.add(merged, index, restorer.finish()), geometry)

    def finish(self, mask: np.ndarray) -> np.ndarray:
        """The mask (S, A, R) after post-processing."""
        return keep_largest(mask, self.plan.labels, self.post_processing)

    def _average(self, stored: np.ndarray) -> np.ndarray:
        """Make the sum (K, z, y, x) the mean, in place; returns the mask (z, y, x) uint8 of file values."""
        labels = self.plan.labels
        values = np.array(labels.values, dtype=np.uint8)
        mask = np.empty(stored.shape[1:], dtype=np.uint8)
        step = max(1, SLAB_VALUES // stored[:, 0].size)
        for start in range(0, len(mask), step):
            part = slice(start, start + step)
            stored[:, part] /= len(self.configurations)
            mask[part] = values[most_probable(stored[:, part], labels)]
            give_back_pages(stored)
        return mask
