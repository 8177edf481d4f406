"""A mask as DICOM-SEG: one segment for each class, on the slices of the series that it was predicted of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.dicom.series import Series
from inference.dicom.sources import read_sources
from utils.errors import UserError, list_problems
from utils.extras import optional_import
from utils.json_text import parse_json
from utils.nifti import from_working
from utils.schema import Geometry
from utils.temporary import temporary_file

Code = tuple[str, str, str]
"""Value, scheme and meaning, such as ("10200004", "SCT", "Liver")."""
CODES_KEY = "segment_codes"
TISSUE: Code = ("85756007", "SCT", "Tissue")
STRUCTURE: Code = ("123037004", "SCT", "Anatomical Structure")
ALGORITHM, MAKER = "nnU-Net", "nnU-Net for PyTorch Lightning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A class: its value in masks, its name, and what it is in a coding scheme."""

    value: int
    name: str
    category: Code = TISSUE
    kind: Code = TISSUE


def load_highdicom() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    return optional_import("highdicom", extra="dicom", purpose="writing DICOM-SEG")


def segments_of(classes: Mapping[str, int], codes: Path | None) -> tuple[Segment, ...]:
    """A segment for each foreground class (name -> value of its voxels in masks).

    Codes are those of `codes`, a dataset.json or a file with its key alone.

    `"segment_codes": {"liver": ["10200004", "SCT", "Liver"]}` names the type; `{"liver": {"category": [...], "type":
    [...]}}` the category, too. Classes without codes are tissue.

    Raises:
        UserError: the file cannot be read, or names no class of the model; all faults are listed.
    """
    given = {} if codes is None else _read_codes(codes)
    problems = [f"{name} is no class of the model" for name in given if name not in classes]
    segments = []
    for name, value in classes.items():
        entry = given.get(name, {})
        entry = {"category": STRUCTURE, "type": entry} if isinstance(entry, list) else entry
        parts = [_code(entry.get(key, TISSUE)) if isinstance(entry, dict) else None for key in ("category", "type")]
        if parts[0] is None or parts[1] is None:
            problems.append(f'{name}: a code is ["value", "scheme", "meaning"], got {json.dumps(given[name])}')
            continue
        segments.append(Segment(value=value, name=name, category=parts[0], kind=parts[1]))
    if problems:
        advice = f"The model's classes are {', '.join(classes)}."
        raise list_problems(f"--segment_codes {codes}:", problems, advice=advice)
    return tuple(segments)


def write_segmentation(
    path: Path,
    mask: np.ndarray,
    geometry: Geometry,
    *,
    series: Series,
    segments: tuple[Segment, ...],
    labelmap: bool,
    anonymous: bool,
) -> None:
    """Write a mask (S, A, R) of file values as DICOM-SEG that refers to the slices of its series.

    Args:
        path: the file; it appears whole or not at all.
        mask: on the grid of the series.
        geometry: that grid.
        series: the source, whose headers are read again: patient and study are taken over, as the standard asks.
        segments: value, name and codes of each class.
        labelmap: one frame for each slice, in place of one for each slice of each segment.
        anonymous: leave the patient's attributes empty.

    Raises:
        UserError: highdicom is not installed, or a source file is gone.
        OSError: the file cannot be written.
    """
    highdicom, stack = load_highdicom(), series.require_stack()
    slices = stack.slices
    numbers = np.zeros(256, np.uint8)
    numbers[[segment.value for segment in segments]] = np.arange(1, len(segments) + 1)
    planes = numbers[from_working(mask, geometry).T]
    if stack.tilt is not None:
        planes = stack.tilt.lean(planes)
    with _naming_no_value(series.name):
        sources = read_sources(series, anonymous=anonymous)
    if slices[0].frame is not None:
        planes = _by_frame(planes, [each.frame or 0 for each in slices], int(sources[0].NumberOfFrames))
    with temporary_file(path) as (file, temporary):
        # Its warnings would quote the patient's name.
        with _naming_no_value(series.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _segmentation(highdicom, sources, planes, segments, labelmap=labelmap).save_as(file)
        file.flush()
        temporary.replace(path)


@contextlib.contextmanager
def _naming_no_value(name: str) -> Iterator[None]:
    """Of headers of a series with this name pydicom and highdicom raise whatever they come across, and quote it."""
    try:
        yield
    except (OSError, MemoryError, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"headers of {name} lack something that DICOM-SEG takes over, or contradict each other "
            f"({type(error).__name__}); choose another format"
        ) from None


def _segmentation(
    highdicom: Any, sources: list[Any], planes: np.ndarray, segments: tuple[Segment, ...], *, labelmap: bool
) -> Any:
    kinds, uid = highdicom.seg.SegmentationTypeValues, highdicom.UID
    result = highdicom.seg.Segmentation(
        source_images=sources, pixel_array=planes, segmentation_type=kinds.LABELMAP if labelmap else kinds.BINARY,
        segment_descriptions=[_description(highdicom, each, index) for index, each in enumerate(segments, start=1)],
        series_instance_uid=uid(), series_number=1, sop_instance_uid=uid(), instance_number=1, manufacturer=MAKER,
        manufacturer_model_name=ALGORITHM, software_versions="1", device_serial_number="1",
        omit_empty_frames=bool(planes.any()), content_label="SEGMENTATION",
    )  # fmt: skip
    result.SeriesDescription = "Segmentation"
    return result


def _description(highdicom: Any, segment: Segment, number: int) -> Any:
    concept = highdicom.sr.CodedConcept
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=ALGORITHM, version="1",
        family=concept(value="123110", scheme_designator="DCM", meaning="Artificial Intelligence"),
    )  # fmt: skip
    return highdicom.seg.SegmentDescription(
        segment_number=number, segment_label=segment.name, segmented_property_category=concept(*segment.category),
        segmented_property_type=concept(*segment.kind), algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )  # fmt: skip


def _by_frame(planes: np.ndarray, frames: list[int], num_frames: int) -> np.ndarray:
    """The planes in the order of a multi-frame file; frames that were left out are empty."""
    result: np.ndarray = np.zeros((num_frames, *planes.shape[1:]), planes.dtype)
    result[frames] = planes
    return result


def _code(value: Any) -> Code | None:
    parts = list(value) if isinstance(value, (list, tuple)) else []
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and all(isinstance(p, str) and p for p in parts) else None


def _read_codes(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--segment_codes {path} cannot be read as JSON: {error}") from None
    codes = content.get(CODES_KEY) if isinstance(content, dict) else None
    if not isinstance(codes, dict):
        raise UserError(f'--segment_codes {path} has no "{CODES_KEY}": {{"class": ["value", "scheme", "meaning"]}}')
    return codes
