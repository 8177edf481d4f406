"""How sure the networks of an ensemble are of a scan, and how far they agree, counted while probabilities pass by.

Counts alone are kept, beside the classes (one byte a voxel and member) of the planes that are just on their way, so the
memory does not grow with the scan. What pads a scan is left out: networks may find a haze there, which no mask has.

Shapes: M members, T targets (regions, or the foreground classes), K classes or regions, N windows, d H W planes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.inferer import plane_blocks, to_probabilities
from utils.certainty import CERTAINTY_ENDING, Certainty, Value, size_of
from utils.files import write_json
from utils.schema import LabelScheme, Plan

UNSETTLED = (0.05, 0.95)
"""A voxel of which the probability of a target lies between is neither in nor out."""
PICKED_FROM = 4
"""Voxels are picked out where they are less than this part of all."""
Box = tuple[slice, slice, slice]
"""Along D, H, W."""
Consumer = Callable[[str, Iterator[np.ndarray]], np.ndarray | None]
"""Takes the name of a case and its slabs (K, d, H, W); returns (T, 3) counts where the case could be scored."""


class CertaintyCounter:
    """Counts for one scan.

    Args:
        labels: what the networks predict.
        members: M.
        names: of the networks, where they are known.
        inside: where the scan lies in (D, H, W); None: everywhere.
    """

    def __init__(
        self, labels: LabelScheme, members: int, names: tuple[str, ...] = (), inside: Box | None = None
    ) -> None:  # fmt: skip
        self._labels, self.members, self._names = labels, members, names
        self._voxels, self._mass, self._inside, self._unsettled = (
            np.zeros((members, len(labels.target_names))) for _ in range(4)
        )
        self._shared = np.zeros(len(labels.target_names))
        self._planes: list[Tensor] = []
        self._box, self._passed = inside, 0
        self._flipped, self._flip_shared = np.zeros((2, len(labels.target_names)))
        self._base: Tensor | None = None
        self._base_voxels = np.zeros(len(labels.target_names))
        self._has_flips = False

    def add(self, probabilities: Tensor) -> None:
        """Take the next planes (K, d, H, W) of the next member; members come in turn, each with the same planes."""
        depth, probabilities = probabilities.shape[1], self._without_padding(probabilities)
        # A few at a time, as what is counted is copied in several ways; of padding alone there is nothing.
        parts = plane_blocks(probabilities[None]) or [slice(0, 0)]
        self._planes.append(torch.cat([self._count(probabilities[:, part]) for part in parts], dim=-3))
        if len(self._planes) == self.members:
            for first, second in itertools.combinations(self._planes, 2):
                self._shared += self._common(first, second)
            self._planes, self._passed = [], self._passed + depth

    def _without_padding(self, probabilities: Tensor) -> Tensor:
        """Those of the planes (K, d, H, W) that are about to be counted, and of these what is the scan."""
        if self._box is None:
            return probabilities
        first, last = (max(end - self._passed, 0) for end in (self._box[0].start, self._box[0].stop))
        return probabilities[(slice(None), slice(first, last), *self._box[1:])]

    def _count(self, probabilities: Tensor) -> Tensor:
        """Count planes (K, d, H, W) of the next member; returns their classes (d, H, W), or regions (K, d, H, W)."""
        member = len(self._planes)
        if self._labels.regions:
            found = probabilities > 0.5
            inside = (probabilities * found).sum(dim=(1, 2, 3))
            voxels, mass = found.sum(dim=(1, 2, 3)), probabilities.sum(dim=(1, 2, 3))
            unsettled = _unsettled(probabilities.flatten(1))
        else:
            largest, classes = probabilities.max(dim=0)
            found = classes.to(torch.uint8)
            voxels, inside = self._by_class(found, largest)
            mass = probabilities[1:].sum(dim=(1, 2, 3))
            # Where one class is certain the others are certainly not there: most voxels need no look. Of a network
            # that is unsure of most of the scan it takes several times as long to pick them out as to look at all.
            unsure = largest < UNSETTLED[1]
            few = PICKED_FROM * int(unsure.count_nonzero()) < unsure.numel()
            unsettled = _unsettled(probabilities[1:, unsure] if few else probabilities[1:].flatten(1))
        totals = (self._voxels, self._mass, self._inside, self._unsettled)
        for total, part in zip(totals, (voxels, mass, inside, unsettled)):
            total[member] += part.cpu().numpy()
        return found

    def add_flip(self, logits: Tensor, axes: tuple[int, ...]) -> None:
        """Take what one network says of windows (N, K, ...) flipped along `axes`; of the same windows unflipped first.

        Classes are turned back and compared with those of the windows as they are.
        """
        found = self._classes(logits)
        if not axes:
            self._base, self._base_voxels = found, self._common(found, found)
            return
        assert self._base is not None, "the windows as they are come first"
        # Classes have lost an axis.
        found = found.flip(axes if self._labels.regions else tuple(axis - 1 for axis in axes))
        self._flipped += self._base_voxels + self._common(found, found)
        self._flip_shared += self._common(self._base, found)
        self._has_flips = True

    def _classes(self, logits: Tensor) -> Tensor:
        """Of windows (N, K, ...): classes (N, ...), or which regions hold (K, N, ...)."""
        if self._labels.regions:
            return (logits > 0).transpose(0, 1)
        return logits.argmax(dim=1).to(torch.uint8)

    def result(self) -> Certainty:
        """What came of it, once all planes have passed."""
        assert not self._planes, "a member's planes are missing"
        flips = self.members == 1 and self._has_flips
        if flips:
            agreement = _shares(2 * self._flip_shared, self._flipped)
        elif self.members > 1:
            agreement = _shares(2 * self._shared, (self.members - 1) * self._voxels.sum(axis=0))
        else:
            agreement = (None,) * len(self._shared)
        with np.errstate(invalid="ignore", divide="ignore"):
            confidence = self._inside / self._voxels
            overlaps = 2 * self._inside / np.maximum(self._mass + self._voxels, 1e-9)
            settled = self._voxels / np.maximum(self._voxels + self._unsettled, 1)
        seen = self._voxels.sum(axis=0) > 0

        def means(values: np.ndarray) -> tuple[Value, ...]:
            return tuple(float(value) if there else None for value, there in zip(values.mean(axis=0), seen))

        return Certainty(
            members=self.members, voxels=tuple(self._voxels.mean(axis=0).tolist()),
            confidence=tuple(_mean(column) for column in confidence.T),
            overlap=means(overlaps), settled=means(settled), agreement=agreement, flips=flips, names=self._names,
            each=tuple(map(_member, self._voxels, confidence, overlaps, settled)) if self.members > 1 else (),
        )  # fmt: skip

    def _common(self, first: Tensor, second: Tensor) -> np.ndarray:
        """(T,) voxels that two masks share."""
        if self._labels.regions:
            return (first & second).flatten(1).sum(dim=1).cpu().numpy()
        # Background where they differ: to count all voxels takes half as long as to pick some out.
        both = (first * (first == second)).flatten()
        return torch.bincount(both, minlength=self._labels.num_classes)[1:].cpu().numpy()

    def _by_class(self, classes: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Voxels and summed probability of each foreground class."""
        count = self._labels.num_classes
        # Looked for once, for both.
        foreground = classes.flatten().nonzero().squeeze(1)
        found = classes.flatten()[foreground]
        inside = torch.bincount(found, weights=largest.flatten()[foreground].double(), minlength=count)
        return torch.bincount(found, minlength=count)[1:], inside[1:]


