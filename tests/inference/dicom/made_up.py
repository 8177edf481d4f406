"""DICOM series of a few small slices, written by pydicom: what scanners and archives make of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

PATIENT = "Doe^Jane"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A series that lies in files: stored values (z, y, x) in the order of position, and where they lie (LPS)."""

    values: np.ndarray
    uid: str
    files: list[Path]


def values(shape: tuple[int, int, int] = (5, 6, 7), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)


def header(path: Path, sop_class: str, *, study: str, series: str, number: int = 1) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = study, series, number
    data.FrameOfReferenceUID, data.Modality = generate_uid(entropy_srcs=[study]), "CT"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = PATIENT, "PatX", "19700101", "F"
    data.StudyID, data.AccessionNumber, data.StudyDate, data.StudyTime = "1", "A1", "20260101", "101010"
    data.ReferringPhysicianName, data.Manufacturer, data.ImageType = "Who^Dr", "M", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    return data


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    number: int = 1,
    orientation: Sequence[float] = AXIAL,
    spacing_mm: tuple[float, float] = (0.8, 0.6),
    step: Sequence[float] | None = None,
    origin: Sequence[float] = (-20.5, 10.25, 100.0),
    scales: Sequence[tuple[float, float]] | None = None,
    leave_out: Sequence[int] = (),
    study: str | None = None,
    **changes: Any,
) -> Made:
    """One file for each slice; their names and instance numbers run against their positions.

    `step` leads from slice to slice; along the normal by default. `changes` are attributes of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series = study or generate_uid(), generate_uid()
    turn = np.reshape(orientation, (2, 3))
    step = 2.5 * np.cross(*turn) if step is None else np.asarray(step)
    files = []
    for index, plane in enumerate(stored):
        instance = len(stored) - index
        path = folder / f"IM{instance:03d}"
        data = header(path, CTImageStorage, study=study, series=series, number=number)
        data.InstanceNumber, data.Rows, data.Columns = instance, *plane.shape
        data.ImagePositionPatient = [f"{v:.9g}" for v in np.asarray(origin) + index * step]
        data.ImageOrientationPatient = [f"{v:.9g}" for v in np.ravel(orientation)]
        data.PixelSpacing, data.SliceThickness = list(spacing_mm), 2.5
        data.RescaleSlope, data.RescaleIntercept = (1, -1024) if scales is None else scales[index]
        data.PixelData = plane.astype("<i2").tobytes()
        for name, value in changes.items():
            setattr(data, name, value)
        if index not in leave_out:
            data.save_as(path, enforce_file_format=True)
            files.append(path)
    return Made(values=stored, uid=series, files=files)


def write_frames(
    path: Path, stored: np.ndarray, order: Sequence[int], scales: Sequence[tuple[float, float]] | None = None
) -> Made:  # fmt: skip
    """An Enhanced CT: all slices as frames of one file, in the given order; `scales` are in that of position."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = header(path, EnhancedCTImageStorage, study=generate_uid(), series=generate_uid())
    data.NumberOfFrames, data.Rows, data.Columns = len(stored), *stored.shape[1:]
    data.InstanceNumber, data.ContentDate, data.ContentTime = 1, "20260101", "101010"
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], 2.5
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in order:
        group, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-20.5, 10.25, 100.0 + 2.5 * index]
        scale.RescaleSlope, scale.RescaleIntercept = (1, -1024) if scales is None else scales[index]
        scale.RescaleType = "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [scale]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    data.PixelData = stored[list(order)].astype("<i2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return Made(values=stored, uid=data.SeriesInstanceUID, files=[path])
