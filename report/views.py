"""Chosen cases made ready for the viewer, and a picture of each scan, within the room that the page has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from report.layers import Layers, Structure, channel_files, read_layers
from report.pictures import overlay_jpeg, telling_slices
from report.sources import CaseFiles, channels_of
from report.viewer import View, library_base64
from report.volumes import pack
from utils.errors import UserError
from utils.schema import LabelScheme, Plan

PAGE_BYTES = 400_000
"""What a page holds besides pictures and volumes, roughly."""
CT_MARGIN = 0.3
SMALL = 0.3
"""Share of the room that the compressed files of cases may have and surely fit: they become a third larger as text."""
MOST_PICTURES = 0.4
"""Share of the room that still pictures may take."""
USUAL_CASES, MOST_CASES = 12, 40
"""How many cases the viewer holds where nobody says how many, and how many at most where more need a person."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """How large a page may be, and whom the viewer shows."""

    max_mb: float = 60.0
    viewer_cases: int | None = None
    """How many cases the viewer holds; None: nobody has said it, and it is `USUAL_CASES` to `MOST_CASES`."""
    cases: tuple[str, ...] = ()
    """Cases that the viewer shows in place of the worst ones."""

    @property
    def volume_bytes(self) -> float:
        """Room for the volumes of the viewer and the still pictures, after page and library."""
        return max(0.0, self.max_mb * 1e6 - PAGE_BYTES - len(library_base64()))

    def places(self, urgent: int = 0) -> int:
        """How many cases the viewer holds where so many places would be needed for those that need a person."""
        return max(USUAL_CASES, min(urgent, MOST_CASES)) if self.viewer_cases is None else self.viewer_cases

    def fits(self, cases: Sequence[CaseFiles]) -> bool:
        """Whether all these cases may be shown and are so small, all channels, that none is made coarser for it."""
        if self.viewer_cases is not None and len(cases) > self.viewer_cases:
            return False
        images = [path for each in cases if each.image is not None for path in channel_files(each.image)]
        paths = [*images, *(path for each in cases for path in (each.mask, each.label) if path is not None)]
        return sum(path.stat().st_size for path in paths) < self.volume_bytes * SMALL

    def choose(self, worst_first: Sequence[str], urgent: Sequence[str] = ()) -> list[str]:
        """The cases of the viewer: the first ones and then, where nobody has said how many, all that are urgent.

        Args:
            worst_first: all cases.
            urgent: those of them that need a person, the most urgent first; the first of these find room.

        Raises:
            UserError: a case that was asked for is none of these.
        """
        unknown = [case for case in self.cases if case not in worst_first]
        if unknown:
            known = ", ".join(sorted(worst_first)[:10]) or "none"
            raise UserError(f"--cases: no such case: {', '.join(unknown)}; there are, for example: {known}")
        if self.cases:
            return list(self.cases)
        first = worst_first[: self.places()]
        further = [case for case in urgent if case not in first] if self.viewer_cases is None else []
        return [*first, *further][: self.places(MOST_CASES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """What could be shown, pictures by case, and why other cases could not."""

    shown: tuple[View, ...] = ()
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def number_of(self, case: str) -> int | None:
        """Place of a case in the viewer."""
        return next((number for number, view in enumerate(self.shown) if view.case == case), None)


def make_views(
    chosen: Sequence[CaseFiles], structures: Sequence[Structure], room: Room, *,
    titles: Mapping[str, str] | None = None, pictured: Sequence[CaseFiles] = (), plan: Plan | None = None,
    labels: LabelScheme | None = None, read: Callable[[CaseFiles], Layers] = read_layers,
) -> Views:  # fmt: skip
    """Read the chosen cases, and a still picture of them and of all of `pictured`, each file once.

    The plan names the channels of the scans, says how CT is shown, and, where `labels` do not, which label voxels are
    no difference.

    A case that does not fit into its share of what is left, or cannot be read, is named with the reason.
    """
    known = labels or (None if plan is None else plan.labels)
    ignore_value, window = None if known is None else known.ignore_value, ct_window(plan)
    left = room.volume_bytes
    picture_bytes = left * MOST_PICTURES
    shown: dict[str, View] = {}
    pictures: dict[str, str] = {}
    refused: dict[str, str] = {}
    names = [files.case for files in chosen]
    for files in [*chosen, *(files for files in pictured if files.case not in names)]:
        try:
            layers = dataclasses.replace(read(files), ignore_value=ignore_value, window=window)
        except UserError as error:
            refused[files.case] = str(error)
            continue
        picture = overlay_jpeg(layers, structures)
        if len(picture) <= picture_bytes:
            pictures[files.case] = picture
            picture_bytes -= len(picture)
            left -= len(picture)
        if files.case not in names:
            continue
        share = left / (len(names) - names.index(files.case))
        packed = pack(layers, share)
        if packed is None:
            refused[files.case] = f"it does not fit into its share of the page ({share / 1e6:.1f} MB); raise --max_mb"
            continue
        left -= packed.num_bytes
        shown[files.case] = View(
            case=files.case, title=(titles or {}).get(files.case, files.case), packed=packed,
            at_mm=crosshair_mm(layers), picture=pictures.get(files.case),
            channels=channels_of(plan),
        )  # fmt: skip
    return Views(shown=tuple(shown.values()), pictures=pictures, refused=refused)


def ct_window(plan: Plan | None) -> tuple[float, float] | None:
    """Intensities between which a CT is shown: those that the network tells apart, and a third more on either side."""
    first = plan.channels[0] if plan is not None else None
    if first is None or first.scheme != "ct" or first.lower is None or first.upper is None:
        return None
    margin = (first.upper - first.lower) * CT_MARGIN
    return (first.lower - margin, first.upper + margin) if margin > 0 else None


def crosshair_mm(layers: Layers) -> tuple[float, float, float]:
    """A point where the viewer shall begin, in mm: in the slice with the most to see, and on it."""
    telling = layers.telling
    superior, anterior, right = telling_slices(telling)
    inside = np.argwhere(telling[superior])
    if len(inside):
        # The voxel of that slice which lies nearest to the middle of what is there.
        nearest = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
        anterior, right = int(nearest[0]), int(nearest[1])
    x, y, z, _ = (layers.affine @ np.array([right, anterior, superior, 1.0])).tolist()
    return x, y, z