def counted(slabs: Iterator[np.ndarray], plan: Plan, counter: CertaintyCounter) -> Iterator[np.ndarray]:
    """The same slabs (K, d, H, W) of a single network, each counted as it passes."""
    for slab in slabs:
        values = torch.from_numpy(slab)
        counter.add(to_probabilities(values[None], plan.labels)[0] if plan.rules.average == "logits" else values)
        yield slab
        # Gone before the next one is made.
        del slab, values


def recording(consume: Consumer, plan: Plan, folder: Path | None, inside: Callable[[str], Box]) -> Consumer:
    """What `consume` does with a case, and its certainty in `<case>.certainty.json` of a folder; None writes nothing.

    `inside` says of a case where its scan lies in what is predicted.

    The file comes before the case's own ones, which say that it is done.
    """
    if folder is None:
        return consume

    def recorded(case: str, slabs: Iterator[np.ndarray]) -> np.ndarray | None:
        counter = CertaintyCounter(plan.labels, 1, inside=inside(case))

        def noted() -> Iterator[np.ndarray]:
            yield from counted(slabs, plan, counter)
            write_json(counter.result(), folder / f"{case}{CERTAINTY_ENDING}")

        return consume(case, noted())

    return recorded


def _shares(shared: np.ndarray, both: np.ndarray) -> tuple[Value, ...]:
    return tuple(float(a / b) if b else None for a, b in zip(shared, both))


def _unsettled(probabilities: Tensor) -> Tensor:
    """(T,) voxels of probabilities (T, V) that lie in `UNSETTLED`."""
    low, high = UNSETTLED
    # In int64, torch's default, booleans add up more slowly.
    return ((probabilities > low) & (probabilities < high)).sum(dim=1, dtype=torch.int32)


def _member(
    voxels: np.ndarray, confidence: np.ndarray, overlap: np.ndarray, settled: np.ndarray
) -> dict[str, tuple[Value, ...]]:
    """What one network says; None for targets that it did not find."""
    table = {
        name: tuple(float(value) if number else None for value, number in zip(values, voxels))
        for name, values in (("confidence", confidence), ("overlap", overlap), ("settled", settled))
    }
    return table | {"size": size_of(voxels.tolist())}


def _mean(values: np.ndarray) -> Value:
    """Over the members that have one."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
