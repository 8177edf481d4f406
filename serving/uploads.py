"""An uploaded scan: files under names of ours, checked before any of it is unpacked into memory.

A header may claim anything, and a few kilobytes of gzip may unpack to terabytes. So the voxels that the header states
are counted first, and what is unpacked is counted against them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from inference.configuration_predictor import ConfigurationPredictor
from inference.dicom.headers import ENDINGS as DICOM_NAMES
from inference.dicom.headers import is_deflated, is_dicom, load_pydicom
from inference.dicom.segmentation import load_highdicom
from inference.mask_formats import DICOM_ENDINGS, ENDINGS, NIFTI, format_fault, mask_ending
from inference.memory import PROGRAM_BYTES, forecast_predictor, free_memory_bytes, planned_grid
from inference.predictor import Predictor
from inference.preparing import as_volume
from inference.scans import Scan, find_input, with_reference
from serving.kinds import ARCHIVE, DICOM, GZIP_MAGIC, check_text_header, ending_of, unpacked_beyond
from serving.limits import Limits
from serving.refusals import Refused, too_large
from serving.scratch import Folder
from utils.archives import unpack_zip
from utils.errors import UserError
from utils.nifti import Volume, read_header, working_grid
from utils.packed_voxels import find_packed
from utils.scan_formats import require_package

MOST_VOXEL_BYTES = 8
HEADER_ROOM_BYTES = 1 << 24
"""What may stand before the voxels: header and extensions."""
MOST_SLICES = 20_000
"""Files that a zip of DICOM may hold."""
START_BYTES = 4096
NAME = "the scan"
"""What messages call it."""


def file_name(number: int, start: bytes) -> str:
    """The name of an uploaded file here; only its first bytes have a say."""
    return f"scan_{number}{ending_of(start)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What is taken for a scan: `num_channels` of the model, `limits` of a zip, and which series are which channels."""

    num_channels: int
    limits: Limits
    dicom_channels: tuple[str, ...] = ()


def open_upload(files: Sequence[Path], folder: Folder, opening: Opening) -> Scan:
    """The scan that uploaded files (called by `file_name`) hold; a zip of DICOM files is unpacked into `folder`.

    Raises:
        Refused: they hold no scan, or several.
    """
    first = files[0].suffix
    if first not in (ARCHIVE, DICOM):
        for number, file in enumerate(files, start=1):
            check_text_header(file, f"file {number}")
        _require(lambda: require_package(files), f"read {first}", "formats")
        return Scan(case="scan", images=tuple(files), shown=NAME, mask_ending=_own_ending(files[0]))
    if len(files) > 1:
        raise Refused(422, "DICOM comes as one zip, or as one file with all slices")
    _require(load_pydicom, "read DICOM", "dicom")
    place = folder.path / "scan"
    try:
        if first == ARCHIVE:
            _unpack(files[0], place, opening.limits, folder.need)
        else:
            place.mkdir()
            files[0].rename(place / files[0].name)
        _check_dicom(place)
        found = find_input(place, opening.num_channels, opening.dicom_channels)
    except UserError as error:
        said = str(error).replace(f"--input {place}", "what was sent")
        raise Refused(422, in_clients_words(said, files)) from None
    return _one_of(found.scans)


def _check_dicom(place: Path) -> None:
    files = [path for path in place.iterdir() if is_dicom(path)]
    if not files:
        raise Refused(422, "what was sent holds no DICOM file; other formats come as they are, not in a zip")
    if any(map(is_deflated, files)):
        raise Refused(422, "deflated DICOM files are not taken, as nobody knows what they unpack to; store them plain")


def _require(load: Callable[[], object], what: str, extra: str) -> None:
    """Load an optional package.

    Raises:
        Refused: whoever runs the service has not installed it.
    """
    try:
        load()
    except UserError:
        raise Refused(415, f"this service cannot {what}; ask whoever runs it to install the extra {extra!r}") from None


def _one_of(scans: Sequence[Scan]) -> Scan:
    """The one series that makes a scan."""
    fitting = [scan for scan in scans if scan.problem is None]
    if len(scans) == 1 and not fitting:
        raise Refused(422, f"the DICOM series cannot be used: {scans[0].problem}")
    if len(fitting) != 1:
        sizes = ", ".join(str(len(scan.images)) for scan in scans[:10])
        raise Refused(422, f"the zip holds {len(scans)} series (of {sizes} files), not one; send one of them")
    return fitting[0]


