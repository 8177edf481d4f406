"""How cost grows with the size of a scan: preprocessing, loading and inference at 1, 2, 4 and 8 times the voxels.

Each measurement is a process of its own, so that no peak of memory hides behind an earlier one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from utils.errors import UserError

BENCHMARK = Path(__file__).resolve().parents[1] / "scripts/benchmark.py"
SCALES = (1, 2, 4, 8)
Measure = Callable[[str, int], dict[str, Any]]
"""(mode, scale) -> outcome of the benchmark."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One cost: the benchmark's mode and the name that its outcome has for it."""

    title: str
    mode: str
    key: str
    unit: float = 1.0
    """The outcome is divided by this."""

    @property
    def name(self) -> str:
        """Name in the result, such as `preprocess_cpu_s_per_scan`."""
        return f"{self.mode}_{self.key}"


COLUMNS = (
    Column(title="preprocess s", mode="preprocess", key="seconds_per_scan"),
    Column(title="CPU s", mode="preprocess", key="cpu_s_per_scan"),
    Column(title="memory MB", mode="preprocess", key="added_memory_bytes", unit=1e6),
    Column(title="loader CPU ms/patch", mode="data", key="cpu_ms_per_patch"),
    Column(title="windows", mode="inference", key="windows_per_scan"),
    Column(title="inference s", mode="inference", key="seconds_per_scan"),
    Column(title="CPU s", mode="inference", key="cpu_s_per_scan"),
    Column(title="memory MB", mode="inference", key="added_memory_bytes", unit=1e6),
)


def measure_growth(measure: Measure, scales: Sequence[int] = SCALES) -> dict[str, Any]:
    """The costs at each size (`sizes`), and with which power of the voxels each of them grows (`exponents`).

    An exponent of 1 is a cost in proportion to the voxels, of 0 one that does not depend on them. Memory is what a
    stage adds to that of the program.
    """
    sizes = []
    for scale in scales:
        outcomes = {mode: measure(mode, scale) for mode in dict.fromkeys(column.mode for column in COLUMNS)}
        voxels = outcomes["preprocess"]["voxels_per_scan"]
        costs = {column.name: outcomes[column.mode][column.key] for column in COLUMNS}
        sizes.append({"scale": scale, "voxels_per_scan": voxels, **costs})
    exponents = {column.name: _exponent(scales, [size[column.name] for size in sizes]) for column in COLUMNS}
    return {"sizes": sizes, "exponents": exponents}


def growth_table(outcome: dict[str, Any]) -> str:
    """The result as a table of text, a line for each size and one for the exponents."""
    rows = [["scale", "Mvoxels", *(column.title for column in COLUMNS)]]
    for size in outcome["sizes"]:
        costs = [f"{size[column.name] / column.unit:.3g}" for column in COLUMNS]
        rows.append([f"{size['scale']}x", f"{size['voxels_per_scan'] / 1e6:.3g}", *costs])
    rows.append(["power", "1", *(f"{outcome['exponents'][column.name]:.2f}" for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def measure_in_process(words: Sequence[str]) -> Measure:
    """A function that runs scripts/benchmark.py with these flags in a process of its own and reads what it wrote.

    Raises:
        UserError: (from the function) the benchmark failed; its message.
    """

    def measure(mode: str, scale: int) -> dict[str, Any]:
        print(f"{mode} at {scale} times the voxels", flush=True)
        with TemporaryDirectory(prefix="nnunet-benchmark-") as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, str(BENCHMARK), "--mode", mode, "--scale", str(scale), "--json", str(result)]
            answer = subprocess.run([*command, *words], capture_output=True, text=True)
            if answer.returncode:
                raise UserError(f"--mode {mode} --scale {scale} failed: {answer.stderr.strip()[-2000:]}")
            return json.loads(result.read_text(encoding="utf-8"))["outcome"]

    return measure


def _exponent(scales: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log(cost) over log(scale), by least squares; 0 for a single size."""
    x, y = ([math.log(max(value, 1e-9)) for value in values] for values in (scales, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread if spread else 0.0
