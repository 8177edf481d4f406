"""How much memory predicting a scan takes, as a function of its size, the plan and the settings.

Python and torch themselves, and the networks' weights, are not in it: they are there once, whatever the scans.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_preprocessing.grid_limit import require_sensible
from data_preprocessing.preprocessor import padding, target_grid_mm
from data_preprocessing.resampling import resampled_shape
from data_preprocessing.restoration import restoring_bytes
from data_preprocessing.working_axes import Affine, working_axes
from inference.merging import Merge
from inference.preparing import looks_again
from models.inferer import InferenceSettings
from models.sliding_window import activation_bytes, buffer_bytes, slab_planes
from models.windows import window_layout
from utils.limits import free_memory_bytes as free_memory_bytes
from utils.pipeline import AHEAD
from utils.schema import Plan

if TYPE_CHECKING:
    from inference.configuration_predictor import ConfigurationPredictor
    from inference.predictor import Predictor

FLOAT_BYTES = 4
GAPS = 1.1
"""The C library keeps freed memory for the next blocks, and not every block fits into a gap: measured."""
SLAB_BYTES = 1 << 26
"""What resampling an image holds beside it and its copy: some slabs, and the map of each axis."""
POSTPROCESSING_BYTES = 7
"""Of each voxel while components are numbered, the mask included: measured, rounded up."""
MASK_BYTES = 9
"""Of each voxel while the mask of what is not zero is made: numbers of its regions, and some masks."""
PROGRAM_BYTES = 500_000_000
"""Python, torch and MONAI, loaded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes of one scan in its three phases; a phase gives its memory back before the next one needs it."""

    prepare_bytes: int
    """Reading and preprocessing: the file's content, the scan, and its copy on the plan's grid."""
    predict_bytes: int
    """Network and restoring: the prepared scan, held planes, feature maps, slabs on their way, the mask."""
    write_bytes: int
    """The prepared scan, the mask, and three copies of it while it is packed; or what post-processing takes."""
    prepared_bytes: int
    """The prepared scan alone, which is held through all phases."""

    @property
    def peak_bytes(self) -> int:
        """The largest of the three."""
        return max(self.prepare_bytes, self.predict_bytes, self.write_bytes)


def forecast_memory(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    plan: Plan,
    settings: InferenceSettings,
    num_networks: int,
    on_gpu: bool = False,
    affine: Affine | None = None,
) -> Forecast:
    """What a scan of `shape` (S, A, R) voxels of `spacing_mm` takes of the CPU's memory at most.

    It is taken as uncropped, stored in four bytes a voxel, and scaled when it is read. `affine` says how it lies in its
    file; without, it is taken as RAS+.
    """
    stage, labels = plan.stage, plan.labels
    sizes, grid = planned_grid(shape, spacing_mm, plan=plan, affine=affine)
    padded, _ = padding(grid, stage.patch_size)
    scan_voxels, plane_voxels = math.prod(shape), padded[1] * padded[2]
    scan = FLOAT_BYTES * len(plan.channels) * scan_voxels
    prepared = FLOAT_BYTES * plan.image_channels * math.prod(padded)
    # The second stage of a cascade sees a copy that has the first stage's channels as well.
    seen = FLOAT_BYTES * plan.in_channels * math.prod(padded) if plan.previous_channels else 0
    layout = window_layout(padded, stage, settings, plan.rules)
    slab = FLOAT_BYTES * labels.num_outputs * plane_voxels * slab_planes(layout, num_outputs=labels.num_outputs)
    # Those on their way, the one that the writer is at and its copy; the one being made: weighted, as probabilities,
    # and as the sum of several networks.
    making = 2 if num_networks == 1 else 3
    working = (AHEAD + 2 + making) * slab
    # Classes of the slab by each network, which are compared.
    working += num_networks * slab // (FLOAT_BYTES * (1 if labels.regions else labels.num_outputs))
    working += restoring_bytes(grid, sizes, num_outputs=labels.num_outputs)
    if not on_gpu:
        working += buffer_bytes(layout, num_outputs=labels.num_outputs, num_networks=num_networks)
        working += activation_bytes(
            stage, num_windows=settings.window_batch, num_outputs=labels.num_outputs, tta=settings.tta
        )
    normalized = FLOAT_BYTES * scan_voxels * plan.normalize_first
    # A second stage may look at the scan once more: a mask of it is made, and it is prepared anew, before its windows.
    held = scan if looks_again(plan) else 0
    again = MASK_BYTES * scan_voxels + normalized + prepared if held else 0
    predict = prepared + held + max(seen + scan_voxels + int(GAPS * working), again)
    # The file's content, the scan as it is read and as it is scaled; then the scan, one channel of it normalised, and
    # the copy on the plan's grid.
    return Forecast(
        prepare_bytes=max(3 * scan, scan + normalized + prepared), predict_bytes=predict,
        write_bytes=prepared + held + seen + 4 * scan_voxels, prepared_bytes=prepared + held,
    )  # fmt: skip


def planned_grid(
    shape: Sequence[int], spacing_mm: Sequence[float], *, plan: Plan, affine: Affine | None = None
) -> tuple[list[int], tuple[int, int, int]]:
    """Voxels of a scan along the plan's axes, as it is and on the plan's grid; see `forecast_memory`.

    Raises:
        UserError: no scan is as large as this one would be on the plan's grid.
    """
    axes = plan.axes if affine is None else working_axes(plan, affine).order
    spacing, sizes = tuple(spacing_mm[axis] for axis in axes), [shape[axis] for axis in axes]
    target_mm = target_grid_mm(plan.stage, spacing)
    grid = resampled_shape(sizes, spacing, target_mm, rule=plan.rules.grid_shape)
    require_sensible(sizes, spacing, grid, target_mm)
    return sizes, grid


def forecast_predictor(
    predictor: Predictor, shape: Sequence[int], spacing_mm: Sequence[float], affine: Affine | None = None
) -> Forecast:
    """The same for a predictor, post-processing included.

    A scan that is prepared for all configurations waits for all of them; they predict one after the other.
    """
    if predictor.merge is not None:
        return _forecast_set(predictor, predictor.merge, shape, spacing_mm, affine)
    return _forecast_all(predictor, shape, spacing_mm, affine)


def _forecast_all(
    predictor: Predictor, shape: Sequence[int], spacing_mm: Sequence[float], affine: Affine | None
) -> Forecast:
    each = [
        forecast_configuration(configuration, shape, spacing_mm, affine) for configuration in predictor.configurations
    ]
    held = [forecast.prepared_bytes for forecast in each]
    total, compared = sum(held), len(each) - 1 if predictor.adds_up else 0
    write = max(total - own.prepared_bytes + own.write_bytes for own in each)
    if not predictor.post_processing.does_nothing:
        write = max(write, total + POSTPROCESSING_BYTES * math.prod(shape))
    return Forecast(
        prepare_bytes=max(sum(held[:index]) + own.prepare_bytes for index, own in enumerate(each)),
        # Masks of those that have predicted are held and compared; of a set of models they are not.
        predict_bytes=max(total - own.prepared_bytes + own.predict_bytes for own in each) + compared * math.prod(shape),
        write_bytes=write, prepared_bytes=total,
    )  # fmt: skip


def _forecast_set(
    predictor: Predictor, merge: Merge, shape: Sequence[int], spacing_mm: Sequence[float], affine: Affine | None
) -> Forecast:
    """The same for a set of models: the scan and its copy on the common grid; the merged mask, there and back."""
    grid, grid_mm = merge.grid(shape, spacing_mm)
    on_grid = _forecast_all(predictor, grid, grid_mm, affine if merge.orientation == "stored" else None)
    scan = FLOAT_BYTES * len(predictor.plan.channels) * math.prod(shape)
    merged = math.prod(grid)
    return Forecast(
        prepare_bytes=max(3 * scan, scan + SLAB_BYTES + on_grid.prepare_bytes),
        predict_bytes=on_grid.predict_bytes + merged,
        write_bytes=on_grid.prepared_bytes + merged + 4 * math.prod(shape), prepared_bytes=on_grid.prepared_bytes,
    )  # fmt: skip


def forecast_configuration(
    predictor: ConfigurationPredictor,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    affine: Affine | None = None,
) -> Forecast:
    """The same for one configuration. With a cascade each stage's prepared scan is held while the other is at work."""
    own = forecast_memory(
        shape, spacing_mm, plan=predictor.plan, settings=predictor.settings,
        num_networks=len(predictor.ensemble.networks), on_gpu=predictor.ensemble.device.type != "cpu",
        affine=affine,
    )  # fmt: skip
    if predictor.previous is None:
        return own
    first = forecast_configuration(predictor.previous, shape, spacing_mm, affine)
    return Forecast(
        prepare_bytes=max(first.prepare_bytes, own.prepare_bytes + first.prepared_bytes),
        predict_bytes=max(first.predict_bytes + own.prepared_bytes, own.predict_bytes + first.prepared_bytes),
        write_bytes=own.write_bytes + first.prepared_bytes,
        prepared_bytes=own.prepared_bytes + first.prepared_bytes,
    )
