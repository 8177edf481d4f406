"""What the headers of DICOM files say: series, and for each slice its place in the patient. Voxels are not read.

Nothing that tells who the patient is goes any further than this file.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.extras import optional_import

MAGIC_OFFSET, MAGIC = 128, b"DICM"
NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC")
"""Modalities of files that say something of a scan and are none."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DicomFile:
    """A file's series, with its slices or with the reason why it has none that can be used."""

    path: Path
    series: str
    series_number: int | None
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
        with open(path, "rb") as file:
            file.seek(MAGIC_OFFSET)
            return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() in (".dcm", ".ima")
    except OSError:
        return False


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
    except (AttributeError, ValueError, TypeError, IndexError, EOFError, OSError) as error:
        raise UserError(f"{path.name} has a damaged DICOM header ({type(error).__name__})") from None


def _described(path: Path, data: Any) -> DicomFile:
    number = data.get("SeriesNumber")
    file = DicomFile(
        path=path, series=str(data.SeriesInstanceUID), series_number=None if number is None else int(number)
    )
    why = _unfit(data)
    if why:
        return dataclasses.replace(file, skipped=why)
    if "PerFrameFunctionalGroupsSequence" in data:
        groups = data.PerFrameFunctionalGroupsSequence
        shared = data.get("SharedFunctionalGroupsSequence") or [None]
        frames = [_frame(path, data, group, shared[0], index) for index, group in enumerate(groups)]
        slices = tuple(frame for frame in frames if frame is not None)
        return dataclasses.replace(file, slices=slices, skipped="" if slices else "frames without a position")
    place = _place(data.get("ImagePositionPatient"), data.get("ImageOrientationPatient"), data.get("PixelSpacing"))
    if place is None:
        return dataclasses.replace(file, skipped="slices without a position")
    scale = data.get("RescaleSlope"), data.get("RescaleIntercept")
    number = data.get("InstanceNumber")
    return dataclasses.replace(file, slices=(_slice(path, data, None, int(number or 0), place, scale),))


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
        return "frames without a position"
    return ""


def _frame(path: Path, data: Any, group: Any, shared: Any, index: int) -> Slice | None:
    """A frame of a multi-frame file, by its own functional groups or else by those of all frames."""

    def value(sequence: str, name: str) -> Any:
        for source in (group, shared):
            found = None if source is None else source.get(sequence)
            if found:
                return found[0].get(name)
        return None

    place = _place(
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        value("PixelMeasuresSequence", "PixelSpacing"),
    )
    scale = (value("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = scale
    return None if place is None else _slice(path, data, index, index + 1, place, (slope, intercept))


def _place(position: Any, orientation: Any, spacing: Any) -> tuple[tuple[float, ...], ...] | None:
    if not position or not orientation or not spacing:
        return None
    place = tuple(tuple(float(value) for value in values) for values in (position, orientation, spacing))
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
