"""Changes of the core that change nothing that a test on a CPU can see, each with the reason."""

from __future__ import annotations

import re

_RESAMPLING, _RESTORATION = "data_preprocessing/resampling.py", "data_preprocessing/restoration.py"
_NORMALIZATION = "data_preprocessing/normalization.py"
EQUIVALENTS: dict[tuple[str, str, str], str] = {
    (_RESAMPLING, "source, target = (array, out) if axis else (a.reshape(1, len(a), -1) for a in (array, out))",
     "1: one more"): "-2 means the remaining size to numpy as -1 does",
    (_RESAMPLING, "low = np.minimum(position.astype(np.int64), max(n - 2, 0))", "0: one more"):
        "of one voxel the position is 0; of two, one that is 1 gets the same voxel by its other weight",
    (_RESTORATION, "if start < part.stop and part.start < stop:", "part.start < stop: LtE"):
        "a part without planes is put before the others",
    (_NORMALIZATION, "assert channel.lower is not None and channel.upper is not None",
     "channel.lower is not None and channel.upper is not None: Or"): "ChannelPlan refuses to be made with one of them",
    (_NORMALIZATION, "reached = np.zeros(count + 1, dtype=bool)", "1: one more"): "the further region has no voxel",
    ("models/sliding_window.py", "if 4 * math.prod(shape) <= most_device_bytes(device, settings):",
     "torch.cuda.empty_cache(): left out"):
        "nothing happens there without a GPU that is full",
    ("models/windows.py", "weight = weight[..., None] * (along / along.sum())[places]", "along / along.sum(): Mult"):
        "the weights are divided by the largest one afterwards; it is scipy's way to round",
}  # fmt: skip
"""Module, its line, the change -> why nothing notices."""


def reason(module: str, line: str, change: str) -> str | None:
    """Why a change of this line of a module makes no difference; None where it should make one."""
    return EQUIVALENTS.get((module, line.strip(), re.sub(r" \(line \d+\)$", "", change)))
