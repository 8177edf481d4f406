"""nnU-Net v2's checkpoints, read without running anything that they hold.

A `.pth` file is a zip whose pickle may name any function. Here it may name tensors, plain values and numpy scalars
(nnU-Net logs with them); a file that names anything else is refused, with the names.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from models.file_sums import check_sums
from utils.errors import UserError

_OLD_SCALAR = "numpy.core.multiarray.scalar"
_TORCHS_OWN = {"torch.device"}
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork:
    """What a checkpoint says; tensors stay in their file until they are used.

    `mirror_axes` are the axes of the patch that training flipped.
    """

    weights: dict[str, Tensor]
    trainer: str
    configuration: str
    fold: int | str | None
    mirror_axes: tuple[int, ...]
    content: Mapping[str, Any]
    """All of the file."""


def allowed_globals() -> list[Any]:
    """What a checkpoint may name beside tensors and plain values: numpy's scalars, by their newer and older name."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # not public, and what numpy itself pickles
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
    return [scalar, (scalar, _OLD_SCALAR), np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def load_tensors(file: Path | BinaryIO, name: str) -> Any:
    """The content of a `.pth` file: tensors and plain values.

    Args:
        file: path, whose tensors stay in the file, or an open file.
        name: what messages call it.

    Raises:
        UserError: it is damaged, or names anything that could run; the message says what. Nothing is run.
    """
    source = file if isinstance(file, Path | io.BytesIO) else io.BytesIO(file.read())
    try:
        check_sums(source)
        with torch.serialization.safe_globals(allowed_globals()):
            unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(source)) - _TORCHS_OWN
            if unsafe:
                raise UserError(
                    f"{name} wants to run {', '.join(sorted(unsafe))} when it is read, which a checkpoint of nnU-Net "
                    "does not need; nothing was run. Do not use this file"
                )
            if isinstance(source, io.BytesIO):
                source.seek(0)
            return torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path))
    except UserError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for damaged files, none of them its own
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} cannot be read as a checkpoint of nnU-Net v2: it is truncated or damaged, or something else "
            f"({reason}); copy it again"
        ) from None


def read_checkpoint(file: Path | BinaryIO, name: str) -> TrainedNetwork:
    """One `checkpoint_final.pth` or `checkpoint_best.pth`.

    Raises:
        UserError: as `load_tensors`; it is something else.
    """
    content = load_tensors(file, name)
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{name} holds no network_weights; it is no checkpoint of nnU-Net v2")
    started = content.get("init_args")
    started = started if isinstance(started, dict) else {}
    axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, (tuple, list)) or not all(type(axis) is int for axis in axes):
        raise UserError(f"{name}: inference_allowed_mirroring_axes must be whole numbers, got {axes!r}")
    return TrainedNetwork(
        weights={_plain(key): value for key, value in weights.items()},
        trainer=str(content.get("trainer_name", "")), configuration=str(started.get("configuration", "")),
        fold=started.get("fold"), mirror_axes=tuple(axes),
        content=content,
    )  # fmt: skip


def _plain(name: str) -> str:
    """A parameter's name without what parallel training and compiling put before it."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
