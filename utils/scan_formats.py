"""NRRD, MetaImage, PNG and TIFF files in and out, through SimpleITK: the voxels and the grid that NIfTI would have.

SimpleITK's world runs to the left, to the back and up (LPS), this program's to the right, to the front and up (RAS), in
mm both. A picture (PNG, TIFF) is a slice (x, y, 1) of voxels of 1 mm; what it says of dots per inch is no voxel size.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.axes import triple
from utils.errors import UserError, missing_file
from utils.extras import optional_import
from utils.geometry import Geometry
from utils.nifti_header import require_grid
from utils.packed_voxels import require_undamaged
from utils.scan_names import is_picture, scan_ending
from utils.temporary import private_folder, temporary_file
from utils.text_headers import require_harmless, require_text_name

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of DICOM and ITK (left, back, up) to this program's (right, front, up), and back: both in mm."""
READERS = {
    ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO",
    ".png": "PNGImageIO", ".tif": "TIFFImageIO", ".tiff": "TIFFImageIO",
}  # fmt: skip
"""SimpleITK's reader for each ending: by itself it does not know the endings in upper case."""
ONE_FILE = {".nhdr": ".nrrd", ".mhd": ".mha"}
"""Headers with their voxels in a file of their own -> the same format in one file, as it is written."""
_OTHER_UNIT = re.compile(
    r"[cdunµμ\ufffd]?m|in|inch|inches|microns?|(centi|deci|micro|nano)?met(er|re)s?", re.IGNORECASE
)
_SPACE_UNITS = re.compile(rb"^[ \t]*space[ \t]*units[ \t]*:(?!=)[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_HEADER_BYTES = 1 << 16


def needs_itk(path: Path) -> bool:
    """Whether a file is none of NIfTI, by its name."""
    return scan_ending(path).lower() in READERS


def require_package(paths: Iterable[Path]) -> None:
    """Find out, once and before the work, that files cannot be read or written as their package is not installed.

    Raises:
        UserError: SimpleITK is missing, and one of the files needs it.
    """
    first = next(filter(needs_itk, paths), None)
    if first is not None:
        _simpleitk(first)


def read_grid(path: Path) -> tuple[tuple[int, ...], Geometry]:
    """Shape (x, y, z[, c]) and grid; the voxels are not read.

    Raises:
        UserError: no SimpleITK, or no readable file.
    """
    with _opened(path) as reader:
        return _grid_of(path, reader)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A reader that has read the header."""
    reader = _reader(path)
    with _place_of(path) as place:
        reader.SetFileName(str(place))
        _attempt(path, reader.ReadImageInformation)
        yield reader


@contextlib.contextmanager
def _place_of(path: Path) -> Iterator[Path]:
    """Where a file is read: a TIFF, whose library prints warnings with the file's name, by a link that says nothing."""
    if READERS[scan_ending(path).lower()] != "TIFFImageIO":
        require_text_name(path)
        if not is_picture(path):
            require_harmless(path)
        yield path
        return
    with private_folder("nnunet-picture") as folder:
        link = folder / "picture.tif"
        link.symlink_to(path.absolute())
        yield link


def _grid_of(path: Path, reader: Any) -> tuple[tuple[int, ...], Geometry]:
    _require_millimetres(path, reader)
    size, components = tuple(int(n) for n in reader.GetSize()), int(reader.GetNumberOfComponents())
    shape = _shape(path, size, components)
    affine = _ras_affine(path, len(size), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    return shape, _geometry(shape, affine)


def _require_millimetres(path: Path, reader: Any) -> None:
    """SimpleITK takes all numbers for mm, whatever the header says."""
    named = [key for key in reader.GetMetaDataKeys() if key == "ITK_VoxelUnits" or key.startswith("NRRD_units[")]
    units = [reader.GetMetaData(key) for key in named]
    if not is_picture(path):
        with open(path, "rb") as file:
            head = re.split(rb"\r?\n\r?\n", file.read(_HEADER_BYTES), maxsplit=1)[0]
        for words in _SPACE_UNITS.findall(head) if head.startswith(b"NRRD") else ():
            units += words.decode("utf-8", "replace").replace('"', " ").split()
    other = next(filter(_OTHER_UNIT.fullmatch, units), None)
    if other is not None:
        raise UserError(f"{path} has its voxel size in {other}, which would be taken for mm; store it in mm")


def read_voxels(path: Path) -> tuple[np.ndarray, Geometry]:
    """Channels (C, x, y, z) in the file's own type, and the grid.

    Raises:
        UserError: no SimpleITK, or the file is missing, cut short, damaged or of another kind than its name says.
    """
    itk = _simpleitk(path)
    with _opened(path) as reader:
        shape, geometry = _grid_of(path, reader)
        if not is_picture(path):
            voxel = _attempt(path, lambda: itk.Image([1, 1, 1], reader.GetPixelID()))
            if "complex" in voxel.GetPixelIDTypeAsString():
                raise _no_numbers(path, "complex")
            require_undamaged(path, math.prod(shape) * voxel.GetSizeOfPixelComponent())
        image = _attempt(path, reader.Execute)
    components = image.GetNumberOfComponentsPerPixel()
    array = itk.GetArrayFromImage(image)
    if array.dtype.kind not in "iuf":
        raise _no_numbers(path, str(array.dtype))
    # SimpleITK's arrays are (..., y, x[, component]).
    array = np.moveaxis(array, -1, 0) if components > 1 else array[None]
    array = array[:, None] if array.ndim == 3 else array
    array = array[0] if array.ndim == 5 else array
    return array.transpose(0, 3, 2, 1), geometry


def write_voxels(path: Path, stored: np.ndarray, geometry: Geometry) -> None:
    """Write an array (x, y, z[, c]) onto a grid, whole or not at all; two files, for `.nhdr` and `.mhd`, one by one.

    Raises:
        OSError: the file cannot be written.
        UserError: no SimpleITK, or a picture of more than one slice.
    """
    itk = _simpleitk(path)
    if is_picture(path):
        if stored.shape[2] != 1:
            raise UserError(
                f"{path}: a picture holds one slice, and the scan has {stored.shape[2]}; use another format"
            )
        image = itk.GetImageFromArray(np.ascontiguousarray(stored[:, :, 0].swapaxes(0, 1)), isVector=stored.ndim == 4)
    else:
        axes = (2, 1, 0) if stored.ndim == 3 else (2, 1, 0, 3)
        image = itk.GetImageFromArray(np.ascontiguousarray(stored.transpose(axes)), isVector=stored.ndim == 4)
        affine = LPS_TO_RAS @ np.asarray(geometry.affine, float)
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing_mm.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / spacing_mm).ravel().tolist())
    writer = itk.ImageFileWriter()
    writer.SetImageIO(READERS[scan_ending(path).lower()])
    writer.UseCompressionOn()
    if scan_ending(path).lower() in ONE_FILE:
        # A header names the file of its voxels, so it cannot be renamed.
        _write(writer, image, path, path)
        return
    with temporary_file(path) as (_, temporary):
        _write(writer, image, temporary, path)
        temporary.replace(path)