def _unpack(archive: Path, place: Path, limits: Limits, need: Callable[[int], None]) -> None:
    try:
        with zipfile.ZipFile(archive) as found:
            sizes = [member.file_size for member in found.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise Refused(422, "file 1 is a damaged zip; send it again") from None
    most_bytes = limits.voxels * MOST_VOXEL_BYTES + HEADER_ROOM_BYTES
    if len(sizes) > MOST_SLICES or sum(sizes) > most_bytes:
        raise too_large(f"the zip holds {len(sizes)} files that unpack to {sum(sizes)} bytes")
    need(sum(sizes))
    unpack_zip(archive, place, most_bytes=most_bytes, keep=DICOM_NAMES)


def _own_ending(file: Path) -> str:
    """Of the mask, where the client asks for no format: that of the scan, packed where it is NIfTI."""
    ending = mask_ending(file, None)
    return NIFTI if ending == ".nii" else ending


def wanted_ending(scan: Scan, wanted: str | None) -> str:
    """The ending of the mask's file, as the client wants it: one of `ENDINGS`.

    Raises:
        Refused: a mask of this scan cannot have it.
    """
    if wanted is None:
        return scan.mask_ending
    fault = format_fault(scan.images[0], wanted, is_series=scan.series is not None)
    if fault is not None:
        raise Refused(422, f"the mask cannot be written so: {fault}")
    if wanted in DICOM_ENDINGS:
        _require(load_highdicom, f"write {wanted}", "dicom")
        if (problem := with_reference(scan).problem) is not None:
            raise Refused(422, f"the mask cannot be written so: {problem}")
    _require(lambda: require_package([Path(f"x{ENDINGS[wanted]}")]), f"write {wanted}", "formats")
    return ENDINGS[wanted]


def check_upload(scan: Scan, predictor: Predictor, limits: Limits) -> tuple[int, ...]:
    """Shape (x, y, z) of a scan that may be read.

    Raises:
        Refused: a file is broken (422), or too large to be read or predicted here (413).
    """
    try:
        headers = [scan.header()] if scan.series is not None else [read_header(path) for path in scan.images]
    except UserError as error:
        raise Refused(422, in_clients_words(str(error), scan.images)) from None
    voxels = sum(math.prod(shape) for shape, _ in headers)
    if voxels > limits.voxels:
        raise too_large(f"the scan has {voxels} voxels; this service takes {limits.voxels}")
    if scan.series is None:
        try:
            for path, (shape, _) in zip(scan.images, headers):
                _check_unpacked(path, math.prod(shape) * MOST_VOXEL_BYTES + HEADER_ROOM_BYTES)
        except UserError as error:
            raise Refused(422, in_clients_words(str(error), scan.images)) from None
    shape, affine = headers[0]
    _check_grid(shape, affine, predictor, limits)
    return shape[:3]


def open_array(image: np.ndarray, spacing_mm: Sequence[float], predictor: Predictor, limits: Limits) -> Volume:
    """The scan of an array (C, S, A, R) and its voxel size, within the limits that files have.

    Raises:
        Refused: another number of channels, no voxel size (422), or too large to be predicted here (413).
    """
    channels = len(predictor.plan.channels)
    if image.ndim != 4 or len(image) != channels:
        raise Refused(422, f"an image is (C, S, A, R) with {channels} channels, got shape {image.shape}")
    if image.size > limits.voxels:
        raise too_large(f"the image has {image.size} voxels; this service takes {limits.voxels}")
    volume = as_volume(image, spacing_mm)
    _check_grid(volume.geometry.shape_xyz, np.array(volume.geometry.affine), predictor, limits)
    return volume


def _check_grid(shape: tuple[int, ...], affine: np.ndarray, predictor: Predictor, limits: Limits) -> None:
    """Refuse a scan (x, y, z, ...) that would take too much memory on the model's grid."""
    grid, spacing_mm = working_grid(shape[:3], affine)
    _check_resampled(grid, spacing_mm, affine, predictor, limits)
    needed = forecast_predictor(predictor, grid, spacing_mm, affine).peak_bytes
    free = free_memory_bytes()
    if needed > free - PROGRAM_BYTES:
        raise too_large(f"the scan needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


def _check_resampled(
    shape: tuple[int, int, int], spacing_mm: Sequence[float], affine: np.ndarray, predictor: Predictor, limits: Limits
) -> None:
    """Spacing decides how large a scan becomes on the model's grid: a small file may claim metres."""
    turned: np.ndarray | None = affine
    if predictor.merge is not None:
        shape, spacing_mm = predictor.merge.grid(shape, spacing_mm)
        turned = affine if predictor.merge.orientation == "stored" else None
    for configuration in predictor.configurations:
        stage: ConfigurationPredictor | None = configuration
        while stage is not None:
            _, grid = planned_grid(shape, spacing_mm, plan=stage.plan, affine=turned)
            voxels = math.prod(grid) * len(stage.plan.channels)
            if voxels > limits.voxels:
                raise too_large(f"the scan has {voxels} voxels on the model's grid; this service takes {limits.voxels}")
            stage = stage.previous


def in_clients_words(message: str, files: Sequence[Path]) -> str:
    """A message of ours without the names that files and their folder have here."""
    message = message.replace(f"{files[0].parent}{os.sep}", "") if files else message
    for number, path in enumerate(files, start=1):
        message = message.replace(str(path), f"file {number}").replace(path.name, f"file {number}")
    return message


def _check_unpacked(path: Path, most_bytes: int) -> None:
    with path.open("rb") as file:
        places = [(path, 0)] if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else []
    if not places and path.suffix in (".nrrd", ".mha"):
        packed = find_packed(path)
        places = [] if packed is None else [(packed.path, packed.offset)]
    if any(unpacked_beyond(place, most_bytes, offset) for place, offset in places):
        raise too_large("the file unpacks to far more than its header states")
