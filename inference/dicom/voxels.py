"""The voxels of slices, rescaled: Hounsfield units for CT."""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.dicom.headers import Slice, load_pydicom
from utils.errors import UserError
from utils.extras import optional_import

RESCALING = ("RescaleSlope", "RescaleIntercept", "PixelValueTransformationSequence")


def read_frames(slices: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each slice and its values (rows, columns) float32, file by file.

    Raises:
        UserError: a file is gone, damaged, or packed in a way that cannot be read here.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for number, each in enumerate(slices):
        by_file[each.path].append(number)
    for path, numbers in by_file.items():
        array = _pixels(path, f"instance number {slices[numbers[0]].number}")
        frames = array if array.ndim == 3 else array[None]
        for number in numbers:
            each = slices[number]
            frame = frames[each.frame or 0]
            if frame.shape != (each.rows, each.columns):
                shapes = f"{frame.shape} voxels, its header says {(each.rows, each.columns)}"
                raise UserError(f"instance number {each.number} has {shapes}")
            # In double precision, as the header's numbers are.
            yield number, (frame * each.slope + each.intercept).astype(np.float32)


def _pixels(path: Path, title: str) -> np.ndarray:
    """The voxels ([frames,] rows, columns) of a file as they are stored."""
    pydicom = load_pydicom()
    try:
        # Its warnings would quote the file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, force=True)
            return data.pixel_array
    except OSError as error:
        raise UserError(f"{title} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        # pydicom has no decoder for this way of packing; GDCM, which SimpleITK holds, has one for most.
        return _by_simpleitk(data, title)
    except Exception as error:
        # Of a damaged file pydicom raises whatever it comes across.
        raise UserError(f"{title} is damaged or cut short ({type(error).__name__})") from None


def _by_simpleitk(data: Any, title: str) -> np.ndarray:
    """The same by GDCM, which would rescale some kinds of files by itself: all frames alike, and MR not at all."""
    itk = optional_import("SimpleITK", extra="dicom", purpose=f"unpacking {title}")
    syntax = getattr(data.file_meta, "TransferSyntaxUID", None)
    groups = [*data.get("SharedFunctionalGroupsSequence", ()), *data.get("PerFrameFunctionalGroupsSequence", ())]
    for place in (data, *groups):
        for name in RESCALING:
            if name in place:
                delattr(place, name)
    with tempfile.TemporaryDirectory(prefix="nnunet-dicom-") as folder:
        stored = Path(folder) / "stored.dcm"
        reader = itk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(stored))
        try:
            data.save_as(stored)
            return itk.GetArrayFromImage(reader.Execute())
        except (RuntimeError, ValueError, AttributeError):
            packing = getattr(syntax, "name", syntax)
            raise UserError(f"{title} is packed as {packing}, which cannot be read; unpack it first") from None
