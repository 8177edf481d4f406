"""The voxels of slices, rescaled: Hounsfield units for CT."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.dicom.headers import Slice, load_pydicom
from utils.errors import UserError
from utils.extras import optional_import


def read_frames(slices: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each slice and its values (rows, columns) float32, file by file.

    Raises:
        UserError: a file is gone, damaged, or packed in a way that cannot be read here.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for number, each in enumerate(slices):
        by_file[each.path].append(number)
    for path, numbers in by_file.items():
        array, is_rescaled = _pixels(path, f"instance number {slices[numbers[0]].number}")
        frames = array if array.ndim == 3 else array[None]
        for number in numbers:
            each = slices[number]
            frame = frames[each.frame or 0]
            if frame.shape != (each.rows, each.columns):
                shapes = f"{frame.shape} voxels, its header says {(each.rows, each.columns)}"
                raise UserError(f"instance number {each.number} has {shapes}")
            # In double precision, as the header's numbers are.
            yield number, (frame if is_rescaled else frame * each.slope + each.intercept).astype(np.float32)


def _pixels(path: Path, title: str) -> tuple[np.ndarray, bool]:
    """The voxels ([frames,] rows, columns) of a file, and whether they are rescaled already."""
    pydicom = load_pydicom()
    try:
        data = pydicom.dcmread(path, force=True)
        return data.pixel_array, False
    except OSError as error:
        raise UserError(f"{title} cannot be read: {error.strerror or error}") from None
    except (AttributeError, ValueError, EOFError) as error:
        raise UserError(f"{title} is damaged or cut short ({type(error).__name__})") from None
    except (RuntimeError, NotImplementedError):
        # pydicom has no decoder for this way of packing; GDCM, which SimpleITK holds, has one for most.
        return _by_simpleitk(path, title, getattr(data.file_meta, "TransferSyntaxUID", None)), True


def _by_simpleitk(path: Path, title: str, syntax: Any) -> np.ndarray:
    itk = optional_import("SimpleITK", extra="dicom", purpose=f"unpacking {title}")
    reader = itk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        return itk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        name = getattr(syntax, "name", syntax)
        raise UserError(f"{title} is packed as {name}, which cannot be read; unpack it first") from None
