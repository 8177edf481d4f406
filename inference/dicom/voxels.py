"""The voxels of slices, rescaled: Hounsfield units for CT.

Of a file of many frames those of one volume are unpacked, and no more: it may hold many volumes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.dicom.headers import Slice, load_pydicom
from utils.errors import UserError
from utils.extras import optional_import
from utils.temporary import private_folder

RESCALING = ("RescaleSlope", "RescaleIntercept", "PixelValueTransformationSequence")
FRAMES = "PerFrameFunctionalGroupsSequence"


def read_frames(slices: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each slice and its values (rows, columns) float32, file by file.

    Raises:
        UserError: a file is gone, damaged, or packed in a way that cannot be read here.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for number, each in enumerate(slices):
        by_file[each.path].append(number)
    for path, numbers in by_file.items():
        numbers.sort(key=lambda number: slices[number].frame or 0)
        frames = _frames(path, [slices[number].frame or 0 for number in numbers], slices[numbers[0]].number)
        for number, frame in zip(numbers, frames, strict=True):
            each = slices[number]
            if frame.shape != (each.rows, each.columns):
                shapes = f"{frame.shape} voxels, its header says {(each.rows, each.columns)}"
                raise UserError(f"instance number {each.number} has {shapes}")
            # In double precision, as the header's numbers are; what they make infinite is named with the scan.
            with np.errstate(over="ignore", invalid="ignore"):
                values = (frame * each.slope + each.intercept).astype(np.float32)
            yield number, values


def _frames(path: Path, wanted: Sequence[int], instance: int) -> Iterator[np.ndarray]:
    """Frames (rows, columns) of a file as they are stored, in rising order."""
    pydicom, title, done = load_pydicom(), f"instance number {instance}", 0
    try:
        with _silence():
            data = pydicom.dcmread(path, force=True)
        # All of them at once: one by one it looks for the beginning of each.
        indices = None if len(wanted) == int(data.get("NumberOfFrames") or 1) else wanted
        frames = pydicom.pixels.iter_pixels(data, indices=indices)
        while done < len(wanted):
            with _silence():
                frame = next(frames)
            yield frame
            done += 1
    except OSError as error:
        raise UserError(f"{title} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        # pydicom has no decoder for this way of packing; GDCM, which SimpleITK holds, has one for most.
        yield from _by_simpleitk(data, wanted, title)[done:]
    except Exception as error:
        raise _damaged(title, error) from None


def _damaged(title: str, error: Exception) -> UserError:
    """Of a damaged file pydicom raises whatever it comes across."""
    return UserError(f"{title} is damaged or cut short ({type(error).__name__})")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Of pydicom's warnings, which would quote the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _by_simpleitk(data: Any, wanted: Sequence[int], title: str) -> np.ndarray:
    """The same by GDCM, which would rescale some kinds of files by itself: all frames alike, and MR not at all."""
    itk = optional_import("SimpleITK", extra="dicom", purpose=f"unpacking {title}")
    syntax = getattr(data.file_meta, "TransferSyntaxUID", None)
    # Others may read what lies in the folder for temporary files; what a killed run leaves in it the next one removes.
    with private_folder("nnunet-dicom") as folder:
        stored = folder / "stored.dcm"
        reader = itk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(stored))
        try:
            with _silence():
                _keep_frames(data, wanted)
                data.save_as(stored)
            return itk.GetArrayFromImage(reader.Execute()).reshape(len(wanted), int(data.Rows), int(data.Columns))
        except (RuntimeError, ValueError, AttributeError):
            packing = getattr(syntax, "name", syntax)
            raise UserError(f"{title} is packed as {packing}, which cannot be read; unpack it first") from None
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise _damaged(title, error) from None


def _keep_frames(data: Any, wanted: Sequence[int]) -> None:
    """Take out all other frames, and what would rescale those."""
    count = int(data.get("NumberOfFrames") or 1)
    if len(wanted) < count:
        encaps = load_pydicom().encaps
        frames = list(encaps.generate_frames(data.PixelData, number_of_frames=count))
        data.PixelData, data.NumberOfFrames = encaps.encapsulate([frames[index] for index in wanted]), len(wanted)
        data[FRAMES].value = [data[FRAMES].value[index] for index in wanted]
    for place in (data, *data.get("SharedFunctionalGroupsSequence", ()), *data.get(FRAMES, ())):
        for name in RESCALING:
            if name in place:
                delattr(place, name)
