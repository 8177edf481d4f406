"""What the headers of DICOM files say: series, and for each slice its place in the patient. Voxels are not read.

Nothing that tells who the patient is goes any further than this file.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import mmap
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.extras import optional_import

UNPLACED = "frames without a position"
MAGIC_OFFSET, MAGIC = 128, b"DICM"
DEFLATED = b"1.2.840.10008.1.2.1.99"
"""The transfer syntax of files that are packed as a whole."""
ENDINGS = (".dcm", ".ima")
"""By which files without those bytes are known."""
NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC")
"""Modalities of files that say something of a scan and are none."""
MARKS: dict[str, tuple[str, ...]] = {
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "DiffusionGradientOrientation": (
        "MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"
    ),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
    "StackID": ("FrameContentSequence", "StackID"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "AcquisitionTime": ("FrameContentSequence", "FrameAcquisitionDateTime"),
}  # fmt: skip
"""Attribute of a slice's file -> where a frame of a multi-frame file has the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: a file, or a frame of one (counted from 0).

    `orientation` holds the directions of rising column and row numbers, `position` the centre of the first voxel; both
    in the patient's LPS axes, in mm. Values are stored * slope + intercept.
    """

    path: Path
    frame: int | None
    instance: str
    number: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    slope: float
    intercept: float
    marks: tuple[str | float | None, ...] = ()
    """Values of `MARKS`, by which the volumes of one series can be told apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DicomFile:
    """A file's series, with its slices or with the reason why it has none that can be used.

    `study` and `series` are UIDs; `description` and `modality` are what the scanner calls the series.
    """

    path: Path
    series: str
    series_number: int | None
    study: str = ""
    description: str = ""
    modality: str = ""
    slices: tuple[Slice, ...] = ()
    skipped: str = ""


def load_pydicom() -> Any:
    """The package, told to be silent about faults of single values: its lines would quote them.

    Raises:
        UserError: it is not installed.
    """
    pydicom = optional_import("pydicom", extra="dicom", purpose="reading DICOM files")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes, or by its name where those bytes were left out."""
    try:
        if not path.is_file():
            # Opening a pipe would wait for whoever writes to it.
            return False
        with open(path, "rb") as file:
            file.seek(MAGIC_OFFSET)
            return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() in ENDINGS
    except OSError:
        return False


def is_deflated(path: Path) -> bool:
    """Whether a file may be packed as a whole, so that reading its header takes what it unpacks to.

    What says so stands in it unpacked. It is looked for anywhere: pydicom takes files whose first bytes are missing or
    damaged as well.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(DEFLATED) >= 0


def read_file(path: Path) -> DicomFile | None:
    """The header of a file; None where it is no DICOM after all.

    Raises:
        UserError: the file is damaged, or pydicom is not installed.
    """
    pydicom = load_pydicom()
    try:
        # Its warnings would name the file, and quote it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if "SOPClassUID" not in data or "SeriesInstanceUID" not in data:
                return None
            return _described(path, data)
    except Exception as error:
        # Of a damaged header pydicom raises whatever it comes across.
        raise UserError(f"{path.name} has a damaged DICOM header ({type(error).__name__})") from None


def _described(path: Path, data: Any) -> DicomFile:
    number = data.get("SeriesNumber")
    file = DicomFile(
        path=path, series=str(data.SeriesInstanceUID), series_number=None if number is None else int(number),
        study=str(data.get("StudyInstanceUID") or ""), description=str(data.get("SeriesDescription") or ""),
        modality=str(data.get("Modality") or ""),
    )  # fmt: skip
    why = _unfit(data)
    if why:
        return dataclasses.replace(file, skipped=why)
    if "PerFrameFunctionalGroupsSequence" in data:
        groups = data.PerFrameFunctionalGroupsSequence
        shared = data.get("SharedFunctionalGroupsSequence") or [None]
        frames = [_frame(path, data, group, shared[0], index) for index, group in enumerate(groups)]
        slices = tuple(frame for frame in frames if frame is not None)
        # All of them: without some it would be another scan.
        is_whole = len(slices) == len(frames) == int(data.get("NumberOfFrames") or 1)
        return dataclasses.replace(file, slices=slices if is_whole else (), skipped="" if is_whole else UNPLACED)
    place = _place(data.get("ImagePositionPatient"), data.get("ImageOrientationPatient"), data.get("PixelSpacing"))
    if place is None:
        return dataclasses.replace(file, skipped="slices without a position")
    scale = data.get("RescaleSlope"), data.get("RescaleIntercept")
    number = data.get("InstanceNumber")
    one = _slice(path, data, None, int(number or 0), place, scale)
    marks = tuple(_mark(data.get(name)) for name in MARKS)
    return dataclasses.replace(file, slices=(dataclasses.replace(one, marks=marks),))


def _unfit(data: Any) -> str:
    """Why a file holds no slices of a scan; empty where it does."""
    modality = str(data.get("Modality") or "")
    if modality in NO_SCANS:
        return f"{modality} and no scan"
    if "Rows" not in data or "Columns" not in data:
        return "no image"
    if int(data.get("SamplesPerPixel") or 1) != 1:
        return "colour images"
    if "LOCALIZER" in [str(value).upper() for value in data.get("ImageType") or ()]:
        return "localizers"
    if int(data.get("NumberOfFrames") or 1) > 1 and "PerFrameFunctionalGroupsSequence" not in data:
        return UNPLACED
    return ""


def _frame(path: Path, data: Any, group: Any, shared: Any, index: int) -> Slice | None:
    """A frame of a multi-frame file, by its own functional groups or else by those of all frames."""

    def value(*names: str) -> Any:
        for source in (group, shared):
            place = source
            for sequence in names[:-1]:
                found = None if place is None else place.get(sequence)
                place = found[0] if found else None
            if place is not None:
                return place.get(names[-1])
        return None

    place = _place(
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        value("PixelMeasuresSequence", "PixelSpacing"),
    )
    scale = (value("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = scale
    if place is None:
        return None
    one = _slice(path, data, index, index + 1, place, (slope, intercept))
    return dataclasses.replace(one, marks=tuple(_mark(value(*names)) for names in MARKS.values()))


def _mark(value: Any) -> str | float | None:
    """A number, or text of one or several values."""
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return "\\".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)


def _place(position: Any, orientation: Any, spacing: Any) -> tuple[tuple[float, ...], ...] | None:
    if not position or not orientation or not spacing:
        return None
    place = tuple(tuple(float(value) for value in values) for values in (position, orientation, spacing))
    if not all(math.isfinite(value) for values in place for value in values):
        return None
    return place if tuple(map(len, place)) == (3, 6, 2) and min(place[2]) > 0 else None


def _slice(
    path: Path, data: Any, frame: int | None, number: int, place: tuple[tuple[float, ...], ...], scale: tuple[Any, Any]
) -> Slice:  # fmt: skip
    position, orientation, (between_rows, between_columns) = place
    slope, intercept = (default if value is None else float(value) for value, default in zip(scale, (1.0, 0.0)))
    return Slice(
        path=path, frame=frame, instance=str(data.SOPInstanceUID), number=number, rows=int(data.Rows),
        columns=int(data.Columns), spacing_mm=(between_rows, between_columns), orientation=orientation,
        position=position, slope=slope, intercept=intercept,
    )  # fmt: skip