def _write(writer: Any, image: Any, place: Path, path: Path) -> None:
    require_text_name(place)
    writer.SetFileName(str(place))
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise OSError(0, _reason(error), str(path)) from None


def copy_scan(source: Path, target: Path) -> None:
    """Write a scan anew: what a header with its voxels in a second file needs, which no copy of one file holds."""
    channels, geometry = read_voxels(source)
    write_voxels(target, channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1), geometry)


def _simpleitk(path: Path) -> Any:
    return optional_import("SimpleITK", extra="formats", purpose=f"{path}: the format {scan_ending(path).lower()}")


def _reader(path: Path) -> Any:
    if not path.is_file():
        raise missing_file(path)
    reader = _simpleitk(path).ImageFileReader()
    reader.SetImageIO(READERS[scan_ending(path).lower()])
    return reader


def _no_numbers(path: Path, kind: str) -> UserError:
    return UserError(f"{path} holds {kind} voxels; convert it to integers or floating-point numbers")


def _attempt(path: Path, read: Any) -> Any:
    try:
        return read()
    except RuntimeError as error:
        kind = scan_ending(path).lower()
        raise UserError(f"{path} is no readable {kind} file, or cut short ({_reason(error)})") from None


def _reason(error: RuntimeError) -> str:
    """The last line of SimpleITK's message, which is the one that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _shape(path: Path, size: tuple[int, ...], components: int) -> tuple[int, ...]:
    """(x, y, z), or (x, y, z, c) of several channels, be they components of a voxel or a fourth axis."""
    if is_picture(path) and len(size) == 3 and size[2] == 1:
        size = size[:2]
    if is_picture(path) and len(size) != 2:
        raise UserError(
            f"{path} holds {size[-1]} pages, and no picture says how far they are apart; convert it to .nrrd or .nii.gz"
        )
    if len(size) not in (2, 3, 4) or (len(size) == 4 and components > 1):
        raise UserError(f"{path} has {len(size)} axes and {components} numbers a voxel; a scan has 3 axes and channels")
    if min(size) < 1:
        raise UserError(f"{path} has shape {size}: no voxels")
    space = size[:3] if len(size) > 2 else (*size, 1)
    channels = size[3] if len(size) == 4 else components
    return space if channels == 1 else (*space, channels)


def _ras_affine(path: Path, num_axes: int, spacing: Any, origin: Any, direction: Any) -> np.ndarray:
    affine = np.eye(4)
    if not is_picture(path):
        axes = min(3, num_axes)
        turn = np.asarray(direction, float).reshape(num_axes, num_axes)[:axes, :axes]
        affine[:axes, :axes] = turn * np.asarray(spacing, float)[:axes]
        affine[:axes, 3] = np.asarray(origin, float)[:axes]
    affine = LPS_TO_RAS @ affine
    require_grid(affine, path)
    # No -0.0, which would be another number in JSON.
    return affine + 0.0


def _geometry(shape: tuple[int, ...], affine: np.ndarray) -> Geometry:
    return Geometry(
        shape_xyz=triple(shape[:3]), affine=tuple(map(tuple, affine.tolist())), qform_code=1, sform_code=1,
        xyzt_units=2,
    )  # fmt: skip
