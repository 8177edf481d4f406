"""What a request is answered with: the mask as a file, and a record of what it shows and how doubtful it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.dicom.segmentation import Segment, segments_of, write_segmentation
from inference.mask_formats import DICOM_ENDINGS, NIFTI
from inference.predictor import Predictor
from inference.scans import Scan
from report.layers import Structure, structures_of
from serving.predicting import Predicted
from utils.certainty import DoubtRecord
from utils.nifti import Volume, write_mask, write_volume
from utils.scan_names import NIFTI_ENDINGS, scan_ending

DOUBT = ("score", "calibrated", "doubtful", "words", "remarks")
"""What of `<case>.doubt.json` a record holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Content of the mask's file, its ending, a record that JSON can hold, and what a page shows: NIfTI, packed.

    `view` has a `mask` and a `scan` where the files of the client are none that the page's viewer reads.
    """

    mask: bytes
    ending: str
    record: dict[str, Any]
    view: Mapping[str, bytes]


def structures(predictor: Predictor) -> tuple[Structure, ...]:
    """What the values of a mask mean."""
    if predictor.merge is not None:
        return tuple(Structure(name=name, value=value) for name, value in predictor.merge.labels.items())
    return structures_of(predictor.plan.labels)


def segments(predictor: Predictor, codes: Path | None = None) -> tuple[Segment, ...]:
    """What DICOM-SEG calls the values of a mask; `codes` as in `segments_of`, which raises what is wrong with them."""
    return segments_of({each.name: each.value for each in structures(predictor)}, codes)


def doubt_of(record: DoubtRecord) -> dict[str, Any]:
    """What clients are told of doubt: score and verdict as inference.py writes them."""
    return {name: getattr(record, name) for name in DOUBT}


def make_record(
    predicted: Predicted,
    volume: Volume,
    predictor: Predictor,
    seconds: Mapping[str, float],
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """What a mask (S, A, R) of a scan shows; `remarks` are on how the scan was read."""
    counts = np.bincount(predicted.mask.ravel(), minlength=256)
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    found = [
        {"name": each.name, "value": each.value, "voxels": int(counts[each.value]),
         "volume_ml": round(int(counts[each.value]) * voxel_ml, 6)}
        for each in structures(predictor)
    ]  # fmt: skip
    return {
        "structures": found, "shape_xyz": list(volume.geometry.shape_xyz),
        "spacing_mm_sar": [round(size, 6) for size in volume.spacing_mm],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "doubt": doubt_of(predicted.doubt), "remarks": [*remarks, *predicted.remarks],
    }  # fmt: skip


def write_answer_mask(
    path: Path, mask: np.ndarray, volume: Volume, scan: Scan, named: tuple[Segment, ...]
) -> bytes:  # fmt: skip
    """The content of a mask's file, in the format of its name; it is written to `path` as any other mask is."""
    if path.name.endswith(tuple(DICOM_ENDINGS.values())) and scan.series is not None:
        write_segmentation(
            path, mask, volume.geometry, series=scan.series, segments=named, anonymous=False,
            labelmap=path.name.endswith(DICOM_ENDINGS["dicom-seg-labelmap"]),
        )  # fmt: skip
    else:
        write_mask(path, mask, volume.geometry)
    return path.read_bytes()


def make_view(mask: np.ndarray, volume: Volume, scan: Scan, ending: str, folder: Path) -> dict[str, bytes]:
    """What a page needs besides the scan of the client and the mask's file (see `Answer`)."""
    view = {}
    if ending != NIFTI:
        write_mask(folder / f"view_mask{NIFTI}", mask, volume.geometry)
        view["mask"] = (folder / f"view_mask{NIFTI}").read_bytes()
    if scan.series is not None or scan_ending(scan.images[0]) not in NIFTI_ENDINGS:
        write_volume(folder / f"view_scan{NIFTI}", _narrow(volume.array[0]), volume.geometry)
        view["scan"] = (folder / f"view_scan{NIFTI}").read_bytes()
    return view


def _narrow(channel: np.ndarray) -> np.ndarray:
    """Whole numbers in half of the bytes, as most scanners write them."""
    low, high = float(channel.min()), float(channel.max())
    if -(2**15) <= low <= high < 2**15 and np.array_equal(channel, np.rint(channel)):
        return channel.astype(np.int16)
    return channel
