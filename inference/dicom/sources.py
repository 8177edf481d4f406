"""The headers of a series as a file that refers to it takes them over: usable ones, and nobody's where that is asked.

Archives empty or leave out what says who somebody is, and scanners write values that no other file may have.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from inference.dicom.headers import load_pydicom
from inference.dicom.series import Series
from utils.errors import UserError

PATIENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "ReferringPhysicianName", "StudyDate", "StudyTime",
)  # fmt: skip
"""What every file has, with or without a value; emptied in anonymous files, whose UIDs stay, as they refer by them."""
PERSONAL_GROUPS = (0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x0040)
"""Groups of attributes on people, studies and institutions: what the source says in them is left out altogether."""
TECHNICAL = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "TimezoneOffsetFromUTC", "Modality", "ImageType"
)  # fmt: skip
"""What anonymous files keep of those groups."""
SEXES = ("", "M", "F", "O")
REFERRED = ("StudyInstanceUID", "FrameOfReferenceUID")
"""Without which no file can refer to a source."""


def read_sources(series: Series, *, anonymous: bool) -> list[Any]:
    """The headers of a series' files, in the order of its slices, with what the standard asks for.

    Raises:
        UserError: a file is gone, or says too little to be referred to.
    """
    stack = series.require_stack()
    # Of a segmentation it is how far the slices are apart.
    thickness_mm = round(sum(row[2] ** 2 for row in stack.geometry.affine[:3]) ** 0.5, 6)
    sources = []
    with warnings.catch_warnings():
        # They would quote values.
        warnings.simplefilter("ignore")
        for file in dict.fromkeys(each.path for each in stack.slices):
            source = _read(file, series.name)
            if anonymous:
                _forget_patient(source)
            _complete(source)
            if source.get("SliceThickness") is None:
                source.SliceThickness = thickness_mm
            sources.append(source)
    return sources


def reference_fault(series: Series) -> str | None:
    """Why no file can refer to a series; None where one can, or where nothing can be said of it."""
    if series.stack is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = _read(series.stack.slices[0].path, series.name)
            missing = [name for name in REFERRED if not source.get(name)]
    except UserError:
        return None
    if not missing:
        return None
    return f"its headers have no {' and no '.join(missing)}, which DICOM-SEG refers to; choose another format"


def _read(path: Path, name: str) -> Any:
    pydicom = load_pydicom()
    try:
        source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except OSError as error:
        raise UserError(f"a slice of {name} cannot be read again: {error.strerror or error}") from None
    given = source.original_character_set
    if not all(map(_is_text_codec, [given] if isinstance(given, str) else given)):
        del source.SpecificCharacterSet
        source.set_original_encoding(*source.original_encoding, pydicom.charset.default_encoding)
    return source


def _is_text_codec(name: str) -> bool:
    """Whether Python can write text by a codec; what is called as another one of its own pydicom lets pass."""
    try:
        "a".encode(name)
    except (LookupError, UnicodeError):
        return False
    return True


def _forget_patient(source: Any) -> None:
    for element in list(source):
        if element.tag.group in PERSONAL_GROUPS and element.keyword not in TECHNICAL:
            del source[element.tag]
    for name in PATIENT:
        setattr(source, name, "")


def _complete(source: Any) -> None:
    """Empty what is missing, or has a value that it may not have."""
    values = load_pydicom().valuerep
    for name in PATIENT:
        if source.get(name) is None:
            setattr(source, name, "")
    for name, kind in (("PatientBirthDate", values.DA), ("StudyDate", values.DA), ("StudyTime", values.TM)):
        try:
            kind(source.get(name))
        except (ValueError, TypeError):
            setattr(source, name, "")
    if source.PatientSex not in SEXES:
        source.PatientSex = ""
    if not _is_known_text(source):
        del source.SpecificCharacterSet


def _is_known_text(source: Any) -> bool:
    given = source.get("SpecificCharacterSet") or ""
    names = [given] if isinstance(given, str) else list(given)
    known = load_pydicom().charset.python_encoding
    return "SpecificCharacterSet" not in source or all(name in known for name in names)
