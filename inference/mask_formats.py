"""In which format a mask is written: that of its scan, or the one that the user asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from utils.scan_formats import ONE_FILE
from utils.scan_names import is_picture, scan_ending

NIFTI = ".nii.gz"
DICOM_ENDINGS = {"dicom-seg": ".seg.dcm", "dicom-seg-labelmap": ".labelmap.dcm"}
"""Formats of `--output_format` that only a mask of a DICOM series can have."""
ENDINGS = {
    "nii.gz": NIFTI, "nii": ".nii", "nrrd": ".nrrd", "mha": ".mha", "png": ".png", "tif": ".tif", **DICOM_ENDINGS,
}  # fmt: skip
"""`--output_format` -> ending of the mask."""


def mask_ending(image: Path, output_format: str | None) -> str:
    """The ending of the mask of a scan (by its first file); `output_format` None means the scan's own format.

    A scan that is no single file, as a DICOM series, gets NIfTI.
    """
    if output_format is not None:
        return ENDINGS[output_format]
    ending = scan_ending(image).lower()
    return ONE_FILE.get(ending, ending) or NIFTI


def format_fault(image: Path, output_format: str | None, *, is_series: bool) -> str | None:
    """Why the mask of a scan cannot have a format; None where it can."""
    if output_format in DICOM_ENDINGS and not is_series:
        return f"{output_format} refers to a DICOM series, and this scan is none"
    if is_picture(f"x{ENDINGS.get(output_format or '', '')}") and not is_picture(image):
        return f"{output_format} cannot hold where the scan lies in space"
    return None


def mask_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Cases and endings of the masks in a folder, by names alone."""
    endings = sorted({*ENDINGS.values(), ".tiff"}, key=len, reverse=True)
    for path in sorted(folder.iterdir()):
        ending = next((end for end in endings if path.name.endswith(end) and len(path.name) > len(end)), "")
        if ending and not path.name.startswith("."):
            yield path.name.removesuffix(ending), ending
