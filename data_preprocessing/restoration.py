"""From the network's probabilities of a case to its mask: in the scan's own grid, written and scored.

The steps of preprocessor.py inverted. A case may come as a whole or plane by plane, as the network finishes them; what
comes out is the same to the last bit.

Shapes: K classes or regions, D H W the preprocessed grid, S A R the axes of the scan.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_preprocessing.preprocessor import target_grid_mm
from data_preprocessing.resampling import coarse_axis, make_maps, resample_slab, slab_step, slabs
from data_preprocessing.working_axes import case_axes
from utils.axes import triple
from utils.pages import give_back_pages
from utils.predictions import REGION_THRESHOLD, most_probable
from utils.schema import CaseMeta, LabelScheme, Plan

_COPIES = 6
"""Of a slab of one class while it is resampled and compared with the best so far."""


def restore_mask(probabilities: np.ndarray, meta: CaseMeta, plan: Plan) -> np.ndarray:
    """Mask (S, A, R) uint8 of file values, from probabilities (K, D, H, W) on the preprocessed grid.

    Each class is brought back by linear interpolation, and the most probable wins (of equals, the lowest); a region
    holds where its probability exceeds 1/2, and later regions overwrite earlier ones. Outside the crop is background.
    """
    return restore_slabs([probabilities], meta, plan)


def restore_slabs(
    slabs: Iterable[np.ndarray], meta: CaseMeta, plan: Plan, probabilities: np.ndarray | None = None
) -> np.ndarray:
    """As `restore_mask`, from slabs (K, d, H, W) in order; probabilities are added to (K, S, A, R) float32."""
    restorer = SlabRestorer(meta, plan, probabilities)
    for slab in slabs:
        restorer.add(slab)
        # Gone before the next one is made.
        del slab
    return restorer.finish()


def restore_probabilities(probabilities: np.ndarray, meta: CaseMeta, plan: Plan) -> np.ndarray:
    """Probabilities (K, S, A, R) float32 in the scan's grid, from (K, D, H, W) on the preprocessed grid.

    Outside the crop the background has probability 1; regions have 0.
    """
    native = np.zeros((len(probabilities), *native_shape(meta)), dtype=np.float32)
    restore_slabs([probabilities], meta, plan, native)
    return native


def native_shape(meta: CaseMeta) -> tuple[int, int, int]:
    """Voxels of the scan along S, A, R."""
    return triple(meta.original_shape[meta.axes.index(axis)] for axis in range(3))


def without_padding(meta: CaseMeta) -> tuple[slice, slice, slice]:
    """Where the scan lies in the padded, preprocessed grid."""
    return triple(slice(low, low + size) for low, size in zip(meta.pad_low, meta.resampled_shape))


def restoring_bytes(shape: Sequence[int], new_shape: Sequence[int], *, num_outputs: int) -> int:
    """Memory that a SlabRestorer takes beside the mask and the planes that just came in.

    Args:
        shape: D H W of the preprocessed grid without padding.
        new_shape: D' H' W' of the scan, its axes in the same order.
        num_outputs: K.
    """
    step = min(slab_step(shape, new_shape, num_volumes=num_outputs), new_shape[0])
    inputs = min(math.ceil(step * shape[0] / new_shape[0]) + 2, shape[0])
    # Of all classes the planes that are held, and what goes to a file; of one class what interpolation makes of it.
    held = num_outputs * (inputs * math.prod(shape[1:]) + step * math.prod(new_shape[1:]))
    return 4 * (held + _COPIES * max(inputs, step) * math.prod(map(max, shape[1:], new_shape[1:])))


class SlabRestorer:
    """Restores the mask of one case from planes that arrive in order; only those still needed are kept.

    The planes hold probabilities, or logits where the plan averages those.

    Args:
        meta: how the case was preprocessed.
        plan: by which plan.
        probabilities: (K, S, A, R) float32 array, to which the probabilities of the scan's voxels are added; None for
            the mask alone.
    """

    def __init__(self, meta: CaseMeta, plan: Plan, probabilities: np.ndarray | None = None) -> None:
        self._labels, self._rules = plan.labels, plan.rules
        self._values = np.array(plan.labels.values, dtype=np.uint8)
        # A logit of 0 is a probability of 1/2.
        self._threshold = 0.0 if plan.rules.average == "logits" else REGION_THRESHOLD
        self._mask = np.full(native_shape(meta), self._values[0], dtype=np.uint8)
        crop = triple(slice(*side) for side in meta.crop_box)
        self._crop = case_axes(meta).view(self._mask)[crop]
        self._native = None
        if probabilities is not None:
            self._native = case_axes(meta).view(probabilities)
            if not plan.labels.regions:
                for plane in itertools.chain.from_iterable(_outside(self._native[0], crop)):
                    plane += 1
                    give_back_pages(probabilities)
            self._native = self._native[(slice(None), *crop)]
        # The same rule as on the way there, so that slices which were not mixed stay unmixed; nnU-Net's differs.
        spacings = (meta.spacing_mm, target_grid_mm(plan.stage, meta.spacing_mm))
        coarse = coarse_axis(*(reversed(spacings) if plan.rules.coarse_first == "plan" else spacings))
        self._maps = make_maps(meta.resampled_shape, self._crop.shape, cubic=False, coarse=coarse)
        self._waiting = deque(slabs(self._maps, num_volumes=plan.labels.num_outputs))
        self._plane_shape = meta.padded_shape[1:]
        self._inner = tuple(slice(low, low + n) for low, n in zip(meta.pad_low[1:], meta.resampled_shape[1:]))
        # Planes are counted from the first one that is no padding.
        self._arrived, self._first, self._depth = -meta.pad_low[0], 0, meta.resampled_shape[0]
        self._held: list[np.ndarray] = []

    def add(self, planes: np.ndarray) -> None:
        """Take the next planes (K, d, H, W) of the padded, preprocessed grid."""
        assert planes.shape[0] == self._labels.num_outputs and planes.shape[2:] == self._plane_shape, planes.shape
        valid = slice(max(0, -self._arrived), max(0, self._depth - self._arrived))
        new = planes[(slice(None), valid, *self._inner)]
        self._arrived += planes.shape[1]
        if new.shape[1]:
            self._held.append(new)
        end = self._first + self.num_held
        while self._waiting and self._inputs(self._waiting[0]).stop <= end:
            self._restore(self._waiting.popleft())
            self._drop(min(self._inputs(self._waiting[0]).start, end) if self._waiting else end)
        # Copies, so that the planes that came in, and those of before that are used up, can go.
        self._held = [part if part.base is None else part.copy() for part in self._held]

    @property
    def num_held(self) -> int:
        """Planes that came in and are still needed."""
        return sum(part.shape[1] for part in self._held)

    def _drop(self, needed: int) -> None:
        """Give up the planes before `needed`."""
        while self._held and self._first < needed:
            gone = min(needed - self._first, self._held[0].shape[1])
            self._held[0] = self._held[0][:, gone:]
            self._first += gone
            if not self._held[0].shape[1]:
                del self._held[0]

    def finish(self) -> np.ndarray:
        """The mask (S, A, R) uint8 of file values, once all planes have been added."""
        assert not self._waiting, f"planes are missing; {self._arrived} of {self._depth} arrived"
        return self._mask

    def _inputs(self, slab: slice) -> slice:
        return self._maps[0].restrict(slab.start, slab.stop)[1]

    def _restore(self, slab: slice) -> None:
        across, inputs = self._maps[0].restrict(slab.start, slab.stop)
        maps, part = (across, *self._maps[1:]), slice(inputs.start - self._first, inputs.stop - self._first)
        channels = (self._channel(k, part) for k in range(self._labels.num_outputs))
        shares: Iterator[np.ndarray] = (resample_slab(channel, maps, slice(0, across.size_out)) for channel in channels)
        if self._rules.sums == "float16":
            shares = map(_in_half, shares)
        if self._native is not None:
            record = _recorded_logits if self._rules.average == "logits" else _recorded
            shares = record(shares, self._native[:, slab], self._labels)
        self._crop[slab] = self._values[most_probable(shares, self._labels, threshold=self._threshold)]
        give_back_pages(self._native)

    def _channel(self, k: int, part: slice) -> np.ndarray:
        """The held planes `part` of one class or region."""
        found, start = [], 0
        for held in self._held:
            stop = start + held.shape[1]
            if start < part.stop and part.start < stop:
                found.append(held[k, max(part.start - start, 0) : part.stop - start])
            start = stop
        return found[0] if len(found) == 1 else np.concatenate(found)


def _in_half(share: np.ndarray) -> np.ndarray:
    """The same numbers, rounded to half precision."""
    return share.astype(np.float16).astype(np.float32)


def _recorded(shares: Iterator[np.ndarray], out: np.ndarray, labels: LabelScheme) -> Iterator[np.ndarray]:
    """The probabilities themselves, which are added to `out`."""
    for share, target in zip(shares, out):
        target += share
        yield share


def _recorded_logits(shares: Iterator[np.ndarray], out: np.ndarray, labels: LabelScheme) -> Iterator[np.ndarray]:
    """The logits themselves, whose probabilities are added to `out`; all classes of a slab are in memory."""
    logits = np.stack(list(shares))
    if labels.regions:
        out += (1 + np.tanh(logits / 2)) / 2
    else:
        powers = np.exp(logits - logits.max(axis=0))
        out += powers / powers.sum(axis=0)
    return iter(logits)


def _outside(volume: np.ndarray, box: tuple[slice, slice, slice]) -> Iterator[np.ndarray]:
    """Views that cover what of (D, H, W) lies outside of a box."""
    depth, height, width = box
    yield from (volume[: depth.start], volume[depth.stop :])
    volume = volume[depth]
    yield from (volume[:, : height.start], volume[:, height.stop :])
    volume = volume[:, height]
    yield from (volume[:, :, : width.start], volume[:, :, width.stop :])
